"""`cold-start`: real processes that open a real engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from openclaw_opt.cli.progress import Silent
from openclaw_opt.metrics.cold_start import ColdStart
from openclaw_opt.pipeline import build
from openclaw_opt.recipe import load_recipe
from openclaw_opt.remeasure import opened, subject_of
from openclaw_opt.store import Store


@pytest.mark.slow
def test_processes_are_started_and_a_broken_engine_is_said(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    nothing = ('  perplexity.recovery: ">= 0.5"\n', "  {}\n")
    recipe = load_recipe(write_recipe(("metrics: [perplexity, size]", "metrics: []"), nothing))
    folder = tmp_path / "out"
    build(recipe, store=Store(tmp_path / "cache"), output=folder, hooks=Silent())
    _, engine, _ = opened(folder)
    subject = subject_of(folder, engine, recipe)
    whole, load = ColdStart().measure(subject)
    assert whole.value is not None
    assert load.value is not None
    assert 0 < load.value < whole.value
    assert whole.samples == 7
    (folder / "model.onnx").write_bytes(b"broken")
    for row in ColdStart().measure(subject):
        assert row.not_measured.startswith("a start ended with exit code 1: ")
