"""Every peer side by side: one command, one run, in turns → docs/results/speed.md and the raw numbers in speed.json beside it.

    python tests/peers/speed.py --cache FOLDER [--models demo 125m 0.41b 0.5b minilm] [--peers NAME …] [--rounds 9] [--output docs/results]

Each peer lives in a virtual environment of its own under FOLDER, made from the pinned packages below, and runs in its own process;
a round is one prefill of 64 tokens and 40 decode steps in each, one after the other with a pause, in an order drawn for each round. Between
them memory is read, so that the fraction of the bandwidth is that of the same minutes. Models of earlier runs in speed.json stay on the
page, each under its own command and date; `--models` alone only writes the page again. A peer that cannot be built or opened, or is
not ready in time, is listed as `not measured` with its last words. `minilm` is the encoder's race, speed_encoder.py.

Ours run in this environment: `pip install -e .[gguf,openvino]`, with `--find-links FOLDER` where llama-cpp-python was compiled before.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from openclaw_opt.backends.host_rates import Reader  # noqa: E402
from openclaw_opt.targets import cpu_title, cpu_vectors  # noqa: E402
from tests.peers import shapes, speed_builds  # noqa: E402
from tests.peers.speed_page import decides, page  # noqa: E402

PROMPT, STEPS, WARMUP = 64, 40, 1
SETTLE_S = 0.3
"""Between two peers: threads of the last one may spin for a while, and would count in the next one's prefill."""
SCORED, SCORED_TOKENS = 8, 96
VENVS: dict[str, tuple[str, ...]] = {
    "torch": ("torch==2.13.0", "transformers==5.23.0", "torchao==0.18.0", "numpy==2.4.6"),
    "genai": (
        "torch==2.13.0", "transformers==5.23.0", "onnxruntime==1.32.0", "onnxruntime-genai==0.18.0",
        "onnx==1.23.2", "onnx-ir==1.1.0", "onnxscript==0.7.2",
    ),
    "olive": (
        "torch==2.13.0", "transformers==5.23.0", "olive-ai==0.13.0", "optimum==2.3.0", "requests==2.34.2", "onnx==1.23.2", "onnx-ir==1.1.0",
        "onnxruntime==1.32.0", "onnxruntime-genai==0.14.1",
    ),
    "openvino": ("torch==2.13.0", "optimum-intel[openvino]==2.2.0", "openvino==2026.4.1", "nncf==3.4.0"),
}  # fmt: skip
"""Environment → its packages; Olive's patches a file of onnxruntime-genai that 0.15 no longer has, so it builds with 0.14.1 and its
results run in 0.18.0 like the others. Peers that are not named in HOMES run in this one (with `pip install -e .[gguf,openvino]`)."""
HOMES = {
    "pytorch": "torch",
    "torch": "torch",
    "torchao": "torch",
    "genai": "genai",
    "olive": "genai",
    "openvino": "openvino",
}
PEERS = (
    "pytorch-fp32", "pytorch-bf16", "torch-compile-fp32", "torchao-int8", "torchao-int4", "genai-int4-32", "genai-int4-128",
    *speed_builds.OLIVE, "openvino-int8", "openvino-int4", "llama.cpp-q8_0", "llama.cpp-q4_0", "ours-onnxruntime", "ours-gguf", "ours-openvino",
)  # fmt: skip
ENCODER_PEERS = (
    "torch-float32", "torch-compile", "torchao-int8-dynamic", "onnxruntime-float32", "onnxruntime-fused", "onnxruntime-dynamic",
    "onnxruntime-fused-dynamic", "openvino-float32", "openvino-int8-weights", "openvino-int8-static",
    "ours-int8-weight-only", "ours-int8-per-token", "ours-float32", "ours-openvino-int8-weight-only", "ours-openvino-float32",
)  # fmt: skip
EVERYONE = (*PEERS, *ENCODER_PEERS)
NOT_RUN = {
    "olive-gptq-int4": "its GPTQ wants a calibration set from the Hugging Face hub; random weights would show nothing of it"
}


@dataclass
class Run:
    """One peer on one model: its process while it lives, milliseconds of each round, accuracy, or why there is nothing."""

    name: str
    process: subprocess.Popen[str] | None = None
    why: str = ""
    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    """Median of a round's steps."""
    least: float = float("inf")
    bits: float | None = None
    ready_s: float = 0.0

    @property
    def row(self) -> dict[str, Any]:
        return {
            "peer": self.name,
            "why": self.why,
            "prefill_ms": self.first,
            "decode_ms": self.later,
            "least_decode_ms": self.least if self.later else None,
            "bits_per_token": self.bits,
            "ready_s": self.ready_s,
        }


