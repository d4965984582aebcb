"""One encoder in a process of its own, made by a row of the accuracy page's tools; answers one JSON line for each on standard input.

    python encoder_worker.py ROW TASK OUT

    {"do": "round", "shapes": [[batch, length], …], "times": [n, …]}  →  {"ms": [[…], …]}
    {"do": "outputs"}                                           →  {"file": OUT/output.npy}

A row `ours-…` is an engine of ours in OUT: its outputs are embeddings, pooled in the graph, which the peers are not timed with. The
others give hidden states, padding left out when they are scored.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
from accuracy_worker import Arrays, Made, Run, Task, outputs, row  # noqa: E402


def compiled(task: Task) -> Made:
    """torch.compile of the untouched checkpoint, shapes left dynamic where it finds that they change."""
    import torch
    from tools_torch import load, parameters

    model = load(task)
    forward = torch.compile(model.forward)

    def run(arrays: Arrays) -> np.ndarray:
        with torch.inference_mode():
            feed = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
            return np.asarray(forward(**feed).last_hidden_state.numpy())

    return Made(run, parameters(model), 0, 0)


def made(name: str, task: Task) -> Made:
    return compiled(task) if name == "torch-compile" else row(name)(task)


def ours(folder: Path) -> Run:
    from openclaw_opt.artifacts import Engine
    from openclaw_opt.backends.engines import open_engine

    session: Any = open_engine(Engine(folder))
    return lambda arrays: np.asarray(session.infer(arrays)["embedding"])


def sample(shape: list[int]) -> Arrays:
    """Texts without padding of that batch and length; ids are MiniLM's words, the same in every process."""
    ids = np.random.default_rng(0).integers(1000, 30000, shape).astype(np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def timed(run: Run, arrays: Arrays) -> float:
    began = time.perf_counter_ns()
    run(arrays)
    return (time.perf_counter_ns() - began) / 1e6


def scored(name: str, run: Run, task: Task, out: Path) -> str:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(
            1
        )  # the other rows' threads wait for the same cores, and nothing is timed here
    file = out / "output.npy"
    if name.startswith("ours-"):
        np.save(file, np.concatenate([run(one) for one in task.samples("evaluation")]))
    else:
        np.save(file, outputs(Made(run, 0, 0, 0), task))
    return str(file)


def main() -> None:
    name, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    os.environ.pop("OMP_WAIT_POLICY", None)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    out.mkdir(parents=True, exist_ok=True)
    task = Task(folder, out)
    run = ours(out) if name.startswith("ours-") else made(name, task).run
    print(json.dumps({"ready": name}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "round":
            found = [
                [timed(run, sample(shape)) for _ in range(times)]
                for shape, times in zip(asked["shapes"], asked["times"], strict=True)
            ]
            print(json.dumps({"ms": found}), file=answers, flush=True)
        else:
            print(json.dumps({"file": scored(name, run, task, out)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
