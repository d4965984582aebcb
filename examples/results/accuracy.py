"""Make the demo decoder, MiniLM and the digits model smaller in every way a recipe can ask for: what each keeps.

    python examples/results/accuracy.py --folder FOLDER [--tasks decoder encoder vision] [--only WORD]

prints ours; `python tests/peers/accuracy.py` takes these same builds and puts the peers beside them, which makes
docs/results/accuracy.md. A row is `openclaw-opt build --recipe RECIPE --until model` with other passes by `--set`; every figure is read
from its report.json. What FOLDER has is not built again, so after a change of the code it takes a new one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from digits import train
from make import table

from openclaw_opt.formats import FORMATS
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import LayerRecord, Report
from openclaw_opt.report import read_report

ROOT = Path(__file__).parent.parent.parent
RECIPES = {
    "decoder": "recipes/int4-cpu.yaml",
    "encoder": "recipes/minilm-int8-cpu.yaml",
    "vision": "examples/results/digits.yaml",
}
DATA = {
    "decoder": {"source": "python-stdlib", "samples": 32, "length": 256},
    "encoder": {"source": "python-docstrings", "samples": 256, "length": 64},
    "vision": {"source": "digits", "samples": 150},
}
METRICS = {"decoder": "perplexity, agreement", "encoder": "embedding", "vision": "classification"}
FLOAT_BITS = 32
INT4 = {32: ("gptq", "awq_gptq", "awq_full", "awq", "rtn"), 128: ("gptq", "awq_full", "rtn")}
QAD = "{distill: {steps: 96, fake_quantize: {format: int4, block: 32}}}"
ENGINE = "export, fuse, build"
TRAINING = {
    "decoder": "data.training={source: python-stdlib, split: train, samples: 768, length: 256}",
    "encoder": "data.training={source: python-docstrings, split: train, samples: 768, length: 64}",
}


def data_of(kind: str) -> dict[str, dict[str, Any]]:
    """Calibration and evaluation source; both sides of the page use it."""
    made = {split: {**DATA[kind], "split": split} for split in ("calibration", "evaluation")}
    if kind == "vision":
        made["calibration"]["samples"] = 100
    return made


def checkpoint_of(kind: str, folder: Path) -> Path:
    """The checkpoint's folder; the digits model is trained when it is asked for."""
    if kind == "vision":
        return train(folder / "digits")
    return Path(load_recipe(ROOT / RECIPES[kind]).model)


def quantize(options: str, *before: str) -> str:
    """The passes of a recipe, as a value of `--set`."""
    return f"passes=[{', '.join([*before, f'{{quantize: {{{options}}}}}'])}]"


def rows(kind: str) -> dict[str, str]:
    """Name → passes."""
    if kind == "decoder":
        return eight() | four() | caches() | zeros() | pruned() | trained()
    made = {
        f"int8, {ranges}": quantize(f"format: int8, calibration: {ranges}")
        for ranges in ("max", "percentile", "mse", "entropy")
    }
    if kind == "encoder":
        made["int8_per_token, max"] = quantize("format: int8_per_token")
        made["int8_weight_only, max"] = quantize("format: int8_weight_only")
        made["int8_weight_only, inputs rounded by the kernel"] = (
            f"passes=[{{quantize: {{format: int8_weight_only}}}}, {ENGINE}]"
        )
        made |= pruned() | trained_encoder()
    return made


def trained_encoder() -> dict[str, str]:
    """A pruned encoder trained on the embeddings of the untouched one."""
    pruned, distill = "{prune: {ffn: 0.2}}", "{distill: {steps: 96}}"
    return {
        "ffn pruned by 20 %, distilled": f"passes=[{pruned}, {distill}]",
        "ffn pruned by 20 %, int8_weight_only": quantize("format: int8_weight_only", pruned),
        "ffn pruned by 20 %, distilled, int8_weight_only": quantize("format: int8_weight_only", pruned, distill),
    }


def four() -> dict[str, str]:
    """int4 of the decoder."""
    made = {}
    for block, algorithms in INT4.items():
        for algorithm in algorithms:
            made[f"int4 block {block}, {algorithm}"] = quantize(f"format: int4, block: {block}, algorithm: {algorithm}")
        options = f"block: {block}, algorithm: gptq"
        made[f"int4 block {block}, rotate + gptq"] = quantize(f"format: int4, {options}", "rotate")
        made[f"uint4 block {block}, gptq"] = quantize(f"format: uint4, {options}")
        made[f"int4 block {block}, gptq, no sweeps"] = quantize(f"format: int4, {options}, sweeps: 0")
    made["uint4 block 32, rtn"] = quantize("format: uint4, block: 32, algorithm: rtn")
    for ranges in ("mse", "signed"):
        options = f"format: int4, block: 32, algorithm: rtn, calibration: {ranges}"
        made[f"int4 block 32, rtn, {ranges} ranges"] = quantize(options)
    return made