def python_of(name: str, cache: Path) -> str:
    """The interpreter of a peer's environment, made if it is not there."""
    home = HOMES.get(name.split("-")[0])
    if home is None:
        return sys.executable
    folder = cache / "venvs" / home
    fresh = not (folder / "ready").is_file()
    python = made(folder, VENVS[home])
    if fresh and home == "openvino":  # PyPI's torchvision does not fit a CPU build of torch, and text models need none
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torchvision"], check=True)
    return python


def made(folder: Path, packages: tuple[str, ...]) -> str:
    """The interpreter of an environment with these packages, made if it is not there."""
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch = [name for name in packages if name.startswith("torch==")]
        for chosen in (torch, packages):  # torch first: a package that needs it then takes the build that is there
            subprocess.run([str(python), "-m", "pip", "install", "-q", *chosen], check=True)
        ready.touch()
    return str(python)


def start(run: Run, checkpoint: Path, cache: Path, wait_s: float) -> None:
    """Open the peer in its own environment; `why` is set where it does not get ready."""
    try:
        python = python_of(run.name, cache.parent)
    except subprocess.CalledProcessError as error:
        run.why = f"its environment could not be made: {error}"
        return
    open_run(run, python, HERE / "worker.py", [str(checkpoint), str(cache)], cache, wait_s)


def open_run(run: Run, python: str, worker: Path, arguments: list[str], cache: Path, wait_s: float) -> None:
    """Start the worker, which says when it is ready; its last words stand in `why` where it does not."""
    began, log = time.monotonic(), cache / f"{run.name}.log"
    command = [python, str(worker), run.name, *arguments]
    with log.open("w") as err:
        run.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )  # fmt: skip
    answer = read(run, wait_s)
    run.ready_s = time.monotonic() - began
    if answer is None:
        stop(run)
        lines = [line for line in log.read_text().strip().splitlines() if line.strip()]
        run.why = (lines[-1] if lines and run.ready_s < wait_s else f"not ready within {wait_s:g} s")[:160]


def read(run: Run, wait_s: float) -> dict[str, Any] | None:
    assert run.process is not None
    assert run.process.stdout is not None
    if not select.select([run.process.stdout], [], [], wait_s)[0]:
        return None
    line = run.process.stdout.readline()
    found: dict[str, Any] | None = json.loads(line) if line.strip() else None
    return found


def ask(run: Run, wait_s: float, **asked: Any) -> dict[str, Any] | None:
    assert run.process is not None
    assert run.process.stdin is not None
    try:
        print(json.dumps(asked), file=run.process.stdin, flush=True)
    except BrokenPipeError:
        return None
    return read(run, wait_s)


def stop(run: Run) -> None:
    if run.process is not None:
        run.process.kill()
        run.process.wait()
        run.process = None


def race(runs: list[Run], vocab: int, rounds: int, reader: Reader, wait_s: float) -> list[float]:
    """Rounds in turns, in another order each; bytes a second of the reading after each turn of all."""
    random, orders = np.random.default_rng(0), np.random.default_rng(1)
    prompt, follow = random.integers(0, vocab, PROMPT).tolist(), random.integers(0, vocab, STEPS).tolist()
    readings = []
    for turn in range(WARMUP + rounds):
        alive = [run for run in runs if run.process is not None]
        for run in [alive[i] for i in orders.permutation(len(alive))]:
            time.sleep(SETTLE_S)
            found = ask(run, wait_s, do="round", prompt=prompt, follow=follow)
            if found is None:
                run.why = f"round {turn + 1} did not end within {wait_s:g} s, or the process ended"
                stop(run)
            elif turn >= WARMUP:
                run.first.append(found["first"])
                run.later.append(statistics.median(found["later"]))
                run.least = min(run.least, *found["later"])
        if turn >= WARMUP:
            readings.append(reader.once())
    return readings


def score(runs: list[Run], checkpoint: Path, wait_s: float) -> None:
    """Bits a token on text that the demo decoder was not trained on."""
    from openclaw_opt.data import parse_source
    from openclaw_opt.data.load import load_tokens

    source = parse_source(
        {"source": "python-stdlib", "split": "evaluation", "samples": SCORED, "length": SCORED_TOKENS},
        folder=checkpoint,
    )
    data = load_tokens(source, checkpoint / "tokenizer.json", checkpoint)
    for run in (run for run in runs if run.process is not None):
        found = [ask(run, wait_s, do="score", ids=np.asarray(ids).tolist()) for ids in data.sequences]
        if all(found):
            total = sum(one["nll"] for one in found if one) / np.log(2)
            run.bits = float(total / sum(one["tokens"] for one in found if one))


