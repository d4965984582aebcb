"""One trial: a point built and measured in this process. What runs it, and where, is the executor's business."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openclaw_opt.artifacts import Measurement
from openclaw_opt.comparison.budgets import Case, judge_budget
from openclaw_opt.errors import BudgetMissed, OptError
from openclaw_opt.pipeline import build
from openclaw_opt.recipe import Recipe, load_recipe
from openclaw_opt.records import BudgetRecord, PassRecord
from openclaw_opt.store import Store, digest
from openclaw_opt.turns import SharedTurns, Turns, flocked


@dataclass(frozen=True)
class Job:
    """A trial to run, as plain data: it travels to other processes and machines.

    Attributes:
        recipe: the resolved recipe, a file.
        output: folder of the artifact and its report.
        log: file that the process's own output goes to.
        target: name of the target's row, by which a node is chosen.
        early: end before export when the accuracy after the last lossy pass misses a budget.
        shared: others run at the same time; a timing waits until they pause.
    """

    name: str
    recipe: Path
    output: Path
    log: Path
    store: Path
    target: str
    early: bool
    shared: bool


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `rows` and `budgets` are what was measured; `full` says that a disk is."""

    name: str
    status: Literal["done", "pruned", "failed"]
    exit_code: int
    seconds: float
    verdict: str = ""
    error: str = ""
    rows: tuple[Measurement, ...] = ()
    budgets: tuple[BudgetRecord, ...] = ()
    full: bool = False
    note: str = ""


Tell = Callable[[float, str], None]
"""Part done (0 to 1) and what is being done."""


def run_trial(job: Job, tell: Tell) -> Outcome:
    """Build and measure the point. OptErrors are outcomes; a bug or an interrupt leaves as it is."""
    began = time.monotonic()
    try:
        recipe = load_recipe(job.recipe)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        # Waits for the process of a killed sweep, or of a node that was given up, to be gone.
        with flocked(job.output.parent / f".{job.output.name}.trial", alone=True):
            report = build(
                recipe,
                store=Store(job.store),
                output=job.output,
                hooks=_Watch(recipe, tell, early=job.early),
                turns=SharedTurns(turns_folder(job.output.parent)) if job.shared else Turns(),
            )
    except _OutOfBudget as end:
        return Outcome(
            job.name, "pruned", BudgetMissed.exit_code, time.monotonic() - began,
            verdict="budget missed", error=end.why, rows=end.rows, budgets=end.budgets,
        )  # fmt: skip
    except OptError as error:
        return Outcome(
            job.name, "failed", error.exit_code, time.monotonic() - began, error=str(error), full=_disk_is_full(error)
        )
    return Outcome(
        job.name, "done", report.exit_code, time.monotonic() - began,
        verdict=report.verdict, rows=report.measurements, budgets=report.budgets,
    )  # fmt: skip


def turns_folder(points: Path) -> Path:
    """Where the trials of one sweep on one machine take turns: local to the machine, whatever disk the sweep is on."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"openclaw-opt-{user}-{digest(str(points))[:12]}"


def _disk_is_full(error: OptError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


class _OutOfBudget(Exception):
    """No error: a point that needs no engine to be known."""

    def __init__(self, why: str, rows: tuple[Measurement, ...], budgets: tuple[BudgetRecord, ...]) -> None:
        super().__init__(why)
        self.why, self.rows, self.budgets = why, rows, budgets


class _Watch:
    """Hooks that tell the sweep where the trial is, and end it early when it cannot meet its budgets any more."""

    def __init__(self, recipe: Recipe, tell: Tell, *, early: bool) -> None:
        self._recipe, self._tell = recipe, tell
        lossy = [i for i, part in enumerate(recipe.passes) if part.kind == "lossy"]
        self._last_lossy = lossy[-1] if early and lossy else None
        self._records: list[PassRecord] = []
        self._title, self._done, self._total = "", 0, 1

    def started(self, title: str, position: int, total: int) -> None:
        self._title, self._done, self._total = title, position - 1, len(self._recipe.passes) + 1
        self.progress(0.0, "")

    def progress(self, fraction: float, text: str) -> None:
        self._tell(min(1.0, (self._done + fraction) / self._total), f"{self._title} {text}".strip())

    def finished(self, record: PassRecord) -> None:
        self._records.append(record)
        if record.index == self._last_lossy:
            self._stop_if_missed(record)

    def note(self, text: str) -> None:
        self._tell(self._done / self._total, text)

    def _stop_if_missed(self, record: PassRecord) -> None:
        measured = {row.name for row in record.accuracy}
        judged = [
            judge_budget(budget, Case(record.accuracy, self._records, undecided=self._recipe.undecided))
            for budget in self._recipe.budgets
            if budget.metric in measured
        ]
        missed = next((budget for budget in judged if budget.result == "missed"), None)
        if missed is None:
            return
        why = f"after `{record.word}` {missed.metric} is {missed.got:.4g}, the budget is {missed.rule}"
        raise _OutOfBudget(why, record.accuracy, tuple(judged))
