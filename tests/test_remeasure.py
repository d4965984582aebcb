"""`measure` and `profile`: what a finished artifact gives on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openclaw_opt.cli.progress import Silent
from openclaw_opt.errors import RecipeError
from openclaw_opt.pipeline import build
from openclaw_opt.profiling import layers_of, profile
from openclaw_opt.publish import MANIFEST, foreign_files
from openclaw_opt.recipe import load_recipe
from openclaw_opt.remeasure import remeasure
from openclaw_opt.report import read_report
from openclaw_opt.report.html import html
from openclaw_opt.store import Store, sha256_file

METRICS = ("metrics: [perplexity, size]", "metrics: [perplexity, size, {latency: {time_box_s: 0.2, new_tokens: 8}}]")


@pytest.fixture
def built(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "built"
    build(load_recipe(write_recipe(METRICS)), store=Store(tmp_path / "cache"), output=folder, hooks=Silent())
    return folder


@pytest.mark.slow
def test_new_rows_are_appended_and_the_manifest_stays_right(built: Path) -> None:
    before = read_report(built)
    first, second = remeasure(built), remeasure(built)
    after = read_report(built)
    assert after.remeasured == (first, second)
    assert after.model_copy(update={"remeasured": ()}) == before
    names = {row.name for row in first.measurements if row.value is not None}
    assert {"latency.ttft.p50_ms", "size_mib", "speedup"} <= names
    assert not any(name.startswith("perplexity") for name in names)
    assert first.machine.title == before.machine.title
    page, summary = (built / "report.html").read_text(), (built / "report.md").read_text()
    assert 'id="again"' in page
    assert page.count(first.started.removesuffix("+00:00").replace("T", " ")) >= len(first.measurements)
    assert "Measured again after the build" in summary
    assert 'id="again"' not in html(before)
    files = json.loads((built / MANIFEST).read_text())["files"]
    assert all(sha256_file(built / name) == digest for name, digest in files.items())
    assert foreign_files(built) == []


def test_a_folder_without_an_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no report here"):
        remeasure(tmp_path)
    with pytest.raises(RecipeError, match="the folder holds no engine and no model"):
        profile(tmp_path, tmp_path / "trace.json")


@pytest.mark.slow
def test_the_trace_holds_every_layer_and_the_table_its_kernels(built: Path, tmp_path: Path) -> None:
    rows = profile(built, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert all({"name", "ph", "ts", "pid"} <= event.keys() for event in events if event["ph"] == "X")
    layers = {row.layer: row for row in rows}
    assert {f"layers.{i}.{part}" for i in (0, 1) for part in ("qkv", "o", "gate_up", "down")} <= layers.keys()
    assert "MatMulIntegerToFloat" in layers["layers.0.down"].kernels
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert [row.microseconds for row in rows] == sorted((row.microseconds for row in rows), reverse=True)


def test_layers_are_summed_by_their_names() -> None:
    events = [
        {"cat": "Node", "name": "layers.0.o/MatMul", "dur": 3, "args": {"op_name": "MatMulNBits"}},
        {"cat": "Node", "name": "layers.0.o/Add", "dur": 1, "args": {"op_name": "Add"}},
        {"cat": "Session", "name": "model_run", "dur": 99, "args": {}},
        {"cat": "Node", "name": "embed/Gather", "dur": 4, "args": {"op_name": "Gather"}},
    ]
    assert [(row.layer, row.kernels, row.microseconds, row.share) for row in layers_of(events)] == [
        ("layers.0.o", ("MatMulNBits", "Add"), 4.0, 0.5),
        ("embed", ("Gather",), 4.0, 0.5),
    ]


@pytest.mark.slow
def test_a_model_is_profiled_by_pytorch(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    recipe = load_recipe(
        write_recipe(("metrics: [perplexity, size]", "metrics: []"), ('  perplexity.recovery: ">= 0.5"\n', "  {}\n"))
    )
    build(recipe, store=Store(tmp_path / "cache"), output=folder, until="model", hooks=Silent())
    layers = {row.layer for row in profile(folder, tmp_path / "trace.json")}
    assert {"embed", "layers.0.qkv", "layers.1.norm_mlp", "head"} <= layers