def olive_built(run: Run, checkpoint: Path, cache: Path) -> None:
    """Olive's result in the cache, made by its own environment if it is not there; `why` is set where that fails."""
    if run.name not in speed_builds.OLIVE:
        return
    try:
        speed_builds.olive(run.name, made(cache.parent / "venvs" / "olive", VENVS["olive"]), checkpoint, cache)
    except subprocess.CalledProcessError as error:
        run.why = str(error.cmd)[:160]


def sizes(checkpoint: Path, cache: Path) -> dict[str, Any]:
    """What builds took, and bytes of the checkpoint in half precision."""
    stored = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    config = json.loads((checkpoint / "config.json").read_text())
    wide = config.get("dtype", config.get("torch_dtype")) == "float32"
    return {"builds": speed_builds.records(cache / "builds.json"), "half_bytes": stored // 2 if wide else stored}


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model, as JSON."""
    cache = args.cache / name
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = cache / "checkpoint"
    if name == "demo":
        shutil.copytree(shapes.DEMO, checkpoint, dirs_exist_ok=True)
    else:
        shapes.write(name, checkpoint)
    wanted = {"onnxruntime": "ours-onnxruntime", "openvino": "ours-openvino", "float": "llama.cpp"}
    asked = [name for name, peer in wanted.items() if any(one.startswith(peer) for one in args.peers)]
    speed_builds.ours(checkpoint, cache, ("gguf", *asked))
    from openclaw_opt.backends.gguf import weight_bytes

    moved = weight_bytes(cache / "ours-gguf" / "model.gguf")
    vocab = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    runs = [Run(peer) for peer in PEERS if peer in args.peers]
    try:
        for run in runs:
            print(f"{name}: opening {run.name}", file=sys.stderr, flush=True)
            olive_built(run, checkpoint, cache)
            if not run.why:
                start(run, checkpoint, cache, args.wait)
        reader = Reader(moved)
        load = os.getloadavg()[0]
        readings = race(runs, vocab, args.rounds, reader, args.wait)
        if name == "demo":
            score(runs, checkpoint, args.wait)
    finally:
        for run in runs:
            stop(run)
    order = {peer: i for i, peer in enumerate(PEERS)}
    rows = [run.row for run in sorted(runs, key=lambda run: order[run.name])]
    return {
        "model": name,
        "weight_bytes": moved,
        "readings": readings,
        "load": load,
        **sizes(checkpoint, cache),
        "rows": rows,
    }


def main() -> None:
    from tests.peers import speed_encoder  # it imports this module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cache", type=Path, required=True, help="environments, checkpoints and artifacts; outside the repository"
    )
    parser.add_argument(
        "--models", nargs="*", default=["demo", "125m", "0.41b"], choices=["demo", *shapes.SHAPES, "minilm"]
    )
    parser.add_argument("--peers", nargs="+", default=list(EVERYONE), choices=EVERYONE)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--wait", type=float, default=600, help="seconds a peer may take to open or for a round")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    args.cache = args.cache.absolute()
    if ROOT in (args.cache, *args.cache.parents):
        parser.error("--cache must lie outside the repository")
    args.output.mkdir(parents=True, exist_ok=True)
    kept = args.output / "speed.json"
    results: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    for name in args.models:
        found = speed_encoder.measure(args) if name == "minilm" else measure(name, args)
        found["command"] = f"python tests/peers/speed.py --cache FOLDER --models {name} --rounds {args.rounds}"
        if set(args.peers) != set(EVERYONE):
            found["command"] += f" --peers {' '.join(args.peers)}"
        found["machine"] = machine()
        found["when"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        results = in_order([one for one in results if not replaced(one, found)] + [found])
        written(results, args)
    if not args.models:
        written(results, args)


def written(results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Raw numbers and page; what builds took on this machine is what the cache says now."""
    for one in (one for one in results if one.get("machine") == machine()):
        cache = args.cache / one["model"]
        if "weight_bytes" in one and (cache / "builds.json").is_file():
            one.update(sizes(cache / "checkpoint", cache))
    (args.output / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output / "speed.md").write_text(page(results, PEERS, NOT_RUN, ENCODER_PEERS))


def machine() -> str:
    """As the page names it: which kernels a runtime has here hangs on the vector instructions."""
    return f"{cpu_title()}, {cpu_vectors() or 'instruction set not known'}"


def replaced(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Does a new table take an old one's place: of the same model, and of the same machine or of one so busy that it decided nothing? Pure."""
    return old["model"] == new["model"] and (old.get("machine") == new["machine"] or not decides(old))


def in_order(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the size of the model, encoders last. Pure."""
    order = ["demo", *shapes.SHAPES, "minilm"]
    return sorted(results, key=lambda one: order.index(one["model"]))


if __name__ == "__main__":
    main()
