"""Proposals tried: legal ones built, and the budgets judged on calibration data. Evaluation data is never looked at.

A number on calibration data is flattering, since scales were found there; it ranks proposals, and the build decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from openclaw_opt.comparison.budgets import Case, judge_budget
from openclaw_opt.errors import OptError, RecipeError
from openclaw_opt.explain.proposals import Proposal
from openclaw_opt.measure import measure
from openclaw_opt.pipeline import run_steps
from openclaw_opt.plan import check_recipe, make_plan
from openclaw_opt.recipe import Recipe, load_recipe
from openclaw_opt.records import BudgetRecord
from openclaw_opt.store import Store

if TYPE_CHECKING:
    from openclaw_opt.hooks import Hooks


@dataclass(frozen=True)
class Trial:
    """A proposal and what became of it on calibration data: each budget judged, or why it could not be built."""

    proposal: Proposal
    budgets: tuple[BudgetRecord, ...] = ()
    size_bytes: int | None = None
    failed: str = ""

    @property
    def holds(self) -> bool:
        """Every budget that could be judged on calibration data was met."""
        return not self.failed and bool(self.budgets) and all(one.result == "met" for one in self.budgets)


def legal(proposals: Iterable[Proposal], file: Path) -> tuple[Proposal, ...]:
    """Those that the recipe reader and every check accept; the others are no proposals."""
    return tuple(one for one in proposals if _legal(one, file))


def _legal(proposal: Proposal, file: Path) -> bool:
    try:
        check_recipe(load_recipe(file, settings=proposal.settings))
    except RecipeError:
        return False
    return True


def tried(proposals: Sequence[Proposal], file: Path, store: Store, hooks: Hooks) -> Iterator[Trial]:
    """Build each proposal and judge it on the calibration data.

    Raises:
        RecipeError: the recipe has no calibration data.
    """
    if load_recipe(file).calibration is None:
        raise RecipeError(
            "nothing to try on: the recipe has no calibration data", where=str(file), fix="add `data.calibration`"
        )
    for proposal in proposals:
        yield _trial(proposal, load_recipe(file, settings=proposal.settings), store, hooks)


def _trial(proposal: Proposal, recipe: Recipe, store: Store, hooks: Hooks) -> Trial:
    judged = {proposal.budget, *(budget.metric for budget in recipe.budgets)}
    metrics = tuple(one for one in recipe.metrics if judged & set(one.measurement_names()))
    on_calibration = replace(recipe, evaluation=recipe.calibration, metrics=metrics, on_calibration=True)
    try:
        plan = make_plan(on_calibration, store)
        records, artifact = run_steps(plan, plan.steps, store, None, hooks)
        measurements = measure(plan, plan.steps, artifact, store, hooks)
    except OptError as error:
        return Trial(proposal, failed=str(error).splitlines()[0])
    case = Case(measurements, records, undecided=recipe.undecided)  # of calibration data: no baseline is comparable
    budgets = tuple(judge_budget(budget, case) for budget in recipe.budgets)
    return Trial(proposal, budgets, records[-1].size_bytes)
