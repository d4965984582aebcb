"""Budgets → verdict and exit code; records → the Report. Pure but for reading the machine's name."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from openclaw_opt.artifacts import Artifact, Engine, Graph, Measurement, Model
from openclaw_opt.errors import BudgetMissed, MachineError
from openclaw_opt.plan import Plan, source_facts
from openclaw_opt.recipe import Recipe, resolved_yaml
from openclaw_opt.recipe_grammar import Budget
from openclaw_opt.records import BudgetRecord, BudgetResult, MachineRecord, PassRecord, Report, Verdict
from openclaw_opt.targets import cpu_title, host
from openclaw_opt.versions import versions


def judge(
    plan: Plan,
    records: Sequence[PassRecord],
    artifact: Artifact,
    measurements: Sequence[Measurement],
    *,
    started: str,
    seconds: float,
    peak_bytes: int,
    partial: bool,
    output: Path,
) -> Report:
    """The whole report of a build."""
    recipe = plan.recipe
    engine = artifact.facts if isinstance(artifact, Engine) else None
    unfinished = engine is not None and not engine.finished
    budgets = () if partial else tuple(judge_budget(budget, measurements, records) for budget in recipe.budgets)
    verdict = verdict_of(recipe, budgets, unfinished=unfinished, partial=partial)
    return Report(
        name=recipe.name,
        description=recipe.description,
        verdict=verdict,
        exit_code=exit_code_of(verdict),
        started=started,
        seconds=seconds,
        model=str(recipe.located.data["model"]),
        family=plan.spec.family,
        task=plan.spec.task,
        parameters=next((r.parameters for r in records if r.parameters), 0),
        checkpoint_bytes=sum(path.stat().st_size for path in plan.listing.weights),
        checkpoint_dtype=plan.listing.dtype,
        target=recipe.target.name,
        target_title=", ".join(target.title for target in recipe.targets),
        targets=tuple(target.name for target in recipe.targets) if recipe.others else (),
        target_facts=asdict(recipe.target),
        backend=recipe.backend,
        engine_tool=engine.tool if engine else "",
        engine_files=engine.files if engine else (),
        engine_bytes=records[-1].size_bytes if engine is not None and engine.finished else None,
        finished=not unfinished,
        finish_command=engine.finish_command.replace("ARTIFACT", str(output)) if engine else "",
        unfinished_why=engine.unfinished_why if engine else "",
        next_step=next_step_of(verdict, budgets, artifact, output),
        budgets=budgets,
        measurements=tuple(measurements),
        passes=tuple(records),
        receipt=engine.receipt if engine else (),
        kernels=engine.kernels if engine else (),
        notes=engine.notes if engine else (),
        peak_bytes=peak_bytes,
        machine=this_machine(),
        versions=versions(),
        data={
            role: source_facts(source)
            for role, source in (("calibration", recipe.calibration), ("evaluation", recipe.evaluation))
            if source is not None
        },
        checkpoint_files=plan.checkpoint.files,
        recipe=resolved_yaml(recipe),
    )


def judge_budget(budget: Budget, measurements: Sequence[Measurement], records: Sequence[PassRecord]) -> BudgetRecord:
    """Met, missed, or undecided when there is nothing to compare with."""
    found = next((m for m in measurements if m.name == budget.metric), None)
    if found is None or found.value is None:
        why = found.not_measured if found is not None else "the pipeline ended before it could be measured"
        return BudgetRecord(metric=budget.metric, rule=budget.text, got=None, result="undecided", why=why)
    met = budget.holds(found.value)
    result: BudgetResult = "met" if met else "missed"
    ends = [end for end in (found.low, found.high) if end is not None]
    close = any(budget.holds(end) != met for end in ends)
    why = (
        f"the 95 % interval [{found.low:.4g}, {found.high:.4g}] reaches over the bound"
        if close and len(ends) == 2
        else ""
    )
    return BudgetRecord(
        metric=budget.metric,
        rule=budget.text,
        got=found.value,
        unit=found.unit,
        result=result,
        why=why,
        spent_by="" if met else spender(budget.metric, records),
    )


def spender(metric: str, records: Sequence[PassRecord]) -> str:
    """The pass after which the metric fell most; empty where it was not measured pass by pass."""
    steps = [(r.word, m) for r in records for m in r.accuracy if m.name == metric and m.value is not None]
    if not steps:
        return ""
    start = 1.0 if metric.endswith(".recovery") or metric.startswith("agreement") else steps[0][1].value or 0.0
    losses, before = [], start
    for word, measured in steps:
        value = measured.value or 0.0
        losses.append((before - value if measured.better == "higher" else value - before, word))
        before = value
    loss, word = max(losses)
    return word if loss > 0 else ""


def verdict_of(recipe: Recipe, budgets: Sequence[BudgetRecord], *, unfinished: bool, partial: bool) -> Verdict:
    """A missed budget outweighs an unfinished engine, which outweighs what could not be decided."""
    results = {budget.result for budget in budgets}
    if "missed" in results:
        return "budget missed"
    if unfinished:
        return "not finished"
    if "undecided" in results and recipe.undecided == "fail":
        return "undecided"
    return "within budget" if budgets and not partial else "no budgets"


def exit_code_of(verdict: Verdict) -> int:
    """See the table of exit codes in the README."""
    codes = {
        "budget missed": BudgetMissed.exit_code,
        "undecided": BudgetMissed.exit_code,
        "not finished": MachineError.exit_code,
    }
    return codes.get(verdict, 0)


def next_step_of(verdict: Verdict, budgets: Sequence[BudgetRecord], artifact: Artifact, output: Path) -> str:
    """The one thing to do next."""
    if isinstance(artifact, Engine) and not artifact.facts.finished:
        return f"on the GPU host: {artifact.facts.finish_command.replace('ARTIFACT', str(output))}"
    if verdict in ("budget missed", "undecided"):
        first = next(b for b in budgets if b.result in ("missed", "undecided"))
        spent = f" (spent by `{first.spent_by}`)" if first.spent_by else ""
        if first.got is None:
            return f"{first.metric} {first.rule} cannot be decided: not measured, {first.why}; measure it elsewhere, or set `undecided: pass`"
        return f"{first.metric} {first.rule} does not hold: got {first.got:.4g}{spent}; change the recipe or the budget"
    if isinstance(artifact, (Model, Graph)):
        return f"the {type(artifact).__name__.lower()} is in {output}"
    return f"deploy {output}"


def this_machine() -> MachineRecord:
    """Where this process runs."""
    here = host()
    return MachineRecord(
        title=cpu_title(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total),
        gpu=here.title if here.is_gpu else "none",
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )
