"""What a metric is. One file a number, or a family of numbers measured together; the file's name is the recipe's word.

A metric is a frozen record whose fields are its options. `numbers` says before any work which measurements it gives, so that
a budget on a name that nothing measures is a mistake in the recipe. `measure` gives a Measurement for every name (one for
each condition where the number is stated `by` one): a value, or the reason why there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from openclaw_opt.artifacts import Measurement, Task

if TYPE_CHECKING:
    from openclaw_opt.errors import MachineError
    from openclaw_opt.metrics.subject import Subject
    from openclaw_opt.numerics.stats import Estimate


EVERY_TASK: tuple[Task, ...] = ("decoder", "encoder", "vision")


class Number(NamedTuple):
    """One measurement that a metric gives, and for which tasks."""

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    meaning: str
    tasks: tuple[Task, ...] = EVERY_TASK
    of_checkpoint: bool = False
    """The checkpoint has this number too, so that a budget can be stated `against: checkpoint`."""
    by: str = ""
    """The condition under which it is stated several times (`at` of its rows), e.g. `batch`; no budget names such a number."""


class Items(NamedTuple):
    """One number an evaluation item and what each counts, in the order of the data; the row's value is their Σ/Σ."""

    items: Iterable[float]
    weights: Iterable[float]

    def rounded(self) -> dict[str, tuple[float, ...]]:
        """To 8 significant digits: a sum keeps 7 of them, and report.json its size."""
        return {
            "items": tuple(float(f"{one:.8g}") for one in self.items),
            "weights": tuple(float(f"{one:.8g}") for one in self.weights),
        }


class Metric(BaseModel):
    """Options as fields; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    summary: ClassVar[str]
    """One line for `openclaw-opt list metrics`."""
    for_tasks: ClassVar[tuple[Task, ...]] = EVERY_TASK
    needs_data: ClassVar[bool] = False
    """Measured on the evaluation data, against the reference: accuracy. Such a metric is measured after lossy passes too."""
    timed: ClassVar[bool] = False
    """Measured with a clock: nothing else of a sweep may run meanwhile."""
    numbers: ClassVar[tuple[Number, ...]]
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "artifact"
    """What two numbers must share to be compared: nothing but the model and its data, the target too, or the machine too."""
    effort: ClassVar[frozenset[str]] = frozenset()
    """Options that change how long is measured, and not what: numbers that differ in them can be compared."""

    def check(self) -> None:
        """Raises RecipeError for options that cannot be done, before any work and without torch."""

    def missing(self) -> MachineError | None:
        """What this machine lacks to measure it; None where nothing."""
        return None

    def measure(self, subject: Subject) -> list[Measurement]:
        """One Measurement for every number of the subject's task."""
        raise AssertionError(f"{type(self).__name__} measures nothing")

    @classmethod
    def measurement_names(cls, task: Task | None = None) -> list[str]:
        """What it measures, for one task or for all."""
        return [number.name for number in cls.numbers if task is None or task in number.tasks]

    @classmethod
    def budget_names(cls) -> list[str]:
        """What budgets can name: numbers that are stated once."""
        return [number.name for number in cls.numbers if not number.by]

    @classmethod
    def number(cls, name: str) -> Number:
        """The row of that name; KeyError is a bug of the metric."""
        return {number.name: number for number in cls.numbers}[name]

    @classmethod
    def row(
        cls,
        name: str,
        estimate: Estimate | float,
        *,
        subject: str = "engine",
        note: str = "",
        items: Items | None = None,
    ) -> Measurement:
        """A measured row, with what it is made of where it is made of items."""
        number = cls.number(name)
        facts: dict[str, object] = {"name": name, "unit": number.unit, "better": number.better}
        facts |= {"subject": subject, "note": note, **(items.rounded() if items is not None else {})}
        if isinstance(estimate, (int, float)):
            return Measurement.model_validate({**facts, "value": float(estimate)})
        ends = {"low": estimate.low, "high": estimate.high, "samples": estimate.samples}
        return Measurement.model_validate({**facts, "value": estimate.value, **ends})

    @classmethod
    def unmeasured(cls, name: str, why: str, *, subject: str = "engine") -> Measurement:
        """A row without a value."""
        number = cls.number(name)
        return Measurement(
            name=name, value=None, unit=number.unit, better=number.better, subject=subject, not_measured=why
        )

    @classmethod
    def all_unmeasured(cls, task: Task, why: str, *, subject: str = "engine") -> list[Measurement]:
        """Every row of the task, without a value and with the reason."""
        return [cls.unmeasured(name, why, subject=subject) for name in cls.measurement_names(task)]

    @property
    def word(self) -> str:
        """The recipe's word for this metric: the name of its file."""
        return type(self).__module__.rsplit(".", 1)[1].replace("_", "-")
