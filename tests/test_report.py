"""The report's forms, from reports as builds make them: within budget, missed, undecided, unfinished, without metrics."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from openclaw_opt.artifacts import KernelRow, Measurement, ReceiptRow
from openclaw_opt.errors import RecipeError
from openclaw_opt.records import (
    SCHEMA_VERSION,
    BaselineRecord,
    BudgetRecord,
    CostRecord,
    LayerRecord,
    MachineRecord,
    PassRecord,
    Report,
    Verification,
)
from openclaw_opt.report import html as html_module
from openclaw_opt.report import numbers, plot, read_report, report_json, tables, views, write_report
from openclaw_opt.report.benchmark import FILES, benchmark
from openclaw_opt.report.gaps import gaps
from openclaw_opt.report.headline import cost, headlines
from openclaw_opt.report.html import html
from openclaw_opt.report.junit import junit
from openclaw_opt.report.markdown import markdown
from openclaw_opt.report.plot import Figure
from openclaw_opt.report.schema import report_schema
from openclaw_opt.report.terminal import print_report, summary_line
from openclaw_opt.store import Store

any_float = st.floats(allow_nan=True, allow_infinity=True)
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
               redone_why="its input changed: `lower-tensorrt` was redone", size_bytes=10_400_000,
               latency=tuple(one for one in measured_rows() if one.name.startswith(("latency", "throughput")) and one.subject == "engine")),
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
        measurement("throughput.decode_tokens_per_s", 414.9, "token/s", "higher", low=402.0, high=423.0, samples=700),
        measurement(
            "speedup", 2.461, "×", "higher", low=2.40, high=2.52, samples=700, note="interleaved with PyTorch eager"
        ),
        measurement("memory.peak_mib", 91.93, "MiB", "lower", note="resident, of the process that runs it"),
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
        if views.latencies(report(measurements=(one,))) or one.name.startswith("memory")
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
        passes=passes()[:-1],
        target_facts={"memory": 80_000_000_000, "hourly_usd": 2.99},
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
    step = passes()[2].model_copy(update={"layers": many})
    first = timed("latency.decode.p50_ms", 2.4, "engine", 20_000, 9)
    gone = tuple(measurement(f"m.{i}", None, "ms", "lower", not_measured="y" * 300 + str(i)) for i in range(500))
    notes = tuple("note " * 200 for _ in range(500))
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


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails on a tag that is closed twice, never, or in a wrong order."""

    VOID = frozenset({"meta", "link", "br", "wbr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.drawn = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "svg" in self.open:
            self.drawn += f"{data}\n"
        elif not {"style", "script"} & set(self.open):
            self.text += data.replace("\u00a0", " ")

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(autouse=True, scope="module")
def drawn_once() -> Iterator[None]:
    """Pictures that are equal are drawn once in this file; they are drawn for real."""
    real, known = plot._draw, {}

    def draw(one: Figure) -> str:
        key = json.dumps([one.name, one.title, one.caption, one.spec], allow_nan=False)
        if key not in known:
            known[key] = real(one)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "_draw", draw)
        yield


@functools.cache
def rendered(make: Callable[[], Report]) -> str:
    return html(make())


@pytest.mark.slow
@each
def test_html_is_whole_balanced_and_loads_nothing(make: Callable[[], Report]) -> None:
    source = rendered(make)
    page = Page(source)
    assert len(source.encode()) < 1_000_000
    assert page.count("script") == 1
    assert page.count("style") == 1
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "xlink:href")]
        assert attributes.get("href") in (None, "data:,", "#content")
    assert "@import" not in source
    assert re.findall(r"url\((?!#)", source) == []
    assert "http://" not in source + page.drawn
    assert not re.search(r"\bNone\b|\bundefined\b|&amp;(lt|gt|amp|#)", source)


@each
def test_every_drawing_is_well_formed_and_finite(make: Callable[[], Report]) -> None:
    drawings = re.findall(r"<svg.*?</svg>", rendered(make), re.DOTALL)
    for one in drawings:
        for element in ElementTree.fromstring(one).iter():
            assert not [value for value in element.attrib.values() if re.fullmatch(r"-?(nan|inf)", value)]