def caches() -> dict[str, str]:
    """The decoder's keys and values in few bits, its weights in float."""
    made = {
        f"cache in int8, {ranges}": quantize(f"kv_cache: int8, kv_calibration: {ranges}") for ranges in ("max", "mse")
    }
    made |= {
        f"cache in int4, {ranges}": quantize(f"kv_cache: int4, kv_calibration: {ranges}") for ranges in ("max", "mse")
    }
    made["cache in int4, mse, one scale a layer"] = quantize(
        "kv_cache: int4, kv_calibration: mse, kv_per_channel: false"
    )
    return made


def eight() -> dict[str, str]:
    """int8 of the decoder."""
    made = {}
    for ranges in ("max", "percentile", "mse", "entropy"):
        made[f"int8, {ranges}"] = quantize(f"format: int8, algorithm: max, calibration: {ranges}")
    made["int8, smoothquant"] = quantize("format: int8, algorithm: smoothquant")
    made["int8, smoothquant, mse"] = quantize("format: int8, algorithm: smoothquant, calibration: mse")
    for alpha in (0.8, 1):
        options = f"format: int8, algorithm: smoothquant, alpha: {alpha}, calibration: mse"
        made[f"int8, smoothquant of alpha {alpha}, mse"] = quantize(options)
    made["int8, rotate + mse"] = quantize("format: int8, algorithm: max, calibration: mse", "rotate")
    made["int8, rotate + max"] = quantize("format: int8, algorithm: max", "rotate")
    made["int8_per_token, max"] = quantize("format: int8_per_token, algorithm: max")
    made["int8_per_token, gptq"] = quantize("format: int8_per_token, algorithm: gptq")
    made["int8_per_token, smoothquant"] = quantize("format: int8_per_token, algorithm: smoothquant")
    for alpha in (0.5, 0.8):
        options = f"format: int8_per_token, algorithm: smoothquant_gptq, alpha: {alpha}"
        made[f"int8_per_token, smoothquant of alpha {alpha} + gptq"] = quantize(options)
    made["int8_weight_only, max"] = quantize("format: int8_weight_only, algorithm: max")
    made["int8_weight_only, gptq"] = quantize("format: int8_weight_only, algorithm: gptq")
    return made


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


def group_of(name: str) -> str:
    """Key of what is compared with each other (tests/peers/accuracy_rows.py); empty where nothing of a peer's is like it."""
    if "QAD" in name or name.startswith("zeros") or "distilled" in name or name.startswith("ffn pruned"):
        return ""
    for start, key in (
        ("int4 block 32", "w4-32"), ("uint4 block 32", "u4-32"), ("int4 block 128", "w4-128"), ("uint4 block 128", "u4-128"),
        ("int8_weight_only, inputs", "w8a8-token"), ("int8_weight_only", "w8"), ("int8_per_token", "w8a8-token"),
        ("int8", "w8a8"), ("FFN", "ffn"),
    ):  # fmt: skip
        if name.startswith(start):
            return key
    return ""


def command_of(kind: str, passes: str, folder: Path) -> list[str]:
    """`openclaw-opt build` as a user types it, but for its output."""
    settings = [passes, "budgets={}", f"metrics=[{METRICS[kind]}]"]
    settings += [f"data.{split}={json.dumps(stated)}" for split, stated in data_of(kind).items()]
    settings += [TRAINING[kind]] if "distill" in passes else []
    settings += [f"model={checkpoint_of(kind, folder)}"] if kind == "vision" else []
    command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", RECIPES[kind]]
    command += [] if ENGINE in passes else ["--until", "model"]
    return [*command, *(part for value in settings for part in ("--set", value)), "--cache", str(folder / "passes")]


def measured(kind: str, folder: Path, only: str = "", *, cached: bool = False) -> list[dict[str, Any]]:
    """Every row of ours as JSON. With `cached`, a row that is not there says so and is not built."""
    return [_measured(kind, name, passes, folder, cached) for name, passes in rows(kind).items() if only in name]


def _measured(kind: str, name: str, passes: str, folder: Path, cached: bool) -> dict[str, Any]:
    slug = name.replace(",", "").replace(":", "").replace(" ", "-")
    command, kept = command_of(kind, passes, folder), folder / "ours" / f"{kind}-{slug}.json"
    if kept.is_file() and (stored := json.loads(kept.read_text()))["command"] == command:
        return {**stored["found"], **said(name)}
    if cached:
        return {**said(name), "bits": FLOAT_BITS, "why": "not run yet"}
    print(f"{kind}: {name}", file=sys.stderr, flush=True)
    output = folder / "builds" / f"{kind}-{slug}"
    done = subprocess.run([*command, "--output", str(output)], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with exit code {done.returncode}: {' '.join(command)}")
    found = facts(read_report(output))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"command": command, "found": found}))
    return {**found, **said(name)}


