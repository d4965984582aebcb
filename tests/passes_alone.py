"""A pass run by itself on a tiny checkpoint, without a recipe and a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openclaw_opt.artifacts import Model
from openclaw_opt.data import Source
from openclaw_opt.models import calibrate
from openclaw_opt.models.calibrate import Calibration
from openclaw_opt.models.load import load_model
from openclaw_opt.passes import Done, Work
from openclaw_opt.targets import TARGETS
from tests.tiny import open_tiny, write_checkpoint

CPU = replace(TARGETS["l4"], name="host", title="a CPU", compute=(0, 0), backend="onnxruntime", peak={})
TEXT = Source.model_construct(split="calibration", samples=16, length=64, seed=0)


def silent(part: float, text: str) -> None:
    assert 0 <= part <= 1
    assert text


class Alone:
    """A checkpoint in our layout, loaded once, and passes run on it or on what came before."""

    def __init__(self, folder: Path, family: str, **changes: Any) -> None:
        self.folder, self.count = folder, 0
        self.checkpoint = open_tiny(write_checkpoint(folder / "checkpoint", family, **changes))
        self.model, _, _ = load_model(self.checkpoint, folder / "model")

    def __call__(self, part: Any, model: Model | None = None, batches: Calibration | None = None) -> Done[Model]:
        """`batches` stand for the calibration data."""
        self.count += 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibrate, "load_calibration", lambda *_: batches)
            source = None if batches is None else TEXT
            out, cache = self.folder / f"out{self.count}", self.folder / "cache"
            work = Work(out, self.checkpoint, CPU, "onnxruntime", source, cache, progress=silent)
            made: Done[Model] = part.run(model or self.model, work)
            return made