def test_html_answers_before_it_explains() -> None:
    page = Page(html(with_batches(missed()))).text
    order = ["Budget missed", "wanted >= 0.99, got 0.98999, spent by quantize", "Next:", "Each budget:", "2.46×", "Accuracy and latency",
             "Pass by pass", "Layers by error", "Precision receipt", "Latency: anatomy", "Batch and latency", "Memory and size",
             "Cost and bound", "Not measured, and why", "Where it comes from"]  # fmt: skip
    places = [page.index(words) for words in order]
    assert places == sorted(places)


def test_html_holds_everything_the_report_knows() -> None:
    page = Page(html(missed()))
    for words in (
        "INT8 weights and activations with SmoothQuant", "tensorrt_rtx 1.7.1.116", "95 % interval 0.9845 to 0.9887, n = 128",
        CPU, "77.61 % of the checkpoint's 13.4 MB", "exact: 3.1e-06 ≤ 0.001", "options.format: int8_weight_only → int8",
        "its input changed: quantize was redone", "logits on 4 × 64 probe tokens", "60 samples; a 99th percentile needs 459",
        "layers.0.mlp.down", "24.0 dB", "Q/DQ around a half-precision GEMM", "not realised", "70 kgen",
        "31 of 32 rows of the precision receipt", "A bound, not a measurement",
        "`timing_cache`".strip("`"), "AMD EPYC 9B14", "5f" * 32, "calibration.fingerprint", "opset: 23", "2.13.0+cpu",
    ):  # fmt: skip
        assert words in page.text, words


def test_figures_stand_in_tables_too() -> None:
    page = Page(rendered(report))
    shown = {words for words in page.drawn.splitlines() if re.search(r"\d (B|kB|MB|GB|ms|s|dB)$", words)}
    assert len(shown) > 15
    assert [words for words in shown if words.split(" · ")[0] not in page.text] == []


def with_batches(one: Report) -> Report:
    """With a knee at batch 4: throughput by latency 0.5, 0.8, 1.25, 0.5 × 1e3."""
    times = {1: 1.414, 2: 1.581, 4: 1.789, 8: 4.0}
    rows = [
        measurement(name, value, unit, better, at={"batch": batch}, samples=44)
        for batch, ms in times.items()
        for name, value, unit, better in (
            ("batching.decode_ms", ms, "ms", "lower"),
            ("batching.tokens_per_s", 1e3 * batch / ms, "token/s", "higher"),
        )
    ]
    knee = measurement("batching.knee", 4.0, "sequences", "higher", low=4.0, high=4.0, samples=44)
    parts = [measurement(f"anatomy.{part}_ms", ms, "ms", "lower", samples=44) for part, ms in
             (("load", 60.0), ("tokenize", 0.1), ("prefill", 2.0), ("decode", 20.0), ("detokenize", 0.05))]  # fmt: skip
    return one.model_copy(update={"measurements": (*one.measurements, *rows, knee, *parts)})


def with_baseline(one: Report) -> Report:
    rows = (recovery(0.991, 0.002), timed("latency.decode.p50_ms", 2.9, "engine", 20, 9))
    record = BaselineRecord(name="main", path="build/main", started="2026-08-01T00:00:00+00:00", machine="AMD EPYC 9B14, 2 cores",
                            target="rtx4090", measurements=rows)  # fmt: skip
    return one.model_copy(update={"baseline": record})


def every_figure(one: Report) -> list[Figure]:
    return [figure for found in html_module._figures(one).values() for figure in found]


@pytest.mark.slow
@each
def test_every_picture_is_legal_vega_lite_with_a_table(make: Callable[[], Report]) -> None:
    import altair

    one = with_baseline(with_batches(make()))
    found = every_figure(one)
    assert len({figure.name for figure in found}) == len(found)
    for figure in found:
        altair.Chart.from_dict(json.loads(json.dumps(figure.spec, allow_nan=False)))
        assert figure.table.rows, figure.title
        assert figure.title


