"""Everything that wants a real NVIDIA card, in one command → docs/results/gpu.md and the raw numbers in gpu.json beside it.

    pip install -e . && python tests/gpu/measure.py --cache FOLDER [--shapes 0.5b 8b] [--rounds 9] [--minutes 9] [--output docs/results]

Random Llamas of public shapes: PyTorch eager and compiled (bfloat16), our engine on ONNX Runtime's CUDA provider (float16, and int4
weights), and a TensorRT-RTX or classic TensorRT engine for this card, or its exact answer. A round is one prefill and STEPS decode
steps in each subject, in turns, at every batch; what the card's memory gives is read in the same run. What does not open, or does not
get its turn within the minutes, is `not measured` with its reason. `--device cpu` tries the script where there is no card: it says so
on its page, and its numbers are nobody's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from openclaw_opt.artifacts import Graph  # noqa: E402
from openclaw_opt.metrics.roofline import cache_bytes, read_work  # noqa: E402
from openclaw_opt.report import read_report  # noqa: E402
from openclaw_opt.targets import Target, host  # noqa: E402
from openclaw_opt.versions import versions  # noqa: E402
from tests.peers import shapes  # noqa: E402
from tests.peers.speed import Run, ask, open_run, stop  # noqa: E402
from tests.peers.speed_page import ratio_of, shown, verdict  # noqa: E402

PROMPT, STEPS, WARMUP = 128, 32, 2
BATCHES = (1, 16)
SUBJECTS = ("pytorch-eager", "pytorch-compiled", "onnxruntime-fp16", "onnxruntime-int4", "tensorrt-fp16")
RECIPE = """\
model: {model}
target: {target}
passes:
{quantize}  - export{export}
  - fuse
  - build: {{backend: {backend}}}
metrics: [{{gpu: {{seconds: 5}}}}]
"""
INT4 = "  - quantize: {format: int4, algorithm: rtn, block: 32, keep: [head]}\n"
BOARD = ("gpu.power_w", "gpu.energy_per_token_j")
GOALS = (("at least 5 × PyTorch eager", 5.0), ("at least 0.7 of the bound", 0.7))


@dataclass
class Turns:
    """One subject at one batch."""

    subject: str
    batch: int
    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    """Median of a round's steps."""
    bytes: int = 0
    """That one step reads; 0 where no graph of ours says it."""
    board: dict[str, float] = field(default_factory=dict)
    """What our metric `gpu` measured when the engine was built, at batch 1: name → value."""
    why: str = ""


