"""Every peer side by side: one command, one run, in turns → docs/results/speed.md and the raw numbers in speed.json beside it.

    python tests/peers/speed.py --cache FOLDER [--models demo 125m 0.41b 0.5b] [--peers NAME …] [--rounds 9] [--output docs/results]

Each peer lives in a virtual environment of its own under FOLDER, made from the pinned packages below, and runs in its own process;
a round is one prefill of 64 tokens and 40 decode steps in each, one after the other, and the order turns round by round. Between
them memory is read, so that the fraction of the bandwidth is that of the same minutes. A peer that cannot be built or opened, or is
not ready in time, is listed as `not measured` with its last words.
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
from openclaw_opt.numerics.stats import Estimate, paired_ratio  # noqa: E402
from openclaw_opt.targets import cpu_title  # noqa: E402
from tests.peers import shapes  # noqa: E402

PROMPT, STEPS, WARMUP = 64, 40, 1
SCORED, SCORED_TOKENS = 8, 96
VENVS: dict[str, tuple[str, ...]] = {
    "torch": ("torch==2.13.0", "transformers==5.23.0", "torchao==0.18.0", "numpy==2.4.6"),
    "genai": ("torch==2.13.0", "transformers==5.23.0", "onnxruntime==1.32.0", "onnxruntime-genai==0.18.0", "onnx==1.23.2", "onnx-ir==1.1.0"),
    "openvino": ("torch==2.13.0", "optimum-intel[openvino]==2.2.0", "openvino==2026.4.1", "nncf==3.4.0"),
}  # fmt: skip
"""Environment → its packages. Peers that are not named in HOMES run in this one (with `pip install -e .[gguf]`)."""
HOMES = {"pytorch": "torch", "torch": "torch", "torchao": "torch", "genai": "genai", "openvino": "openvino"}
PEERS = (
    "pytorch-fp32", "pytorch-bf16", "torch-compile-fp32", "torchao-int8", "torchao-int4", "genai-int4-32", "genai-int4-128",
    "openvino-int8", "openvino-int4", "llama.cpp-q8_0", "llama.cpp-q4_0", "ours-onnxruntime", "ours-gguf",
)  # fmt: skip
NOT_RUN = {
    "olive": "its result is onnxruntime-genai's builder's, which is run; its own passes are not driven by this script"
}
RECIPE = """\
model: {model}
target: host
passes:
{quantize}  - export
  - fuse
  - build: {{backend: {backend}}}
metrics: []
"""
INT4 = """\
  - quantize: {format: int4, algorithm: rtn, block: 32, keep: [head]}
  - quantize: {format: int8_weight_only, keep: ["layers.*"]}
"""


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


def build_ours(checkpoint: Path, cache: Path) -> dict[str, float]:
    """Our artifacts of that checkpoint, and the seconds each took; `float` is what llama.cpp quantizes itself."""
    seconds = {}
    for name, backend, quantize in (
        ("onnxruntime", "onnxruntime", INT4),
        ("gguf", "gguf", INT4),
        ("float", "gguf", ""),
    ):
        folder = cache / f"ours-{name}"
        if (folder / "engine.json").is_file():
            continue
        recipe = cache / f"{name}.yaml"
        recipe.write_text(RECIPE.format(model=checkpoint.absolute(), quantize=quantize, backend=backend))
        began = time.monotonic()
        command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", str(recipe), "--output", str(folder)]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([*command, "--cache", str(cache / "passes")], check=True, env=env, stdout=subprocess.DEVNULL)
        seconds[name] = time.monotonic() - began
    return seconds


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
    """Rounds in turns; bytes a second of the reading after each turn of all."""
    random = np.random.default_rng(0)
    prompt, follow = random.integers(0, vocab, PROMPT).tolist(), random.integers(0, vocab, STEPS).tolist()
    readings = []
    for turn in range(WARMUP + rounds):
        for run in [run for run in runs if run.process is not None]:
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
        runs.append(runs.pop(0))
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


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model, as JSON."""
    cache = args.cache / name
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = cache / "checkpoint"
    if name == "demo":
        shutil.copytree(shapes.DEMO, checkpoint, dirs_exist_ok=True)
    else:
        shapes.write(name, checkpoint)
    seconds = build_ours(checkpoint, cache)
    from openclaw_opt.backends.gguf import weight_bytes

    moved = weight_bytes(cache / "ours-gguf" / "model.gguf")
    vocab = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    runs = [Run(peer) for peer in args.peers]
    try:
        for run in runs:
            print(f"{name}: opening {run.name}", file=sys.stderr, flush=True)
            start(run, checkpoint, cache, args.wait)
        reader = Reader(moved)
        load = os.getloadavg()[0]
        readings = race(runs, vocab, args.rounds, reader, args.wait)
        if name == "demo":
            score(runs, checkpoint, args.wait)
    finally:
        for run in runs:
            stop(run)
    order = {peer: i for i, peer in enumerate(args.peers)}
    rows = [run.row for run in sorted(runs, key=lambda run: order[run.name])]
    return {"model": name, "weight_bytes": moved, "readings": readings, "load": load, "build_s": seconds, "rows": rows}