def test_what_each_picture_shows() -> None:
    sensitive = passes()[2].model_copy(update={"details": {"sensitivity": {"layers.0.qkv": 0.5, "layers.1.qkv": 0.25}}})
    curve = [
        {"step": step, "train": loss, "held_back": held, "learning_rate": 1e-4}
        for step, loss, held in ((0, None, 0.5), (20, 0.4, 0.25), (40, 0.2, 0.3))
    ]
    trained = passes()[1].model_copy(update={"details": {"curve": curve, "best_step": 20}})
    one = with_baseline(with_batches(report(passes=(passes()[0], trained, sensitive, *passes()[3:]))))
    found = {figure.name: figure for figure in every_figure(one)}
    named = "bullets tradeoff accuracy costs worst depth sensitivity-2 training-1 ecdf anatomy batching memory"
    assert set(found) == set(named.split())
    knees = [row[0].text for row in found["batching"].table.rows if row[3].text == "knee"]
    assert knees == ["4"]
    assert [row[0].text for row in found["tradeoff"].table.rows] == [
        "reference",
        "baseline main",
        "this build",
        "roofline.decode_ms",
    ]
    assert "bound 0.0103 ms" in json.dumps(found["tradeoff"].spec)
    assert [row[0].text for row in found["sensitivity-2"].table.rows] == ["layers.0.qkv", "layers.1.qkv"]
    assert [row[1].text for row in found["training-1"].table.rows] == ["–", "0.4000", "0.2000"]
    assert "step 20" in found["training-1"].caption
    assert "22.2 ms" in found["anatomy"].caption  # the request's parts; loading is not one of them


def test_rows_under_a_condition_are_no_headline() -> None:
    one = report(
        measurements=(measurement("throughput.decode_tokens_per_s", 9.0, "token/s", "higher", at={"batch": 8}),)
    )
    assert views.engine_measurement(one, "throughput.decode_tokens_per_s") is None
    assert views.latencies(one) == ()
    assert "throughput.decode_tokens_per_s, batch 8" in Page(html(one)).text


def test_the_front_is_what_nothing_dominates() -> None:
    def point(accuracy: float, latency: float) -> views.Point:
        return views.Point(
            "x", "other", measurement("l", latency, "ms", "lower"), measurement("a", accuracy, "", "higher")
        )

    rows = [point(1.0, 9.0), point(0.9, 3.0), point(0.9, 4.0), point(0.8, 3.0), point(0.7, 1.0), point(0.9, 3.0)]
    assert views.front(rows) == (0, 1, 4, 5)


@pytest.mark.slow
@given(st.text(max_size=40), any_float)
@settings(max_examples=25, deadline=None)
def test_any_text_and_number_can_be_drawn(text: str, value: float) -> None:
    """vl-convert ends the process on a character that no SVG may hold."""
    row = plot.Bar(text, text, value)
    spec = {**plot.bars([row, row]), "title": text}
    spec["encoding"]["x"]["axis"] = {"title": text}
    figure = plot.Figure("x", text, spec, tables.pairs("a", {"b": "c"}), text)
    ElementTree.fromstring(plot.drawings([figure])["x"])


def test_a_text_is_shortened_between_its_characters() -> None:
    """Vega cuts a text that is too long between the two halves of a character beyond the basic plane."""
    for start in range(20, 32):
        text = "0" * start + "\U0001f600" * 12
        spec = plot.bars([plot.Bar(text, text, 1.0)])
        spec["encoding"]["x"]["axis"] = {"title": text}
        drawn = plot.drawings([plot.Figure("x", text, spec, tables.pairs("a", {"b": "c"}), text)])["x"]
        assert "\U0001f600" in drawn.partition("</title>")[0], "the title is the page's text and keeps them"


def test_pictures_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "cache")
    first = html(missed(), store)
    monkeypatch.setattr(plot, "_draw", lambda one: pytest.fail(f"{one.title} was drawn again"))
    assert html(missed(), store) == first


