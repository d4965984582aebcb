"""What a recipe may say: the top level, as the models that read it. Passes, metrics and data sources bring their own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
RULE = re.compile(rf"\s*(>=|<=|>|<)\s*({NUMBER})\s*")
RELATIVE_RULE = re.compile(rf"\s*(>=|<=|>|<)\s*({NUMBER})\s*(%?)\s*")
AMOUNT = re.compile(rf"\s*({NUMBER})\s*(%?)\s*")
PRESET = "preset"
Against = Literal["nothing", "checkpoint", "baseline"]
Undecided = Literal["fail", "pass"]


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
    """A data source: what accuracy is measured on; may share nothing with the calibration or training data."""
    training: dict[str, Any] | str | None = None
    """A data source: what `distill` trains on; without it the calibration data, but for the part held back."""


class BudgetChoice(BaseModel):
    """A budget written as a mapping."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    rule: str | None = None
    """A comparison with a number: `">= 0.98"`. With `against` the number is the change from there: `"<= +1 %"` of it, or
    without `%` in the metric's unit. May be left out with `against`: then it is `no worse`."""
    against: Against = "nothing"
    """What the number is compared with: nothing, the untouched checkpoint, or the report that `build --baseline` names."""
    tolerance: float | str | None = None
    """Moves the bound to the lenient side: a number in the metric's unit, or `"1 %"` of what the rule is held to."""
    margin: float | str | None = None
    """In place of `rule` and `tolerance`: the number must be shown to be equivalent, no further off than this in either direction."""
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    """Confidence of the interval that decides; 0.95, for percentiles of latency 0.99."""
    undecided: Undecided | None = None
    """For this budget, in place of the recipe's `undecided`."""


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
    budgets: dict[str, Any] = {}
    """Measurement name to rule, e.g. `perplexity.recovery: ">= 0.98"`, or to a mapping, below; and `preset:` with the name of
    a preset or a list of names. A missed budget ends the build with exit code 4."""
    undecided: Undecided = "fail"
    """Whether a budget that could not be decided (not measured, too few samples, an interval over the bound) fails the build."""
    seed: int = Field(0, ge=0)
    """Seed of everything that draws."""


@dataclass(frozen=True)
class Amount:
    """A number in a metric's unit, or a percentage."""

    value: float
    percent: bool = False

    def of(self, base: float) -> float:
        """In the unit of `base`."""
        return abs(base) * self.value / 100 if self.percent else self.value

    def __str__(self) -> str:
        return f"{self.value:g} %" if self.percent else f"{self.value:g}"


@dataclass(frozen=True)
class Budget:
    """One line of `budgets:`."""

    metric: str
    op: str
    """Empty where the budget is a margin."""
    bound: float
    """The number of the rule: a value, or with `against` a change."""
    text: str
    """The rule as written, without what it is held against."""
    percent: bool = False
    """The bound is a percentage of what it is held against."""
    against: Against = "nothing"
    tolerance: Amount | None = None
    margin: Amount | None = None
    confidence: float | None = None
    undecided: Undecided | None = None

    def holds(self, value: float) -> bool:
        """Does a value keep an absolute rule as written?"""
        return holds(self.op, value, self.bound)

    def limit(self, base: float | None) -> float:
        """The number that a value is held to, with what it is compared with and the tolerance worked in."""
        change = Amount(self.bound, self.percent)
        limit = self.bound if base is None else base + change.of(base)
        slack = self.tolerance.of(limit if base is None else base) if self.tolerance else 0.0
        return limit + slack if self.op.startswith("<") else limit - slack

    def __str__(self) -> str:
        """The whole rule as people read it: `<= +1 % vs baseline`."""
        words = f"within {self.margin}" if self.margin else self.text
        lenient = f" (tolerance {self.tolerance})" if self.tolerance else ""
        return words + (f" vs {self.against}" if self.against != "nothing" else "") + lenient

    def written(self) -> str | dict[str, Any]:
        """As a recipe says it; reads back to the same budget."""
        pairs: dict[str, Any] = {
            "rule": self.text or None,
            "against": None if self.against == "nothing" else self.against,
            "tolerance": str(self.tolerance) if self.tolerance else None,
            "margin": str(self.margin) if self.margin else None,
            "confidence": self.confidence,
            "undecided": self.undecided,
        }
        stated = {key: value for key, value in pairs.items() if value is not None}
        return self.text if set(stated) == {"rule"} else stated


def holds(op: str, value: float, bound: float) -> bool:
    """The comparison of a rule."""
    return {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound}[op]
