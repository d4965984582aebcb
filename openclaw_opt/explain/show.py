"""What `explain` found, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from openclaw_opt.comparison.spending import TIMES
from openclaw_opt.explain.proposals import Proposal, worst_layers
from openclaw_opt.explain.trial import Trial
from openclaw_opt.publish import RESOLVED
from openclaw_opt.records import BudgetRecord, Report
from openclaw_opt.report import numbers
from openclaw_opt.report.bought import pass_lines
from openclaw_opt.report.views import budget_line

SHOWN = 4


def budget_lines(report: Report) -> list[str]:
    """Each budget that does not hold, with the pass and the layers that spent it."""
    return [line for budget in report.budgets if budget.result != "met" for line in _budget(budget, report)]


def _budget(budget: BudgetRecord, report: Report) -> Iterator[str]:
    yield f"{budget.result}: {budget_line(budget)}"
    if budget.metric.split(".")[0] in TIMES:
        yield from _times(report)
        return
    record = next((one for one in report.passes if one.word == budget.spent_by), None)
    worst = worst_layers(record.layers if record else ())
    total = sum(noise for _, noise in worst)
    for layer, noise in worst[:SHOWN]:
        decibels = layer.output_sqnr_db if layer.output_sqnr_db is not None else layer.weight_sqnr_db
        yield f"  {layer.name}: {noise / total:.0%} of the noise that {budget.spent_by} adds, {decibels:.1f} dB"


def _times(report: Report) -> Iterator[str]:
    """What each pass bought, so that one sees where time is left."""
    lines = list(pass_lines(report))
    yield from (
        f"  {line}"
        for line in lines or ["not measured pass by pass: `latency` with `passes: true` times what each pass bought"]
    )
    if lines and not any(row.high is not None and row.high < 1 for record in report.passes for row in record.speedups):
        yield "  no pass made it slower"


def proposal_lines(found: Sequence[Proposal], trials: Sequence[Trial]) -> list[str]:
    """A proposal, why, its price, and what became of it where it was tried."""
    lines = []
    for number, one in enumerate(found, 1):
        lines.append(f"{number}. {' '.join(f'--set {shell(setting)}' for setting in one.settings)}")
        price = f"; price: {one.price}" if one.price else ""
        lines.append(f"   for {one.budget}: {one.why}{price}")
        lines += [f"   {line}" for trial in trials if trial.proposal == one for line in _outcome(trial)]
    return lines


def _outcome(trial: Trial) -> Iterator[str]:
    if trial.failed:
        yield f"tried: could not be built: {trial.failed}"
        return
    for budget in trial.budgets:
        yield f"tried on calibration data: {budget.metric} {budget.rule}: {budget.result}, {numbers.got(budget)}"
    if trial.size_bytes is not None:
        yield f"tried: {numbers.size(trial.size_bytes)} on disk"


def advice(report: Report, found: Sequence[Proposal], trials: Sequence[Trial], artifact: Path) -> str:
    """The last line: what to do."""
    missing = [one for one in report.budgets if one.result != "met"]
    if not missing:
        return f"{report.name}: nothing to explain: {'every budget is met' if report.budgets else 'it has no budgets'}"
    if not found:
        return (
            f"{report.name}: no change of the recipe is known that would help; change the budget, or measure elsewhere"
        )
    if not trials:
        return f"{report.name}: expected, not measured; try them: openclaw-opt explain {artifact} --try"
    good = next((one for one in trials if one.holds), None)
    if good is None:
        return f"{report.name}: none of the proposals tried meets every budget on calibration data"
    settings = " ".join(f"--set {shell(setting)}" for setting in good.proposal.settings)
    return f"{report.name}: next: openclaw-opt build --recipe {artifact / RESOLVED} {settings} -o {artifact}"


def shell(setting: str) -> str:
    """Quoted where a shell would take it apart."""
    return f"'{setting}'" if any(char in setting for char in " []{}*?") else setting