def test_accuracy_against_latency_needs_both() -> None:
    assert [one.kind for one in views.points(report())] == ["reference", "engine"]
    assert [one.kind for one in views.points(with_baseline(report()))] == ["reference", "baseline", "engine"]
    assert "Accuracy against latency" in rendered(report)
    assert views.points(unfinished()) == ()
    assert "Accuracy against latency" not in html(unfinished())


def test_an_unfinished_engine_says_what_to_run_and_shows_no_zero() -> None:
    page = Page(html(unfinished()))
    assert "openclaw-opt build build/int8-h100 --resume" in page.text
    assert page.text.count(NO_GPU) >= 3
    assert not re.search(r"(?<![\d.])0(\.0+)? (ms|tokens/s|MB)", page.text)


def test_without_metrics_the_gaps_are_listed() -> None:
    whys = [gap.why for gap in gaps(bare())]
    assert "no accuracy metric ran on this build" in whys
    assert "no latency metric ran on this build" in whys
    assert [one.measured for one in headlines(bare())] == [False, False, True, False]


def test_hostile_text_stays_text() -> None:
    source = html(hostile())
    assert "<script>alert" not in source
    assert Page(source).text.count('<script>alert("x")</script>') > 10
    outside_code = re.sub(r"(`{3,})yaml\n.*?\1", "", markdown(hostile()), flags=re.DOTALL)
    outside_code = re.sub(r"(?<!\\)`[^`\n]*`", "", outside_code)
    outside_code = re.sub(r"</?details>|</?summary>", "", outside_code)
    assert "script" in outside_code
    assert not re.search(r"(?<!\\)<", outside_code)
    assert "@all" not in outside_code
    assert "\x1b" not in junit(hostile())
    ElementTree.fromstring(junit(hostile()))
    out = printed(hostile())
    assert "\x1b" not in out + summary_line(hostile())
    assert "[red]" in out


