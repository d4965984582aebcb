"""Points chosen by Optuna: multi-objective TPE, budgets as constraints, a journal in the sweep's folder.

Each suggestion is a function of the seed, its number and the results before it, and results are told in the order of the
trials' numbers, generation by generation: the same seed gives the same points where the results are the same. A measured
latency is the same only from the cache of the machine that measured it; sizes, bounds and accuracies are the same anywhere.

A trial that was killed is suggested again with the values it had. Two trials with the same recipe are one point.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.records import BudgetRecord
from openclaw_opt.sweep.axes import Axis, Choice, Range, Value, name_of
from openclaw_opt.sweep.points import Base, Illegal, Point, check_point
from openclaw_opt.sweep.state import ObjectiveRecord, PointRecord

if TYPE_CHECKING:
    import optuna

JOURNAL = "optuna.journal"
STUDY = "sweep"
LEGAL = "legal"
"""The constraint that the model and target set, beside the budgets."""
STARTUP = 6
"""Random points before the sampler models anything."""
TRIES = 20
"""For each point asked for, so many suggestions may be known or illegal before the space counts as used up."""
SPREAD = 100_003
"""Between the seeds of two sweeps, so that `seed + number` of one is not that of the other."""


def need_optuna() -> None:
    """Raise MachineError where the extra is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MachineError("--search needs optuna", fix="pip install 'openclaw-opt[sweep]'") from error