def said(name: str) -> dict[str, Any]:
    """What a row is called and compared with."""
    return {"name": name, "tool": "ours", "group": group_of(name), "note": "", "ours": True}


def facts(report: Report) -> dict[str, Any]:
    """What the page says of a build."""
    step = [record for record in report.passes if record.kind == "lossy"][-1]
    row = FORMATS.get(step.options.get("format", ""))
    parameters = next((p.parameters for p in reversed(report.passes) if p.parameters), report.parameters)
    weights = sum(layer.parameters for layer in step.layers) if row is not None else 0
    made = {"seconds": step.seconds, "peak_bytes": step.peak_bytes, "parameters": parameters, "weights": weights}
    return {
        "bits": FLOAT_BITS if row is None else row.bits_per_weight(step.options["block"]),
        "made": {**made, "layers": len(step.layers), "versions": report.versions, "machine": report.machine.title},
        "rows": [one.model_dump() for one in report.measurements],
        "output_sqnr_db": _mean(step.layers, "output_sqnr_db"),
        "plain_output_sqnr_db": _mean(step.layers, "plain_output_sqnr_db"),
    }


def _mean(layers: tuple[LayerRecord, ...], field: str) -> float | None:
    known = [value for layer in layers if (value := getattr(layer, field)) is not None]
    return sum(known) / len(known) if known else None


NUMBERS = {
    "decoder": {
        "bits_per_byte": ("bits per byte", "{:.4f}"), "bits_per_byte.recovery": ("bits per byte kept", "{:.4f}"),
        "agreement.top1": ("top-1 agreement", "{:.4f}"), "kl.mean": ("mean KL, nat", "{:.2g}"),
    },
    "encoder": {
        "embedding.retrieval": ("same nearest neighbour", "{:.4f}"), "embedding.cosine.mean": ("mean cosine", "{:.5f}"),
        "embedding.cosine.min": ("least cosine", "{:.4f}"),
    },
    "vision": {
        "accuracy.top1": ("accuracy", "{:.4f}"), "accuracy.top1.recovery": ("accuracy kept", "{:.4f}"),
        "agreement.class": ("same class", "{:.4f}"),
    },
}  # fmt: skip
"""Measurement → its column."""


def megabytes(found: dict[str, Any]) -> float:
    """Low-bit weights at their bits, scales included; all else in float32."""
    made = found["made"]
    return float((made["weights"] * found["bits"] / 8 + (made["parameters"] - made["weights"]) * 4) / 1e6)


def value(found: dict[str, Any], name: str, pattern: str) -> str:
    """A number with its interval, or why there is none."""
    row = next((m for m in found["rows"] if m["name"] == name and m["subject"] != "reference"), None)
    if row is None or row["value"] is None:
        return f"not measured: {row['not_measured']}" if row else "–"
    text = pattern.format(row["value"])
    ends = [row["low"], row["high"]]
    return text if None in ends else f"{text} ({pattern.format(ends[0])} – {pattern.format(ends[1])})"


def ours_table(kind: str, found: list[dict[str, Any]]) -> str:
    """Markdown. Pure."""
    columns = NUMBERS[kind]
    head = ["format, algorithm", "bits a weight", "MB", *(title for title, _ in columns.values())]
    head += ["output SQNR, dB", "the same, plain", "s", "peak GiB"]
    rows = []
    for one in found:
        numbers = [value(one, name, pattern) for name, (_, pattern) in columns.items()]
        errors = ["–" if one[key] is None else f"{one[key]:.1f}" for key in ("output_sqnr_db", "plain_output_sqnr_db")]
        cost = [f"{one['made']['seconds']:.0f}", f"{one['made']['peak_bytes'] / 2**30:.2f}"]
        rows.append([one["name"], f"{one['bits']:.4g}", f"{megabytes(one):.2f}", *numbers, *errors, *cost])
    return str(table(head, rows))


def main() -> None:
    """Build every row, print the tables of ours."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="rows whose name holds this")
    options.add_argument("--folder", type=Path, default=ROOT / "build" / "accuracy")
    options.add_argument("--tasks", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    given = options.parse_args()
    for kind in given.tasks:
        print(f"## {kind}\n\n{ours_table(kind, measured(kind, given.folder.absolute(), given.only))}\n")


if __name__ == "__main__":
    main()
