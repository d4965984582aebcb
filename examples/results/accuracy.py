"""Quantize the demo decoder in every way a recipe can ask for, and print what each keeps: docs/results/accuracy.md.

    python examples/results/accuracy.py > docs/results/accuracy.md

A row is `openclaw-opt build --recipe recipes/int4-cpu.yaml --until model` with other passes by `--set`; every figure is read
from the report.json of such a build that this run made, or found unchanged in the cache. `--only WORD` takes the rows whose
name holds the word; `--cache` and `--folder` say where builds go.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import subprocess
import sys
from pathlib import Path

from make import table

from openclaw_opt.formats import FORMATS
from openclaw_opt.records import LayerRecord, Report
from openclaw_opt.report import read_report

ROOT = Path(__file__).parent.parent.parent
RECIPE = "recipes/int4-cpu.yaml"
DATA = ("data.calibration.samples=32", "data.evaluation.samples=32")
FLOAT_BITS = 32
INT4 = {32: ("rtn", "awq", "awq_full", "gptq", "awq_gptq"), 128: ("rtn", "awq_full", "gptq")}

QAD = "{distill: {steps: 96, fake_quantize: {format: int4, block: 32}}}"
TRAINING = "data.training={source: python-stdlib, split: train, samples: 768, length: 256}"


def quantize(options: str, *before: str) -> str:
    """The passes of a recipe, as a value of `--set`."""
    return f"passes=[{', '.join([*before, f'{{quantize: {{{options}}}}}'])}]"


def rows() -> dict[str, str]:
    """Name → passes."""
    made = {}
    for block, algorithms in INT4.items():
        for algorithm in algorithms:
            made[f"int4 block {block}, {algorithm}"] = quantize(f"format: int4, block: {block}, algorithm: {algorithm}")
        options = f"block: {block}, algorithm: gptq"
        made[f"int4 block {block}, rotate + gptq"] = quantize(f"format: int4, {options}", "rotate")
        made[f"uint4 block {block}, gptq"] = quantize(f"format: uint4, {options}")
    made["uint4 block 32, rtn"] = quantize("format: uint4, block: 32, algorithm: rtn")
    made["int4 block 32, rtn, mse ranges"] = quantize("format: int4, block: 32, algorithm: rtn, calibration: mse")
    for ranges in ("max", "percentile", "mse", "entropy"):
        made[f"int8, {ranges}"] = quantize(f"format: int8, algorithm: max, calibration: {ranges}")
    made["int8, smoothquant"] = quantize("format: int8, algorithm: smoothquant")
    made["int8, smoothquant, mse"] = quantize("format: int8, algorithm: smoothquant, calibration: mse")
    made["int8, rotate + mse"] = quantize("format: int8, algorithm: max, calibration: mse", "rotate")
    made["int8, rotate + max"] = quantize("format: int8, algorithm: max", "rotate")
    made["int8_per_token, max"] = quantize("format: int8_per_token, algorithm: max")
    made["int8_weight_only, max"] = quantize("format: int8_weight_only, algorithm: max")
    made["int8_weight_only, gptq"] = quantize("format: int8_weight_only, algorithm: gptq")
    return made | zeros() | pruned() | trained()


def zeros() -> dict[str, str]:
    """The same for zeros in float weights, and once before int4."""
    made = {}
    for pattern in ("2:4", "unstructured"):
        for method in ("magnitude", "wanda", "sparsegpt"):
            made[f"zeros {pattern}, {method}"] = f"passes=[{{sparsify: {{pattern: '{pattern}', method: {method}}}}}]"
    before = "{sparsify: {pattern: '2:4'}}"
    made["zeros 2:4, sparsegpt + int4 block 32, gptq"] = quantize("format: int4, block: 32, algorithm: gptq", before)
    return made


def pruned() -> dict[str, str]:
    """A fifth of the FFN channels taken out: the same number of parameters in every row."""
    made = {}
    for importance in ("magnitude", "activation", "taylor"):
        for allocation in ("even", "sensitivity"):
            options = f"ffn: 0.2, importance: {importance}, allocation: {allocation}"
            made[f"FFN pruned by 0.2, {importance}, {allocation}"] = f"passes=[{{prune: {{{options}}}}}]"
    return made


def trained() -> dict[str, str]:
    """What training gives back, in the engine's format."""
    made = {}
    distill = "{distill: {steps: 96}}"
    for name, options, before in (
        ("ffn pruned by 20 %, int8", "format: int8, algorithm: smoothquant", ("{prune: {ffn: 0.2}}",)),
        (
            "ffn pruned by 20 %, distilled, int8",
            "format: int8, algorithm: smoothquant",
            ("{prune: {ffn: 0.2}}", distill),
        ),
        ("int4 block 32, rtn, QAD", "format: int4, block: 32, algorithm: rtn", (QAD,)),
    ):
        made[name] = quantize(options, *before)
    return made