def table(found: dict[str, Any]) -> list[str]:
    """Markdown of one model. Pure."""
    rows = [row for row in found["rows"] if row["decode_ms"]]
    base = next((row for row in rows if row["peer"] == "pytorch-fp32"), None)
    scored = any(row["bits_per_token"] is not None for row in rows)
    head = ["peer", "prefill 64, ms", "decode, ms", "tokens/s", "decode vs PyTorch fp32", "least, ms"]
    head += ["bits/token"] if scored else []
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in sorted(rows, key=lambda row: statistics.median(row["decode_ms"])):
        decode = statistics.median(row["decode_ms"])
        ratio = ratio_of(base["decode_ms"] if base else [], row["decode_ms"])
        cells = [row["peer"], f"{statistics.median(row['prefill_ms']):.1f}", f"{decode:.2f}", f"{1e3 / decode:.1f}"]
        cells += [shown(ratio), f"{row['least_decode_ms']:.2f}"]
        if scored:
            cells.append("–" if row["bits_per_token"] is None else f"{row['bits_per_token']:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratio_of(one: list[float], other: list[float]) -> Estimate | None:
    """Of medians, paired; None where a peer lost rounds."""
    return paired_ratio(one, other) if one and len(one) == len(other) else None


def shown(ratio: Estimate | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio.value:.2f}×" + ("" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})")


GOALS = (
    ("decode at or above the fastest peer", "decode_ms", "peers", 1.0),
    ("prefill at or above the fastest peer", "prefill_ms", "peers", 1.0),
    ("decode at least 10 × PyTorch fp32", "decode_ms", "pytorch-fp32", 10.0),
    ("decode at least 5 × PyTorch bf16", "decode_ms", "pytorch-bf16", 5.0),
)


def goals(found: dict[str, Any]) -> list[str]:
    """Each goal, met or not, for the faster of ours. Pure."""
    rows = {row["peer"]: row for row in found["rows"] if row["decode_ms"]}
    ours = [row for peer, row in rows.items() if peer.startswith("ours-")]
    lines = []
    for text, key, against, least in GOALS:
        others = [row for peer, row in rows.items() if not peer.startswith("ours-") and against in ("peers", peer)]
        if not ours or not others:
            lines.append(f"- {text}: not measured")
            continue
        best = min(ours, key=lambda row: statistics.median(row[key]))
        fastest = min(others, key=lambda row: statistics.median(row[key]))
        ratio = ratio_of(fastest[key], best[key])
        lines.append(f"- {text}: {verdict(ratio, least)}; {fastest['peer']} / {best['peer']} {shown(ratio)}")
    if "ours-gguf" in rows and found["readings"]:
        # Other peers' threads may still spin while memory is read: what the machine can do is the largest reading, never less.
        bound = 1e3 * found["weight_bytes"] / max(found["readings"])
        times = rows["ours-gguf"]["decode_ms"]
        ratio = ratio_of([bound] * len(times), times)
        best = bound / rows["ours-gguf"]["least_decode_ms"]
        read = f"the largest of {len(found['readings'])} readings, {max(found['readings']) / 1e9:.1f} GB/s"
        lines.append(
            f"- decode at least 0.7 of the memory bandwidth read in the same run ({read}): "
            f"{verdict(ratio, 0.7)}; {shown(ratio).replace('×', '')}, fastest token {best:.2f}"
        )
    return lines


def verdict(ratio: Estimate | None, least: float) -> str:
    """Decided by the whole interval, so that a noisy machine cannot."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return "undecided"
    return "met" if ratio.low >= least else "missed" if ratio.high < least else "undecided"


def page(results: list[dict[str, Any]], command: str) -> str:
    """The whole of speed.md. Pure."""
    lines = [
        "# Speed, side by side",
        "",
        f"Made by `{command}` on {cpu_title()}; no number here is typed.",
        "Definitions stand at the top of `tests/peers/speed.py`, raw numbers in speed.json. Times are medians over rounds in turns,",
        "batch 1; intervals are 95 %, paired. *Least* is the fastest single token of the run.",
        "",
    ]
    for found in results:
        lines += [f"## {found['model']}", "", *conditions(found), "", *table(found), "", *goals(found), ""]
        missing = {
            peer: "not asked for in this run" for peer in PEERS if peer not in {row["peer"] for row in found["rows"]}
        }
        missing |= {row["peer"]: row["why"] or "no round ended" for row in found["rows"] if not row["decode_ms"]}
        lines += [f"- {peer}: not measured: {why}" for peer, why in (missing | NOT_RUN).items()] + [""]
    return "\n".join(lines)


def conditions(found: dict[str, Any]) -> list[str]:
    """Under what the table was made. Pure."""
    rounds, cores = max((len(row["decode_ms"]) for row in found["rows"]), default=0), os.cpu_count() or 1
    lines = [
        f"{rounds} rounds; a token reads {found['weight_bytes'] / 2**20:.1f} MiB of our GGUF weights; load average before",
        f"measuring {found['load']:.1f} on {cores} cores.",
    ]
    if found["load"] > cores:
        lines.append("**The machine was busy**: ratios in turns are fair, milliseconds are not an idle machine's.")
    if found["build_s"]:
        told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["build_s"].items())
        lines.append(f"Our builds, every check included: {told}.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cache", type=Path, required=True, help="environments, checkpoints and artifacts; outside the repository"
    )
    parser.add_argument("--models", nargs="+", default=["demo", "125m", "0.41b"], choices=["demo", *shapes.SHAPES])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--wait", type=float, default=600, help="seconds a peer may take to open or for a round")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    args.cache = args.cache.absolute()
    if ROOT in (args.cache, *args.cache.parents):
        parser.error("--cache must lie outside the repository")
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    for name in args.models:
        results.append(measure(name, args))
        (args.output / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
        command = f"python tests/peers/speed.py --cache FOLDER --models {' '.join(args.models)} --rounds {args.rounds}"
        (args.output / "speed.md").write_text(page(results, command))


if __name__ == "__main__":
    main()
