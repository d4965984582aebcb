"""What a recipe may say: the top level, as the models that read it. Passes, metrics and data sources bring their own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RULE = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*")


class TargetChoice(BaseModel):
    """`target:` written as a mapping."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    name: str
    """A row of the target table, or `host`."""
    hourly_usd: float | None = Field(None, gt=0)
    """Price of one card for an hour in US dollars; replaces the row's."""


class DataSection(BaseModel):
    """`data:`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    calibration: dict[str, Any] | str | None = None
    """A data source: what passes may look at."""
    evaluation: dict[str, Any] | str | None = None
    """A data source: what accuracy is measured on; may share nothing with the calibration data."""


class Grammar(BaseModel):
    """The top level of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    description: str = ""
    """One line for `openclaw-opt list recipes` and the report."""
    extends: str | None = None
    """Another recipe, relative to this file. Mappings are merged key by key; lists are replaced."""
    model: str
    """A folder (`./…`, `../…` or absolute; relative to the recipe's file), `package:NAME/SUBFOLDER` for a checkpoint inside an
    installed Python package, or a Hugging Face hub id."""
    target: str | TargetChoice | list[str | TargetChoice] = "host"
    """What to build for: a row of the target table, or `host` for this machine. A list of cards that one TensorRT-RTX builds
    for, `[rtx4090, rtx3060]`, is one job: see `engines` of `build`. Bounds and prices are of the first."""
    data: DataSection = DataSection()
    """Where calibration and evaluation data come from."""
    passes: list[str | dict[str, Any]]
    """The pipeline, in order: a pass's name, or its name with options. `load` comes first and may be left out."""
    metrics: list[str | dict[str, Any]] = []
    """What is measured, by name or by name with options."""
    budgets: dict[str, str] = {}
    """Measurement name to rule, e.g. `perplexity.recovery: ">= 0.98"`. A missed budget ends the build with exit code 4."""
    undecided: Literal["fail", "pass"] = "fail"
    """Whether a budget that could not be decided (not measured, too few samples) fails the build."""
    seed: int = Field(0, ge=0)
    """Seed of everything that draws."""


@dataclass(frozen=True)
class Budget:
    """One line of `budgets:`."""

    metric: str
    op: str
    bound: float
    text: str

    def holds(self, value: float) -> bool:
        return {
            ">=": value >= self.bound,
            "<=": value <= self.bound,
            ">": value > self.bound,
            "<": value < self.bound,
        }[self.op]