def build(name: str, passes: str, folder: Path, cache: Path | None) -> Report:
    """`openclaw-opt build` as a user types it; ends this script when it fails."""
    output = folder / name.replace(",", "").replace(" ", "-")
    settings = [
        part
        for value in (passes, "budgets={}", *DATA, *([TRAINING] if "distill" in passes else []))
        for part in ("--set", value)
    ]
    command = [
        sys.executable,
        "-m",
        "openclaw_opt",
        "build",
        "--recipe",
        RECIPE,
        "--until",
        "model",
        "--output",
        str(output),
    ]
    command += settings + ([] if cache is None else ["--cache", str(cache)])
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with exit code {done.returncode}: {' '.join(command)}")
    return read_report(output)


def cells(name: str, report: Report) -> list[str]:
    step = [record for record in report.passes if record.kind == "lossy"][-1]
    row = FORMATS.get(step.options.get("format", ""))
    bits = FLOAT_BITS if row is None else row.bits_per_weight(step.options["block"])
    sqnr, plain = (_mean(step.layers, field) for field in ("output_sqnr_db", "plain_output_sqnr_db"))
    return [
        name,
        f"{bits:.3g}",
        _value(report, "bits_per_byte.recovery"),
        _value(report, "agreement.top1"),
        _value(report, "kl.mean", "{:.2g}"),
        "–" if sqnr is None else f"{sqnr:.1f}",
        "–" if plain is None else f"{plain:.1f}",
        f"{step.seconds:.0f}",
        f"{step.peak_bytes / 2**30:.2f}",
    ]


def _mean(layers: tuple[LayerRecord, ...], field: str) -> float | None:
    known = [value for layer in layers if (value := getattr(layer, field)) is not None]
    return sum(known) / len(known) if known else None


def _value(report: Report, name: str, pattern: str = "{:.4f}") -> str:
    found = next((m for m in report.measurements if m.name == name and m.subject != "reference"), None)
    if found is None or found.value is None:
        return "not measured" if found is None else f"not measured: {found.not_measured}"
    text = pattern.format(found.value)
    if found.low is None or found.high is None:
        return text
    return f"{text} ({pattern.format(found.low)} – {pattern.format(found.high)})"


HEAD = [
    "format, algorithm", "bits a weight", "bits per byte kept", "top-1 agreement", "mean KL, nat",
    "output SQNR, dB", "the same, plain", "s", "peak GiB",
]  # fmt: skip


def main() -> None:
    """Build every row, print the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="rows whose name holds this")
    options.add_argument("--folder", type=Path, default=ROOT / "build" / "accuracy")
    options.add_argument("--cache", type=Path)
    given = options.parse_args()
    reports: dict[str, Report] = {}
    wanted = {name: passes for name, passes in rows().items() if given.only in name}
    with contextlib.suppress(KeyboardInterrupt):  # what is there is printed, and what is not is said
        for name, passes in wanted.items():
            reports[name] = build(name, passes, given.folder, given.cache)
            print(" | ".join(cells(name, reports[name])), file=sys.stderr, flush=True)
    missing = [name for name in wanted if name not in reports]
    first = next(iter(reports.values()))
    versions = ", ".join(
        f"{name} {first.versions[name]}" for name in ("torch", "nvidia-modelopt") if name in first.versions
    )
    print(f"""# Accuracy of every format and algorithm

Made by `python examples/results/accuracy.py > docs/results/accuracy.md` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, on
{first.machine.title}, shared with other work; {versions}.

The demo decoder (`examples/tiny-llama`, {first.parameters / 1e6:.2f} M parameters), its head left in float. Each row is `{RECIPE}`
up to the model, with other passes and {DATA[0].split("=")[1]} sequences of 256 tokens to calibrate on and as many to evaluate, in PyTorch.
In brackets: 95 % intervals. Output SQNR is the mean over the layers, on calibration data; *plain* is the same layers with largest
values for ranges and rounding to nearest, behind the same rotation where there is one; of zeros, the same pattern by magnitude.
Zeros and pruning leave weights in float32. Seconds are of the last pass that loses something.
Definitions: [metrics.md](../metrics.md).

{table(HEAD, [cells(name, report) for name, report in reports.items()])}""")
    if missing:
        print(f"\nNot measured, the script was interrupted: {'; '.join(missing)}.")


if __name__ == "__main__":
    main()