class Search:
    """Asks for generations of points and is told how they went.

    Args:
        number: distinct points to try, those of earlier runs included.
        width: trials of a generation.
        made_of: digest of checkpoint, tools and code, on which all results rest.

    Raises:
        RecipeError: the folder's journal is of another space, objective, seed, checkpoint or version.
    """

    def __init__(  # noqa: PLR0913 - a search is as much as this
        self,
        base: Base,
        axes: Sequence[Axis],
        ranges: Sequence[Range],
        *,
        objectives: Sequence[ObjectiveRecord],
        number: int,
        width: int,
        seed: int,
        folder: Path,
        made_of: str,
    ) -> None:
        self._base, self._axes, self._ranges = base, tuple(axes), tuple(ranges)
        self._objectives, self._number, self._width, self._seed = tuple(objectives), number, width, seed
        self._study = _open_study(folder / JOURNAL, objectives)
        self._agree(folder, made_of)
        self._trials: dict[str, list[optuna.Trial]] = {}
        self.illegal: list[Illegal] = []
        self.note = ""

    def again(self, points: Sequence[PointRecord]) -> None:
        """Points to try once more, before any new ones: they failed, or their reports are gone."""
        whole = {one.path for one in self._ranges if one.whole}
        texts = {axis.path for axis in self._axes}
        for point in points:
            given = {
                path: text if path in texts else int(text) if path in whole else float(text)
                for path, text in point.choices.items()
            }
            self._study.enqueue_trial(given)

    def ask(self, known: Mapping[str, PointRecord]) -> list[Point]:
        """The next generation's points, none when the search is over.

        Args:
            known: points that have ended, by name; a suggestion of one of them is told its result at once.
        """
        self._trials = {}
        points: dict[str, Point] = {}
        pending = [trial.number for trial in self._study.trials if trial.state == _state("RUNNING")]
        ended = {name for name, point in known.items() if point.status in ("done", "pruned", "failed")}
        tries = 0
        while len(ended | points.keys()) < self._number or pending:
            if not pending and points and len(self._study.trials) % self._width == 0:
                break
            if tries == TRIES * self._number:
                self.note = f"the space has no more points: {len(ended)} of {self._number} were found"
                break
            tries += 1
            trial = self._trial(pending.pop(0) if pending else None)
            point = self._point(trial)
            if point is None:
                self._tell_illegal(trial)
            elif point.name in ended:
                self._tell_one(trial, known[point.name])
            else:
                points[point.name] = point
                self._trials.setdefault(point.name, []).append(trial)
        return list(points.values())

    def tell(self, known: Mapping[str, PointRecord]) -> None:
        """Results of the generation, told in the order of the trials."""
        told = [(trial, known[name]) for name, trials in self._trials.items() for trial in trials]
        for trial, point in sorted(told, key=lambda pair: pair[0].number):
            self._tell_one(trial, point)
        self._trials = {}

    def _trial(self, number: int | None) -> optuna.Trial:
        import optuna

        trials = self._study.get_trials(deepcopy=False)
        at = len(trials) if number is None else number
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(self._seed * SPREAD + at) % 2**32, multivariate=True, n_startup_trials=STARTUP, constant_liar=True
        )
        if number is None:
            return self._study.ask()
        return optuna.Trial(self._study, trials[number]._trial_id)  # one that a killed run had asked for

    def _point(self, trial: optuna.Trial) -> Point | None:
        choice = self._choice(trial)
        name = name_of(choice)
        try:
            found = check_point(name, choice, self._base.at(choice))
        except RecipeError as error:  # only this combination is at fault: all values were checked before
            found = Illegal(name, {axis.path: value.text for axis, value in choice}, error)
        if isinstance(found, Point):
            return found
        if all(found.name != other.name for other in self.illegal):
            self.illegal.append(found)
        return None

    def _choice(self, trial: optuna.Trial) -> Choice:
        chosen: list[tuple[Axis | Range, Value]] = []
        for axis in self._axes:
            text = trial.suggest_categorical(axis.path, [value.text for value in axis.values])
            chosen.append((axis, next(value for value in axis.values if value.text == text)))
        for one in self._ranges:
            if one.whole:
                number: float = trial.suggest_int(one.path, int(one.low), int(one.high), step=int(one.step or 1))
            else:
                number = trial.suggest_float(one.path, one.low, one.high, step=one.step)
            chosen.append((one, one.at(number)))
        return tuple(chosen)

    def _dear(self) -> list[float]:
        """Worse than anything, in each objective."""
        return [math.inf if objective.better == "lower" else -math.inf for objective in self._objectives]

    def _tell_illegal(self, trial: optuna.Trial) -> None:
        """Told as far out of bounds, so that the sampler learns where it may not go."""
        trial.set_constraint(LEGAL, 1.0)
        self._study.tell(trial, self._dear())

    def _tell_one(self, trial: optuna.Trial, point: PointRecord) -> None:
        """A point without an engine counts as infinitely dear: its accuracy is known, and that it is out of budget."""
        rows = [point.values.get(objective.metric) for objective in self._objectives]
        pairs = zip(rows, self._dear(), strict=True)
        found = [worst if row is None or row.value is None else row.value for row, worst in pairs]
        if point.status not in ("done", "pruned") or (point.status == "done" and not all(map(math.isfinite, found))):
            self._study.tell(trial, state=_state("FAIL"))
            return
        trial.set_constraint(LEGAL, -1.0)
        for budget in point.budgets:
            trial.set_constraint(budget.metric, violation(budget))
        self._study.tell(trial, found)

    def _agree(self, folder: Path, made_of: str) -> None:
        """The journal's space is this one; said once in it."""
        space = {
            "axes": [axis.where for axis in self._axes] + [one.where for one in self._ranges],
            "objectives": [objective.model_dump() for objective in self._objectives],
            "seed": self._seed,
            "width": self._width,
            "checkpoint or version": made_of,
        }
        known = self._study.user_attrs.get("space")
        if known is None:
            self._study.set_user_attr("space", json.loads(json.dumps(space)))
        elif known != space:
            changed = ", ".join(sorted(key for key in space if known.get(key) != space[key]))
            raise RecipeError(
                f"this folder holds a search with other {changed}",
                where=str(folder),
                fix="go on with the same command, or give another --output",
            )


def violation(budget: BudgetRecord) -> float:
    """How far a budget is missed: above 0 is infeasible, as Optuna has it. What could not be decided counts for nothing."""
    if budget.result == "undecided":
        return 0.0
    far = abs(budget.got - budget.bound) if budget.got is not None and budget.bound is not None else 1.0
    return max(far, 1e-12) if budget.result == "missed" else -far


def _open_study(journal: Path, objectives: Sequence[ObjectiveRecord]) -> optuna.Study:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _mend(journal)
    return optuna.create_study(
        study_name=STUDY,
        directions=["maximize" if objective.better == "higher" else "minimize" for objective in objectives],
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
        load_if_exists=True,
    )


def _mend(journal: Path) -> None:
    """After a kill: no half line at the end, no lock that nobody holds. The sweep's own lock is ours."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"{journal}.lock").unlink()
    if journal.is_file():
        text = journal.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            journal.write_bytes(whole)


def _state(name: str) -> optuna.trial.TrialState:
    import optuna

    return optuna.trial.TrialState[name]
