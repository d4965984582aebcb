"""The report's forms, from reports as builds make them: within budget, missed, undecided, unfinished, without metrics."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from openclaw_opt.artifacts import KernelRow, Measurement, ReceiptRow
from openclaw_opt.records import (
    BudgetRecord,
    LayerRecord,
    MachineRecord,
    PassRecord,
    Report,
    Verification,
)
from openclaw_opt.report import views

HOSTILE = '<script>alert("x")</script>[red]|`&\x1b[31m\n@all'
NO_GPU = "no NVIDIA GPU on this machine"
CPU = "engine graph on ONNX Runtime CPU"
RECIPE = """\
model: checkpoints/tiny-llama
target: rtx4090
passes:
- load: {}
- quantize: {format: int8, algorithm: smoothquant, keep: [lm_head]}
- export: {opset: 23}
- build: {backend: tensorrt, batch: [1, 4, 16], context: 4096}
metrics: [perplexity, agreement, latency, memory]
budgets:
  perplexity.recovery: '>= 0.98'
"""


def measurement(name: str, value: float | None, unit: str, better: str, **more: Any) -> Measurement:
    return Measurement.model_validate({"name": name, "value": value, "unit": unit, "better": better, **more})


def samples(median: float, count: int, seed: int) -> tuple[float, ...]:
    draw = random.Random(seed)
    return tuple(
        round(median * math.exp(draw.gauss(0, 0.08)) + (draw.random() < 0.02) * median, 4) for _ in range(count)
    )


def recovery(value: float, width: float, subject: str = CPU) -> Measurement:
    return measurement(
        "perplexity.recovery",
        value,
        "ratio",
        "higher",
        low=value - width,
        high=value + width,
        samples=128,
        subject=subject,
    )


def layer(index: int, name: str, sqnr: float) -> LayerRecord:
    return LayerRecord(
        name=f"layers.{index}.{name}", format="int8", parameters=589_824, weight_sqnr_db=sqnr + 6, output_sqnr_db=sqnr
    )


def passes() -> tuple[PassRecord, ...]:
    def record(index: int, word: str, kind: str, changed: str, **more: Any) -> PassRecord:
        return PassRecord.model_validate(
            {"index": index, "word": word, "options": {}, "kind": kind, "changed": changed, **more}
        )

    def exact(value: float, tolerance: float = 1e-3) -> Verification:
        what = "logits on 4 × 64 probe tokens, before and after"
        return Verification(kind="exact", what=what, value=value, tolerance=tolerance, ok=value <= tolerance)

    layers = [
        layer(i, name, 24 + 3 * i + 5 * j)
        for i in range(8)
        for j, name in enumerate(("mlp.down", "qkv", "attention.o", "mlp.gate_up"))
    ]
    return (
        record(0, "load", "exact", "71 tensors of model.safetensors, bfloat16 → float32", seconds=0.41, peak_bytes=412_000_000,
               cached=True, size_bytes=26_800_000, parameters=6_700_000, verification=exact(0.0)),
        record(1, "prune", "lossy", "10 % of the FFN channels of 8 layers removed", seconds=6.2, peak_bytes=910_000_000, cached=True,
               size_bytes=24_300_000, parameters=6_080_000, accuracy=(recovery(0.9941, 0.0013, "model in PyTorch"),),
               latency=(measurement("latency.decode.p50_ms", None, "ms", "lower", not_measured="only engines are timed"),)),
        record(2, "quantize", "lossy", "32 linear layers to INT8 weights and activations; lm_head kept", seconds=41.7,
               peak_bytes=1_620_000_000, cached=False, redone_why="options.format: int8_weight_only → int8", size_bytes=8_900_000,
               accuracy=(recovery(0.9868, 0.0021, "model in PyTorch"),), layers=tuple(layers)),
        record(3, "export", "exact", "a portable graph of 1,204 nodes, opset 23", seconds=18.9, peak_bytes=1_310_000_000, cached=False,
               redone_why="its input changed: `quantize` was redone", size_bytes=9_100_000, verification=exact(3.1e-6)),
        record(4, "lower-tensorrt", "exact", "8 caches in place, QKV and gate/up merged", seconds=2.2, peak_bytes=700_000_000, cached=False,
               redone_why="its input changed: `export` was redone", size_bytes=9_100_000, verification=exact(8.8e-5)),
        record(5, "build", "exact", "an engine with 2 profiles and 148 kernels", seconds=134.0, peak_bytes=2_240_000_000, cached=False,
               redone_why="its input changed: `lower-tensorrt` was redone", size_bytes=10_400_000),
    )  # fmt: skip


def timed(name: str, value: float, subject: str, count: int, seed: int) -> Measurement:
    raw = samples(value, count, seed)
    return measurement(
        name, value, "ms", "lower", low=value * 0.98, high=value * 1.03, samples=count, subject=subject, raw=raw
    )


def measured_rows() -> tuple[Measurement, ...]:
    return (
        recovery(0.9866, 0.0021),
        measurement(
            "perplexity.bits_per_byte", 1.7314, "bits/byte", "lower", low=1.70, high=1.76, samples=128, subject=CPU
        ),
        measurement(
            "perplexity.bits_per_byte",
            1.7082,
            "bits/byte",
            "lower",
            low=1.68,
            high=1.74,
            samples=128,
            subject="reference",
        ),
        measurement("agreement.top1", 0.9712, "ratio", "higher", low=0.968, high=0.974, samples=8192, subject=CPU),
        measurement("agreement.kl", 0.00412, "nats", "lower", samples=8192, subject=CPU),
        timed("latency.decode.p50_ms", 2.41, "engine", 700, 1),
        timed("latency.decode.p50_ms", 5.93, "reference", 700, 2),
        timed("latency.decode.p90_ms", 2.71, "engine", 700, 1),
        timed("latency.decode.p99_ms", 3.12, "engine", 700, 1),
        timed("latency.ttft.p50_ms", 18.4, "engine", 60, 3),
        timed("latency.ttft.p50_ms", 31.9, "reference", 60, 4),
        measurement("latency.ttft.p99_ms", None, "ms", "lower", not_measured="60 samples; a 99th percentile needs 459"),
        measurement("throughput.decode", 414.9, "tokens/s", "higher", low=402.0, high=423.0, samples=700),
        measurement(
            "speedup", 2.461, "×", "higher", low=2.40, high=2.52, samples=700, note="interleaved with PyTorch eager"
        ),
        measurement("memory.peak", 96_400_000, "bytes", "lower", note="resident, of the process that runs it"),
        measurement(
            "roofline.decode_ms", 0.0103, "ms", "lower", subject="bound", note="weights read once at 1008 GB/s"
        ),
        measurement("energy.per_token", None, "J", "lower", not_measured=NO_GPU),
    )


def kernels() -> tuple[KernelRow, ...]:
    types = {"gemm": 33, "kgen": 70, "attention": 8, "rope": 8, "copy": 4}
    return tuple(
        KernelRow(profile=profile, kernels=count, per_layer=count / 8, by_type=types, activation_bytes=size, weight_bytes=9_000_000)
        for profile, count, size in (("prefill", 156, 61_000_000), ("decode", 123, 1_400_000))
    )  # fmt: skip


def receipt() -> tuple[ReceiptRow, ...]:
    names = [f"layers.{i}.{name}" for i in range(8) for name in ("qkv", "attention.o", "mlp.gate_up", "mlp.down")]
    return tuple(
        ReceiptRow(layer=name, asked="int8", realised="half", ok=False, why="Q/DQ around a half-precision GEMM", profile="decode")
        if name == "layers.7.mlp.down"
        else ReceiptRow(layer=name, asked="int8", realised="Int8 × Int8", ok=True, why="sm89_xmma_gemm_i8i8_i32", profile="decode")
        for name in names
    )  # fmt: skip


def report(**changes: Any) -> Report:
    """A build that met its budgets."""
    whole: dict[str, Any] = {
        "name": "int8-rtx4090",
        "description": "INT8 weights and activations with SmoothQuant, for one desktop card.",
        "verdict": "within budget",
        "exit_code": 0,
        "started": "2026-08-23T09:14:07+00:00",
        "seconds": 197.3,
        "model": "checkpoints/tiny-llama",
        "family": "llama",
        "task": "decoder",
        "parameters": 6_700_000,
        "checkpoint_bytes": 13_400_000,
        "checkpoint_dtype": "bfloat16",
        "target": "rtx4090",
        "target_title": "GeForce RTX 4090",
        "target_facts": {"memory": 24_000_000_000, "bandwidth": 1.008e12, "peak": {"fp16": 1.652e14}, "hourly_usd": 0.69},
        "backend": "tensorrt",
        "engine_tool": "tensorrt_rtx 1.7.1.116",
        "engine_files": ("engine-sm89.plan",),
        "engine_bytes": 10_400_000,
        "next_step": "copy build/int8-rtx4090 to the GPU host and run `openclaw-opt measure` there",
        "budgets": (
            BudgetRecord(metric="perplexity.recovery", rule=">= 0.98", got=0.9866, unit="ratio", result="met",
                         why="the whole 95 % interval is above", spent_by="quantize"),
            BudgetRecord(metric="speedup", rule=">= 2", got=2.461, unit="×", result="met", why="the whole 95 % interval is above"),
        ),
        "measurements": measured_rows(),
        "passes": passes(),
        "receipt": receipt()[:-1],
        "kernels": kernels(),
        "notes": ("`timing_cache` has no effect on tensorrt_rtx",),
        "peak_bytes": 2_240_000_000,
        "machine": MachineRecord(title="AMD EPYC 9B14, 2 cores", cores=2, memory_bytes=16_700_000_000, gpu="none",
                                 system="Debian GNU/Linux 12", python="3.11.7"),
        "versions": {"openclaw-opt": "0.1.0", "torch": "2.13.0+cpu", "onnx": "1.21.0", "tensorrt-rtx": "1.7.1.116"},
        "data": {
            "calibration": {"source": "python-stdlib", "documents": 256, "tokens": 65536, "fingerprint": "9c1f5e"},
            "evaluation": {"source": "python-stdlib", "documents": 128, "tokens": 131072, "fingerprint": "77aa01"},
        },
        "checkpoint_files": {"model.safetensors": "5f" * 32},
        "recipe": RECIPE,
    }  # fmt: skip
    return Report.model_validate(whole | changes)


def missed() -> Report:
    budgets = (
        BudgetRecord(metric="perplexity.recovery", rule=">= 0.99", got=0.98999, unit="ratio", result="missed",
                     why="the whole 95 % interval is below", spent_by="quantize"),
        BudgetRecord(metric="latency.ttft.p99_ms", rule="<= 40", got=None, unit="ms", result="undecided",
                     why="60 samples; a 99th percentile needs 459"),
        BudgetRecord(metric="speedup", rule=">= 2", got=2.461, unit="×", result="met"),
    )  # fmt: skip
    step = "keep layers.0.mlp.down in float: `--set passes.quantize.keep=[lm_head,layers.0.mlp.down]`"
    return report(verdict="budget missed", exit_code=4, budgets=budgets, receipt=receipt(), next_step=step)


def undecided(exit_code: int) -> Report:
    why = "the 95 % interval 0.9845 to 0.9887 holds the bound"
    row = BudgetRecord(
        metric="perplexity.recovery", rule=">= 0.986", got=0.9866, unit="ratio", result="undecided", why=why
    )
    return report(verdict="undecided", exit_code=exit_code, budgets=(row,))


def unfinished() -> Report:
    gone = {"value": None, "low": None, "high": None, "samples": None, "raw": (), "not_measured": NO_GPU}
    rows = tuple(
        one.model_copy(update=gone)
        if views.latencies(report(measurements=(one,))) or one.name == "memory.peak"
        else one
        for one in measured_rows()
        if one.subject != "reference"
    )
    return report(
        name="int8-h100",
        verdict="not finished",
        exit_code=3,
        finished=False,
        target="h100-sxm",
        target_title="NVIDIA H100 SXM",
        engine_files=(),
        engine_bytes=None,
        engine_tool="",
        unfinished_why="TensorRT for data-centre GPUs builds on that GPU only",
        finish_command="openclaw-opt build build/int8-h100 --resume",
        next_step="copy build/int8-h100 to a host with an H100 and run `openclaw-opt build build/int8-h100 --resume`",
        budgets=(
            BudgetRecord(
                metric="latency.decode.p99_ms", rule="<= 12", got=None, unit="ms", result="undecided", why=NO_GPU
            ),
        ),
        measurements=rows,
        kernels=(),
        receipt=(),
    )


def bare() -> Report:
    return report(
        verdict="no budgets", budgets=(), measurements=(), kernels=(), receipt=(), notes=(), next_step="", target_facts={},
        passes=tuple(one.model_copy(update={"accuracy": (), "latency": (), "layers": ()}) for one in passes()),
    )  # fmt: skip


def hostile() -> Report:
    step = passes()[2].model_copy(
        update={"word": HOSTILE, "changed": HOSTILE, "redone_why": HOSTILE, "layers": (layer(0, HOSTILE, 3.0),)}
    )
    row = measurement(f"x{HOSTILE}", 1.0, HOSTILE, "higher", subject=HOSTILE, note=HOSTILE, raw=(1.0, 2.0, 3.0))
    return report(
        name=HOSTILE, description=HOSTILE, model=HOSTILE, target_title=HOSTILE, engine_tool=HOSTILE, next_step=HOSTILE, recipe=HOSTILE,
        unfinished_why=HOSTILE, finish_command=HOSTILE, finished=False, verdict="not finished", exit_code=3,
        budgets=(BudgetRecord(metric=HOSTILE, rule=HOSTILE, got=1.0, result="missed", why=HOSTILE, spent_by=HOSTILE),),
        measurements=(row, *measured_rows()), passes=(*passes(), step), notes=(HOSTILE,), data={HOSTILE: {HOSTILE: [HOSTILE]}},
        receipt=(ReceiptRow(layer=HOSTILE, asked=HOSTILE, realised=HOSTILE, ok=False, why=HOSTILE, profile=HOSTILE),),
        kernels=(KernelRow(profile=HOSTILE, kernels=1, by_type={HOSTILE: 1}),), versions={HOSTILE: HOSTILE},
        checkpoint_files={HOSTILE: HOSTILE}, target_facts={HOSTILE: HOSTILE, "hourly_usd": HOSTILE},
    )  # fmt: skip


def large() -> Report:
    """A model of 126 blocks with long names, and latency samples enough for a p99.9."""
    names = [
        f"model.layers.{i}.a_rather_long_module_name.{name}"
        for i in range(126)
        for name in ("qkv", "o", "gate_up", "down")
    ]
    many = tuple(
        LayerRecord(name=name, format="int4", parameters=10**8, weight_sqnr_db=20.0, note="x" * 80) for name in names
    )
    rows = tuple(ReceiptRow(layer=name, asked="int4", realised="half", ok=False, why="w" * 200) for name in names * 4)
    step = passes()[2].model_copy(update={"layers": many * 2})
    first = timed("latency.decode.p50_ms", 2.4, "engine", 50_000, 9)
    gone = tuple(measurement(f"m.{i}", None, "ms", "lower", not_measured="y" * 300 + str(i)) for i in range(500))
    notes = tuple("note " * 60 for _ in range(500))
    return report(passes=(step,) * 8, receipt=rows, measurements=(first, *gone), notes=notes, recipe="z: 1\n" * 40_000)


EVERY = {
    "met": report,
    "missed": missed,
    "undecided": lambda: undecided(4),
    "unfinished": unfinished,
    "bare": bare,
    "hostile": hostile,
    "large": large,
}
each = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