def test_values_that_are_not_finite_are_shown_and_kept() -> None:
    rows = (recovery(math.inf, 0.0), measurement("agreement.kl", math.nan, "nats", "lower"))
    broken = passes()[1].model_copy(
        update={"accuracy": (recovery(math.inf, 0.1),), "layers": (layer(0, "qkv", math.inf),)}
    )
    one = report(measurements=rows, passes=(broken, *passes()[2:]))
    data = json.loads(report_json(one), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert report_json(Report.model_validate(data)) == report_json(one)
    assert "∞" in Page(html(one)).text
    for element in re.findall(r"<svg.*?</svg>", html(one), re.DOTALL):
        assert not re.search(r'"-?(nan|inf)', element)


@each
def test_markdown_fits_a_job_summary(make: Callable[[], Report]) -> None:
    text = markdown(make())
    assert len(text.encode()) < 2**20
    assert text.count("<details>") == text.count("</details>")
    for first, row in re.findall(r"^(\|.*\|)\n(\|[-: |]+\|)$", text, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", first)) == row.count("|")


def test_markdown_says_the_verdict_first_and_what_to_do() -> None:
    text = markdown(missed())
    assert text.startswith("## ❌ int8-rtx4090: budget missed\n\nperplexity.recovery: wanted \\>= 0.99, got 0.98999")
    assert "**Next:** keep layers.0.mlp.down in float: `--set passes.quantize.keep=[lm_head,layers.0.mlp.down]`" in text
    assert "| `latency.ttft.p99_ms` | ❔ undecided | \\<= 40 ms | not measured |" in text
    assert "| layers.7.mlp.down |" in text.replace("`", "")
    assert text.index("### Budgets") < text.index("### Headline") < text.index("<details>")


def test_markdown_that_is_too_long_says_what_is_missing() -> None:
    from openclaw_opt.report.markdown import LIMIT_BYTES, limited

    text = limited(["## first", "x" * LIMIT_BYTES])
    assert text == "## first\n\nMore did not fit here: see `report.html`.\n"


def suite(one: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(junit(one))
    found = root.find("testsuite")
    assert root.tag == "testsuites"
    assert found is not None
    cases = found.findall("testcase")
    for key, tag in (("failures", "failure"), ("skipped", "skipped")):
        assert int(found.attrib[key]) == sum(case.find(tag) is not None for case in cases) == int(root.attrib[key])
    assert int(found.attrib["tests"]) == len(cases)
    return found


def outcomes(one: Report, group: str) -> list[str]:
    rows = [case for case in suite(one).findall("testcase") if case.attrib["classname"] == f"openclaw-opt.{group}"]
    return [next((tag for tag in ("failure", "skipped") if case.find(tag) is not None), "passed") for case in rows]


@each
def test_junit_counts_are_right(make: Callable[[], Report]) -> None:
    one = make()
    assert len(outcomes(one, "budget")) == len(one.budgets)


def test_junit_has_a_case_for_each_promise() -> None:
    assert outcomes(missed(), "budget") == ["failure", "failure", "passed"]
    assert outcomes(missed(), "precision") == ["failure"]
    assert outcomes(missed(), "verification") == ["passed", "passed", "passed", "skipped"]
    message = suite(missed()).findall("testcase")[0].find("failure")
    assert message is not None
    assert "wanted >= 0.99, got 0.98999, spent by quantize" in message.attrib["message"]


def test_junit_of_undecided_follows_the_exit_code() -> None:
    assert outcomes(undecided(4), "budget") == ["failure"]
    assert outcomes(undecided(0), "budget") == ["skipped"]
    lenient = missed().model_copy(update={"recipe": f"{RECIPE}undecided: pass\n"})
    assert outcomes(lenient, "budget") == ["failure", "skipped", "passed"]
    assert outcomes(unfinished(), "budget") == ["skipped"]
    assert outcomes(unfinished(), "build") == ["failure"]
    assert outcomes(unfinished().model_copy(update={"exit_code": 0}), "build") == ["skipped"]


def test_a_failed_verification_is_a_failure() -> None:
    proof = Verification(kind="exact", what="logits", value=0.2, tolerance=1e-3, ok=False)
    one = report(passes=(passes()[3].model_copy(update={"verification": proof}),))
    assert outcomes(one, "verification") == ["failure"]
    assert "exact: 0.2 > 0.001" in junit(one).replace("&gt;", ">")


def test_junit_opens_in_a_reader(tmp_path: Path) -> None:
    from junitparser import JUnitXml

    for make in EVERY.values():
        file = tmp_path / "junit.xml"
        file.write_text(junit(make()), encoding="utf-8")
        (found,) = JUnitXml.fromfile(str(file))
        budgets = [case for case in found if case.classname == "openclaw-opt.budget"]
        assert len(budgets) == len(make().budgets)
        assert found.failures == sum(case.is_failure for case in found)
        assert all(case.result[0].message for case in budgets if case.result)


def test_every_report_fits_the_published_schema() -> None:
    import jsonschema

    validator = jsonschema.Draft202012Validator(report_schema())
    validator.check_schema(report_schema())
    infinite = report(measurements=(measurement("agreement.kl", math.nan, "nats", "lower"),))
    for one in (*(make() for make in EVERY.values()), with_baseline(with_batches(missed())), infinite):
        validator.validate(json.loads(report_json(one)))
    spoilt = json.loads(report_json(report()))
    assert not validator.is_valid({**spoilt, "verdict": "splendid"})
    assert not validator.is_valid({**spoilt, "schema_version": SCHEMA_VERSION + 1})
    assert not validator.is_valid({key: value for key, value in spoilt.items() if key != "name"})


def test_the_schema_on_the_page_is_the_code_s() -> None:
    file = Path(__file__).parent.parent / "docs" / "report.schema.json"
    assert json.loads(file.read_text(encoding="utf-8")) == report_schema(), (
        "openclaw-opt schema report -o docs/report.schema.json"
    )


@each
def test_benchmark_files_hold_measured_numbers_only(make: Callable[[], Report]) -> None:
    one = make()
    entries = {name: json.loads(benchmark(one, better)) for name, better in FILES.items()}
    for entry in [entry for rows in entries.values() for entry in rows]:
        assert {"name", "unit", "value", "extra"} <= set(entry) <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(entry["value"], float)
    names = [entry["name"] for entry in entries["benchmark.smaller.json"]]
    if one.name == "int8-rtx4090" and one.measurements == measured_rows():
        assert f"{one.name}: latency.decode.p50_ms" in names
        assert f"{one.name}: roofline.decode_ms" not in names  # a bound
        assert f"{one.name}: speedup" in [entry["name"] for entry in entries["benchmark.bigger.json"]]
        assert len(names) == len(set(names))


def printed(one: Report, width: int = 80, terminal: bool = False) -> str:
    out = io.StringIO()
    print_report(
        one, Console(file=out, width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    )
    return out.getvalue()


@each
def test_terminal_fits_80_columns_and_cuts_nothing(make: Callable[[], Report]) -> None:
    out = printed(make())
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "…" not in out
    assert not set(out) & set("│┃━─┏┓└┘╭╮")


def test_terminal_keeps_words_and_numbers_whole() -> None:
    words = set(printed(missed()).split())
    assert {
        "lower-tensorrt",
        "perplexity.recovery",
        "latency.ttft.p99_ms",
        "0.98999",
        "undecided",
        "10.4",
        "cache",
    } <= words
    assert "\x1b[" in printed(missed(), terminal=True)


@each
def test_summary_is_one_line(make: Callable[[], Report]) -> None:
    assert "\n" not in summary_line(make())


def test_summary_says_what_to_do() -> None:
    assert summary_line(report()).startswith(
        "int8-rtx4090: within budget: 2 of 2 budgets met. Next: copy build/int8-rtx4090"
    )
    assert "got 0.98999" in summary_line(missed())
    assert summary_line(unfinished()).endswith("run `openclaw-opt build build/int8-h100 --resume`")


@pytest.mark.slow
@each
def test_files_are_written_and_read_back_equal(make: Any, tmp_path: Path) -> None:
    one = make()
    (tmp_path / "report.json").write_text("what stood here before")
    names = write_report(one, tmp_path)
    assert (
        set(names)
        == {"report.json", "report.md", "report.html", "junit.xml", "benchmark.smaller.json", "benchmark.bigger.json"}
        == {path.name for path in tmp_path.iterdir()}
    )
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == one


def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        if len(list(tmp_path.iterdir())) == 8:  # the second new file
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("openclaw_opt.report.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(missed(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with pytest.raises(RecipeError, match="there is no report here"):
        read_report(tmp_path)
    whole = report_json(report())
    damages = {
        whole[: len(whole) // 2]: "truncated or not JSON",
        "[1]": "holds no JSON object",
        "{}": "states no schema_version",
        json.dumps({"schema_version": SCHEMA_VERSION + 1, "new": 1}): rf"schema version {SCHEMA_VERSION + 1}, .* up to {SCHEMA_VERSION}",
        whole.replace('"verdict": "within budget"', '"verdict": "splendid"'): "the report is damaged: `verdict`",
        whole.replace('"exit_code"', '"exit_kode"'): "the report is damaged: `exit_",
    }  # fmt: skip
    for text, message in damages.items():
        file.write_text(text)
        with pytest.raises(RecipeError, match=message) as error:
            read_report(file)
        assert error.value.where == str(file)
        assert error.value.exit_code == 2
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not JSON"):
        read_report(file)


def test_the_accuracy_with_a_budget_is_shown_first() -> None:
    assert views.accuracy_name(report()) == "perplexity.recovery"
    row = BudgetRecord(metric="agreement.top1", rule=">= 0.9", got=0.9712, result="met")
    bare_passes = tuple(one.model_copy(update={"accuracy": ()}) for one in passes())
    assert views.accuracy_name(report(budgets=(row,), passes=bare_passes)) == "agreement.top1"


def test_exact_passes_keep_the_accuracy_only_when_they_were_compared() -> None:
    after = [step.after for step in views.steps(report())]
    assert after == [1.0, 0.9941, 0.9868, 0.9868, 0.9868, None]
    waterfall = tables.waterfall(report())
    assert [row[2].text for row in waterfall.rows][-2:] == ["unchanged", tables.NONE]


def test_size_is_no_accuracy_and_belongs_to_what_was_built() -> None:
    assert [one.name for one in measured_rows() if views.is_accuracy(one)][-1] == "agreement.kl"
    assert [one.subject for one in headlines(report())][2] == "engine"
    graph_only = report(engine_files=(), engine_bytes=9_100_000, passes=passes()[:4], verdict="no budgets", budgets=())
    assert [one.subject for one in headlines(graph_only)][2] == "after export"
    assert "no budget was judged" in summary_line(graph_only)


def test_a_reason_is_said_once() -> None:
    row = BudgetRecord(metric="speedup", rule=">= 2", got=None, result="undecided", why=f"not measured: {NO_GPU}")
    one = report(verdict="undecided", exit_code=4, budgets=(row,), measurements=())
    for text in (html(one), markdown(one), junit(one), printed(one), summary_line(one)):
        assert "not measured: not measured" not in text
    assert f"speedup: wanted >= 2, got not measured: {NO_GPU}" in summary_line(one)
    allowed = one.model_copy(update={"verdict": "within budget", "exit_code": 0})
    assert "0 of 1 budgets met; speedup: wanted >= 2, got not measured" in summary_line(allowed)


def test_the_engine_latency_is_not_a_pass_latency() -> None:
    assert "Latency" not in [column.title for column in tables.waterfall(report()).columns]
    twice = tuple(one.model_copy(update={"latency": passes()[-1].latency}) for one in passes()[-2:])
    waterfall = tables.waterfall(report(passes=twice))
    assert [row[4].text for row in waterfall.rows] == ["2.41 ms", "2.41 ms"]
    assert "latency.decode.p50_ms after each pass" in html(report(passes=twice))


def priced(**changes: Any) -> CostRecord:
    whole: dict[str, Any] = {"target": "rtx4090", "title": "GeForce RTX 4090", "hourly_usd": 0.69, "price_source": "the recipe",
                             "per_million_usd": 0.46196, "basis": "measured on the engine"}  # fmt: skip
    return CostRecord.model_validate(whole | changes)


def test_cost_says_its_price_and_whether_it_is_a_bound() -> None:
    other = {"target": "l4", "title": "NVIDIA L4", "hourly_usd": 0.8}
    bound = priced(
        **other,
        per_million_usd=0.0031,
        basis="bound from the target's figures: batch 1",
        price_source="the target's row",
    )
    gone = priced(
        target="b200",
        title="NVIDIA B200",
        hourly_usd=None,
        per_million_usd=None,
        basis="",
        price_source="",
        not_measured="no price",
    )
    one = report(costs=(priced(), bound, gone))
    (first,) = cost(one)
    assert (first.value, first.measured) == ("$0.462", True)
    assert "$0.69 an hour" in first.detail
    assert [row[1].text for row in tables.costs(one).rows] == ["$0.462", "at least $0.00310", "not measured"]
    assert [row[3].text for row in tables.costs(one).rows] == ["$0.69", "$0.80", "no price"]
    for text in (Page(html(one)).text, markdown(one).replace("\\", "")):
        assert "at least $0.00310" in text
    (none,) = cost(report())
    assert not none.measured


def test_reading_a_report_loads_nothing_heavy() -> None:
    code = (
        "import sys, openclaw_opt.report, openclaw_opt.report.terminal, openclaw_opt.report.markdown, openclaw_opt.report.junit;"
        "import openclaw_opt.report.html; print([name for name in ('torch', 'rich', 'jinja2', 'numpy', 'vl_convert') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


UNITS = st.sampled_from(["ms", "s", "bytes", "ratio", "×", "tokens/s", "nats", ""])


@given(any_float, UNITS)
def test_every_number_has_a_text_with_its_unit(value: float, unit: str) -> None:
    text = numbers.quantity(value, unit)
    assert text.strip() == text != ""
    assert re.search(r"\d|∞|NaN", text)
    if unit not in ("", "ratio"):
        assert not re.search(r"[\d∞N]$", text)


@given(st.floats(-1e14, 1e14), st.integers(2, 12))
def test_significant_digits_are_within_half_a_unit(value: float, digits: int) -> None:
    shown = float(numbers.significant(value, digits).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.5001 * 10 ** (1 - digits), abs=1e-300)


@given(st.floats(0, 1e16))
def test_sizes_read_back(value: float) -> None:
    shown, unit = numbers.size(value).split()
    scale = 1000 ** ("B", "kB", "MB", "GB", "TB", "PB").index(unit)
    assert float(shown.replace(",", "")) * scale == pytest.approx(value, rel=0.0051, abs=0.51)


@given(st.floats(0, 1e7))
def test_seconds_read_back(value: float) -> None:
    text = numbers.seconds(value)
    scales = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
    parts = text.split()
    total = sum(float(n.replace(",", "")) * scales[unit] for n, unit in zip(parts[::2], parts[1::2], strict=True))
    assert total == pytest.approx(value, rel=0.0051, abs=30.5 if value >= 3600 else 0)


@given(st.floats(0, 2))
def test_a_percentage_is_round_only_when_it_is(ratio: float) -> None:
    assert (numbers.percent(ratio) == "100 %") == (ratio == 1)
    assert (numbers.percent(ratio) == "0 %") == (ratio == 0)


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.sampled_from(["ms", "ratio", "×", "tokens/s"]))
def test_the_side_of_a_bound_is_visible(value: float, bound: float, unit: str) -> None:
    text = numbers.beside(value, bound, unit)
    shown = float(re.split(r"[ ×]", text)[0].replace(",", ""))
    assert (shown > bound) == (value > bound)
    assert (shown < bound) == (value < bound)


@given(st.floats(0.97, 0.99))
def test_a_missed_budget_never_looks_met(value: float) -> None:
    row = BudgetRecord(metric="m", rule=">= 0.98", got=value, result="met" if value >= 0.98 else "missed")
    assert (float(numbers.got(row)) >= 0.98) == (row.result == "met")


def test_numbers_read_as_people_write_them() -> None:
    assert numbers.milliseconds(0.41234) == "0.412 ms"
    assert numbers.milliseconds(1234.5) == "1.23 s"
    assert numbers.seconds(134.2) == "2 min 14 s"
    assert numbers.seconds(3719) == "1 h 02 min"
    assert numbers.size(10_400_000) == "10.4 MB"
    assert numbers.size(999_950) == "1.00 MB"
    assert numbers.percent(0.999999) == "99.9999 %"
    assert numbers.count(6_700_000) == "6.70 M"
    assert numbers.missing("no GPU") == "not measured: no GPU"
    assert numbers.quantity(414.94, "tokens/s") == "414.9 tokens/s"
    assert numbers.interval(0.9845, 0.9887, "ratio") == "0.9845 to 0.9887"
    assert numbers.interval(402, 423.4, "tokens/s") == "402 to 423.4 tokens/s"
    assert numbers.interval(2.4, 2.52, "×") == "2.40× to 2.52×"
    assert numbers.interval(990, 1200, "ms") == "990 ms to 1.20 s"
    assert numbers.interval(None, 1.0, "") == ""


def test_the_content_policy_allows_this_page_and_nothing_else() -> None:
    source = rendered(hostile)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', source)
    assert policy is not None
    rules = policy[1].replace("&#39;", "'")
    for tag in ("style", "script"):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>", source, re.DOTALL)
        assert inline is not None
        digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in rules
    assert rules.startswith("default-src 'none';")
    assert "unsafe" not in rules
