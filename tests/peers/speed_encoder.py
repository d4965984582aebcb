"""MiniLM side by side, part of speed.py: milliseconds of two shapes in turns, and what each row keeps of the checkpoint's embeddings.

A row is made by the accuracy page's own tools (accuracy_worker.py), so speed and accuracy are of one and the same model, and scored by
openclaw_opt's own code on 256 docstrings. Peers give hidden states and are not timed with pooling; ours pools in its graph.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import numpy as np  # noqa: E402

from openclaw_opt.metrics.embedding import embedding_rows  # noqa: E402
from tests.peers import speed, speed_builds  # noqa: E402

SHAPES = ((1, 68), (16, 97))
TIMES = (3, 1)
"""Runs of each shape in a round; the median of a round counts."""
DATA = {
    split: {"source": "python-docstrings", "split": split, "samples": 256, "length": 64} for split in ("calibration", "evaluation")
}  # fmt: skip
"""The recipe's own."""
RECIPE = ROOT / "recipes" / "minilm-int8-cpu.yaml"
HOMES = {"torch": "torch", "torchao": "torch", "onnxruntime": "genai", "openvino": "openvino"}
WEIGHT_ONLY = "{quantize: {format: int8_weight_only}}, "
OURS = {
    "ours-int8-weight-only": (WEIGHT_ONLY, "onnxruntime"),
    "ours-int8-per-token": ("{quantize: {format: int8_per_token}}, ", "onnxruntime"),
    "ours-float32": ("", "onnxruntime"),
    "ours-openvino-int8-weight-only": (WEIGHT_ONLY, "openvino"),
    "ours-openvino-float32": ("", "openvino"),
}
"""What is quantized, and the backend: the shipped recipe's passes, activations rounded a token at a time, and nothing."""


def built(name: str, cache: Path) -> None:
    """Our engine in the cache; made once. Raises CalledProcessError."""
    if (cache / name / "engine.json").is_file():
        return
    command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", str(RECIPE), "--output", str(cache / name)]
    quantize, backend = OURS[name]
    more = [
        "--set",
        f"passes=[{quantize}export, fuse, {{build: {{backend: {backend}}}}}]",
        "--set",
        "metrics=[]",
        "--set",
        "budgets={}",
    ]
    paths = ["--cache", str(cache / "passes")]
    speed_builds.built(name, cache / "builds.json", [*command, *more, *paths], {"PYTHONPATH": str(ROOT)})


def opened(run: speed.Run, task: Path, cache: Path, wait_s: float) -> None:
    """The row's worker, ready; `why` is set where it does not get so."""
    try:
        if run.name in OURS:
            built(run.name, cache)
            python = sys.executable
        else:
            home = HOMES[run.name.split("-")[0]]
            python = speed.made(cache.parent / "venvs" / home, speed.VENVS[home])
    except subprocess.CalledProcessError as error:
        run.why = f"it could not be made: {error.cmd}"[:160]
        return
    speed.open_run(run, python, HERE / "encoder_worker.py", [str(task), str(cache / run.name)], cache, wait_s)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything about MiniLM, as JSON."""
    from openclaw_opt.recipe import load_recipe
    from tests.peers.accuracy import Task

    cache = args.cache / "minilm"
    cache.mkdir(parents=True, exist_ok=True)
    task = Task("encoder", cache / "task", Path(load_recipe(RECIPE).model), DATA)
    runs = [speed.Run(name) for name in speed.ENCODER_PEERS if name in args.peers]
    times: dict[str, list[list[float]]] = {run.name: [[] for _ in SHAPES] for run in runs}
    try:
        for run in runs:
            print(f"minilm: opening {run.name}", file=sys.stderr, flush=True)
            opened(run, task.folder, cache, args.wait)
        load = os.getloadavg()[0]
        orders = np.random.default_rng(1)
        for turn in range(speed.WARMUP + args.rounds):
            alive = [run for run in runs if run.process is not None]
            for run in [alive[i] for i in orders.permutation(len(alive))]:
                time.sleep(speed.SETTLE_S)
                found = speed.ask(run, args.wait, do="round", shapes=SHAPES, times=TIMES)
                if found is None:
                    run.why = f"round {turn + 1} did not end within {args.wait:g} s, or the process ended"
                    speed.stop(run)
                elif turn >= speed.WARMUP:
                    for series, new in zip(times[run.name], found["ms"], strict=True):
                        series.append(float(np.median(new)))
        accuracy = {run.name: kept(run, task, args.wait) for run in runs}
    finally:
        for run in runs:
            speed.stop(run)
    rows = [
        {
            "peer": run.name,
            "why": run.why,
            "ms": times[run.name] if times[run.name][0] else [],
            "accuracy": accuracy[run.name],
        }
        for run in runs
    ]
    return {"model": "minilm", "shapes": SHAPES, "load": load, "rows": rows}


def kept(run: speed.Run, task: Any, wait_s: float) -> dict[str, dict[str, float | None]]:
    """What the row keeps of the checkpoint's embeddings; empty where it does not say."""
    answer = None if run.process is None else speed.ask(run, wait_s, do="outputs")
    if answer is None:
        return {}
    output = np.load(answer["file"])
    rows = embedding_rows(task.reference, output) if run.name in OURS else task.score(output)
    return {row.name: {"value": row.value, "low": row.low, "high": row.high} for row in rows}
