"""Give the demo decoder's most sensitive layers more bits, and other layers the same bytes: docs/results/mixed.md.

    python examples/results/mixed.py > docs/results/mixed.md

The first row is `recipes/mixed-int4-int8-cpu.yaml` up to the model; its report says which layers it restored to int8. The others are
uniform int4 of more bits, and int4 with as many bytes given to other layers: drawn at random, or the least sensitive. All are built
by `openclaw-opt build` on 32 sequences of the recipe's data and compared on its evaluation data, sequence by sequence. `--cache` and
`--folder` say where builds go.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from make import table

from openclaw_opt.comparison.evidence import change
from openclaw_opt.models.footprint import weight_bytes
from openclaw_opt.models.spec import LayerQuant, read_facts
from openclaw_opt.records import Report
from openclaw_opt.report import read_report

ROOT = Path(__file__).parent.parent.parent
RECIPE = "recipes/mixed-int4-int8-cpu.yaml"
DATA = ("data.calibration.samples=32", "data.evaluation.samples=32")
BLOCK = 128
DRAWS = 1
NUMBERS = ("kl.mean", "agreement.top1", "bits_per_byte.recovery")
CHANGES = {"kl.mean": ("%", 0), "agreement.top1": ("points", 2), "bits_per_byte": ("%", 3)}
"""Measurement → unit of its change, and digits after the point."""


def folder_of(name: str) -> str:
    return name.replace(",", "").replace(":", "").replace(" ", "-")


def restored(layers: list[str]) -> str:
    """int4 for all but these, which get int8; as a value of `--set`."""
    kept = ", ".join(layers)
    first = f"{{quantize: {{format: int4, block: {BLOCK}, keep: [{kept}]}}}}"
    return f"passes=[{first}, {{quantize: {{format: int8_weight_only, keep: []}}}}]"


def uniform(block: int) -> str:
    return f"passes=[{{quantize: {{format: int4, block: {block}, keep: []}}}}]"


def filled(order: list[str], extra: dict[str, int], room: int) -> list[str]:
    """Layers in that order whose extra bytes fit into `room`."""
    taken = []
    for name in order:
        if extra[name] <= room:
            taken.append(name)
            room -= extra[name]
    return taken


def build(name: str, settings: list[str], options: argparse.Namespace) -> Report:
    """`openclaw-opt build --until model` as a user types it; ends this script when it fails."""
    output = options.folder / folder_of(name)
    command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", RECIPE, "--until", "model"]
    command += ["--output", str(output), *([] if options.cache is None else ["--cache", str(options.cache)])]
    command += [part for value in (*DATA, *settings) for part in ("--set", value)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with exit code {done.returncode}: {' '.join(command)}")
    return read_report(output)


def mixed_of(report: Report) -> dict[str, Any]:
    return next(one.details["mixed"] for one in report.passes if "mixed" in one.details)


def size_of(shapes: dict[str, int], folder: Path) -> int:
    """Bytes of the linear layers' weights in ONNX Runtime's graph, from the formats in model.json."""
    from openclaw_opt.artifacts import Model

    quant = read_facts(Model(folder)).quant
    counted: dict[str, LayerQuant | None] = {name: quant.get(name) for name in shapes}
    inputs = inputs_of(folder)
    return sum(weight_bytes((shapes[n] // inputs[n], inputs[n]), one, "onnxruntime") for n, one in counted.items())


def inputs_of(folder: Path) -> dict[str, int]:
    """K of each linear layer."""
    from openclaw_opt.artifacts import Model
    from openclaw_opt.passes.quantize import linear_sizes

    return linear_sizes(read_facts(Model(folder)).spec)


def cells(name: str, report: Report, first: Report, size: int, bits: float) -> list[str]:
    row = [name, f"{bits:.2f}", f"{size / 1e6:.3f}"]
    row += [_value(report, number) for number in NUMBERS]
    if report is first:
        return [*row, *("–" for _ in CHANGES)]
    for number, (unit, digits) in CHANGES.items():
        found = change(first.measurements, report.measurements, number, 0.95, relative=unit == "%")
        if found.value is None or found.low is None or found.high is None:
            row.append(f"not measured: {found.why}")
            continue
        ends = " – ".join(f"{100 * end:+.{digits}f}" for end in (found.low, found.high))
        row.append(f"{100 * found.value:+.{digits}f} {unit} ({ends})")
    return row


def _value(report: Report, name: str) -> str:
    found = next(m for m in report.measurements if m.name == name and m.subject != "reference")
    pattern = "{:.2g}" if name == "kl.mean" else "{:.4f}"
    return "not measured" if found.value is None else pattern.format(found.value)


HEAD = [
    "formats", "bits a weight", "MB", "mean KL, nat", "top-1 agreement", "bits per byte kept",
    "mean KL against the mix", "top-1 against the mix", "bits per byte against the mix",
]  # fmt: skip


def main() -> None:
    """Build every row, print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mixed")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    name = f"auto: int4 block {BLOCK} and int8"
    mix = build(name, [], options)
    facts = mixed_of(mix)
    low = next(iter(facts["candidates"]))
    choice = {one["layer"]: one for one in facts["choice"]}
    up = [layer for layer, one in choice.items() if one["format"] != low]
    parameters = {layer: one["parameters"] for layer, one in choice.items()}
    folder = options.folder / folder_of(name)
    inputs = inputs_of(folder)
    eight = LayerQuant(format="int8_weight_only", kind="int8")
    four = LayerQuant(format="int4", kind="int4", block=BLOCK)
    shapes = {layer: (parameters[layer] // inputs[layer], inputs[layer]) for layer in choice}
    extra = {n: weight_bytes(s, eight, "onnxruntime") - weight_bytes(s, four, "onnxruntime") for n, s in shapes.items()}
    room = sum(extra[layer] for layer in up)
    rows: dict[str, list[str]] = {f"int4 block {block}, uniform": [uniform(block)] for block in (64, 32)}
    others = [layer for layer in choice if layer not in up]
    for draw in range(DRAWS):
        order = random.Random(draw).sample(others, len(others))
        rows[f"as many bytes to other layers, draw {draw + 1}"] = [restored(filled(order, extra, room))]
    losses = facts["sensitivity"]
    least = sorted(others, key=lambda layer: losses[layer][low])
    rows["as many bytes to the least sensitive"] = [restored(filled(least, extra, room))]
    reports = {name: mix}
    with contextlib.suppress(KeyboardInterrupt):  # what is there is printed, and what is not is said
        for title, settings in rows.items():
            reports[title] = build(title, [*settings, "budgets={}"], options)
            print(f"{title}: {_value(reports[title], 'kl.mean')}", file=sys.stderr, flush=True)
    weights = sum(parameters.values())
    lines = []
    for title, report in reports.items():
        at = options.folder / folder_of(title)
        size = size_of(parameters, at)
        lines.append(cells(title, report, mix, size, 8 * size / weights))
    missing = [title for title in rows if title not in reports]
    print(f"""# Restoring the most sensitive layers

Made by `python examples/results/mixed.py > docs/results/mixed.md` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, on
{mix.machine.title}, shared with other work; torch {mix.versions.get("torch", "?")}.

`{RECIPE}` gave int8 to {", ".join(f"`{layer}`" for layer in up) or "no layer"} of {len(choice)} linear layers, and int4 in blocks of
{BLOCK} to the others; it looked at calibration data alone. Below, on 32 sequences of its evaluation data: int4 for all layers, and the same bytes of
int8 given to other layers. All linear layers are quantized, the head too; the embedding is not counted and stays float. Bits and MB are
of ONNX Runtime's graph, whose scales are float32. In brackets: 95 % intervals of the change from the first row, paired by sequence.
The others are calibrated on all 32 samples of 256 tokens, the first row's layers
on {facts["fitted"]}, since {facts["held_back"]} were held back to measure choices.

{table(HEAD, lines)}""")
    if missing:
        print(f"\nNot measured, the script was interrupted: {'; '.join(missing)}.")


if __name__ == "__main__":
    main()