def build(name: str, checkpoint: Path, cache: Path, device: str, minutes: float) -> str:
    """Our engine `cache/NAME`; empty, or why there is none."""
    backend, precision = name.split("-")
    folder, recipe = cache / name, cache / f"{name}.yaml"
    if (folder / "engine.json").is_file():
        return ""
    recipe.write_text(
        RECIPE.format(
            model=checkpoint.absolute(),
            target="host",
            backend=backend,
            quantize=INT4 if precision == "int4" else "",
            export=": {dtype: float16}" if device == "cuda" and precision == "fp16" else "",
        )
    )
    command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", str(recipe), "--output", str(folder)]
    try:
        done = subprocess.run(
            [*command, "--cache", str(cache / "passes")], env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=60 * minutes, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not built within {minutes:g} minutes"
    if done.returncode:
        return " ".join((done.stderr.strip() or done.stdout.strip()).split())[-400:]
    return ""


def measure(shape: str, args: argparse.Namespace, until: float) -> dict[str, Any]:
    """One shape, as JSON."""
    cache = args.cache / shape
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = shapes.write(shape, cache / "checkpoint")
    vocab = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    whys = {
        name: build(name, checkpoint, cache, args.device, (until - time.monotonic()) / 60)
        for name in args.subjects
        if not name.startswith("pytorch")
    }
    runs = [Run(name, why=whys.get(name, "")) for name in args.subjects]
    rows = [Turns(run.name, batch) for run in runs for batch in args.batches]
    rates: list[float] = []
    try:
        for run in runs:
            left = until - time.monotonic()
            if not run.why and left > 0:
                open_run(
                    run, sys.executable, HERE / "worker.py", [str(checkpoint), str(cache), args.device], cache, left
                )
            elif not run.why:
                run.why = "its turn did not come within the minutes"
        for batch in args.batches:
            rates += race(runs, [row for row in rows if row.batch == batch], vocab, args, until)
    finally:
        for run in runs:
            stop(run)
    for row in rows:
        row.bytes = 0 if row.subject.startswith("pytorch") else step_bytes(cache / row.subject, row.batch)
        row.board = board(cache / row.subject) if row.batch == 1 else {}
        row.why = row.why or next(run.why for run in runs if run.name == row.subject)
    return {"shape": shape, "rates": rates, "rows": [asdict(row) for row in rows]}


def race(runs: list[Run], rows: list[Turns], vocab: int, args: argparse.Namespace, until: float) -> list[float]:
    """Rounds in turns at one batch; bytes a second that the device read between them."""
    random = np.random.default_rng(0)
    prompt, follow = (random.integers(0, vocab, count).tolist() for count in (PROMPT, STEPS))
    by_name, rates = {row.subject: row for row in rows}, []
    for turn in range(WARMUP + args.rounds):
        for run in [run for run in runs if run.process is not None]:
            row, left = by_name[run.name], until - time.monotonic()
            found = ask(run, left, do="round", batch=row.batch, prompt=prompt, follow=follow) if left > 0 else None
            if found is None:
                row.why = f"round {turn + 1} did not end within the minutes, or the process ended"
                stop(run)
            elif turn >= WARMUP:
                row.first.append(found["first"])
                row.later.append(statistics.median(found["later"]))
        reader = next((run for run in runs if run.process is not None), None)
        read = ask(reader, 60, do="bandwidth", bytes=args.read_mib * 2**20) if reader is not None else None
        rates += [read["rate"]] if read is not None and turn >= WARMUP else []
    return rates


def step_bytes(folder: Path, batch: int) -> int:
    """Weights and cache that one step reads, in the middle of the rounds; 0 without a graph."""
    if not (folder / "graph.json").is_file():
        return 0
    graph = Graph(folder)
    return read_work(folder).weight_bytes + batch * cache_bytes(graph.facts, PROMPT + STEPS // 2)


def board(folder: Path) -> dict[str, float]:
    """The numbers of the metric `gpu` in the engine's report; empty where it has none."""
    if not (folder / "report.json").is_file():
        return {}
    rows = read_report(folder).measurements
    return {row.name: row.value for row in rows if row.name.startswith("gpu.") and row.value is not None}


def machine(device: str) -> dict[str, Any]:
    card: Target = host()
    return {
        "card": card.title if device == "cuda" else f"none: tried on {card.title}",
        "python": platform.python_version(),
        "row": {"bandwidth": card.bandwidth, "memory": card.memory},
        "versions": versions(),
    }


def table(found: dict[str, Any]) -> list[str]:
    """Markdown of one shape. Pure."""
    head = [
        "subject",
        "batch",
        "TTFT 128, ms",
        "token, ms",
        "tokens/s",
        "vs PyTorch eager",
        "part of the bound",
        "board, W",
        "J/token",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in found["rows"]:
        if not row["later"]:
            lines.append(
                f"| {row['subject']} | {row['batch']} | not measured: {row['why'] or 'no round ended'} | | | | | | |"
            )
            continue
        step = statistics.median(row["later"])
        cells = [row["subject"], str(row["batch"]), f"{statistics.median(row['first']):.2f}", f"{step:.3f}"]
        cells += [f"{1e3 * row['batch'] / step:.0f}", shown(ratio_of(eager(found, row["batch"]), row["later"]))]
        drawn = [f"{row['board'][name]:.3g}" if name in row["board"] else "–" for name in BOARD]
        lines.append(f"| {' | '.join([*cells, part(found, row), *drawn])} |")
    return lines


def eager(found: dict[str, Any], batch: int) -> list[float]:
    rows = [row for row in found["rows"] if row["subject"] == "pytorch-eager" and row["batch"] == batch]
    return list(rows[0]["later"]) if rows else []


def bound(found: dict[str, Any], row: dict[str, Any]) -> list[float]:
    """Least milliseconds of a step, for each round: its bytes at the fastest reading of the run."""
    if not row["bytes"] or not found["rates"]:
        return []
    return [1e3 * row["bytes"] / max(found["rates"])] * len(row["later"])


def part(found: dict[str, Any], row: dict[str, Any]) -> str:
    return shown(ratio_of(bound(found, row), row["later"])).replace("×", "")


def goals(found: dict[str, Any]) -> list[str]:
    """Each goal at batch 1, for the fastest of ours, by the whole interval. Pure."""
    ours = [
        row for row in found["rows"] if row["later"] and row["batch"] == 1 and not row["subject"].startswith("pytorch")
    ]
    if not ours:
        return [f"- {text}: not measured" for text, _ in GOALS]
    best = min(ours, key=lambda row: statistics.median(row["later"]))
    ratios = (ratio_of(eager(found, 1), best["later"]), ratio_of(bound(found, best), best["later"]))
    return [
        f"- {text}: {verdict(ratio, least)}; {best['subject']} {shown(ratio)}"
        for (text, least), ratio in zip(GOALS, ratios, strict=True)
    ]


UNMEASURED = """\
# On a GPU

**Not measured**: no run of this script has had an NVIDIA card yet. Its command, on a machine with one:

    pip install -e . && python tests/gpu/measure.py --cache FOLDER

writes this page and gpu.json. What it times, and how, stands at its top; `tests/test_gpu_script.py` runs it on a CPU as far as it goes.
"""
"""What docs/results/gpu.md says until then."""


def page(found: dict[str, Any]) -> str:
    """The whole of gpu.md. Pure."""
    card = found["machine"]["card"]
    lines = ["# On a GPU", "", f"Made by `{found['command']}`; card: {card}. No number here is typed.", ""]
    if found["device"] != "cuda":
        lines += ["**Not measured on a GPU.** This page only shows that the script runs to its end.", ""]
    for one in found["shapes"]:
        lines += [f"## {one['shape']}", "", *table(one), ""]
        if one["rates"]:
            lines += [f"Memory was read at {max(one['rates']) / 1e9:.0f} GB/s at most in this run.", ""]
        lines += [*goals(one), ""] if found["device"] == "cuda" else []
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="checkpoints and engines; outside the repository")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", nargs="+", default=["0.5b", "8b"], choices=[*shapes.SHAPES])
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--read-mib", type=int, default=2048, help="memory that is read to measure bandwidth")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    args.cache = args.cache.absolute()
    if ROOT in (args.cache, *args.cache.parents):
        parser.error("--cache must lie outside the repository")
    if args.device == "cuda" and not host().is_gpu:
        parser.exit(3, "not measured: this machine has no NVIDIA GPU; --device cpu tries the script\n")
    until = time.monotonic() + 60 * args.minutes
    args.output.mkdir(parents=True, exist_ok=True)
    command = f"python tests/gpu/measure.py --cache FOLDER --shapes {' '.join(args.shapes)} --rounds {args.rounds}"
    found = {"command": command, "device": args.device, "machine": machine(args.device), "shapes": []}
    for shape in args.shapes:
        found["shapes"].append(measure(shape, args, until))  # type: ignore[attr-defined]
        (args.output / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (args.output / "gpu.md").write_text(page(found))


if __name__ == "__main__":
    main()
