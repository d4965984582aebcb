"""Budgets → verdict and exit code; records → the Report. Pure but for reading the machine's name."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from openclaw_opt.artifacts import Artifact, Engine, Graph, Measurement, Model
from openclaw_opt.comparison.budgets import Case, judge_budget
from openclaw_opt.comparison.comparable import Provenance
from openclaw_opt.errors import BudgetMissed, MachineError
from openclaw_opt.plan import Plan, source_facts
from openclaw_opt.recipe import resolved_yaml
from openclaw_opt.records import BaselineRecord, BudgetRecord, MachineRecord, PassRecord, Report, Verdict
from openclaw_opt.report.provenance import machine_line
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
    baseline: BaselineRecord | None = None,
) -> Report:
    """The whole report of a build."""
    recipe = plan.recipe
    case = Case(measurements, records, baseline, provenance_of_plan(plan), recipe.undecided)
    engine = artifact.facts if isinstance(artifact, Engine) else None
    unfinished = engine is not None and not engine.finished
    budgets = () if partial else tuple(judge_budget(budget, case) for budget in recipe.budgets)
    verdict = verdict_of(budgets, unfinished=unfinished, partial=partial)
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
        baseline=baseline,
        passes=tuple(records),
        receipt=engine.receipt if engine else (),
        kernels=engine.kernels if engine else (),
        notes=engine.notes if engine else (),
        peak_bytes=peak_bytes,
        machine=this_machine(),
        versions=versions(),
        data={role: source_facts(source) for role, source in recipe.sources.items()},
        checkpoint_files=plan.checkpoint.files,
        recipe=resolved_yaml(recipe),
    )


def provenance_of_plan(plan: Plan) -> Provenance:
    """What the numbers of the build that is being made are of."""
    recipe = plan.recipe
    return Provenance(
        checkpoint=frozenset(plan.checkpoint.files.values()),
        evaluation=source_facts(recipe.evaluation),
        machine=machine_line(this_machine()),
        target=recipe.target.name,
        metrics={metric.word: metric.model_dump(mode="json") for metric in recipe.metrics},
    )


def verdict_of(budgets: Sequence[BudgetRecord], *, unfinished: bool, partial: bool) -> Verdict:
    """A missed budget outweighs an unfinished engine, which outweighs what could not be decided."""
    if any(budget.result == "missed" for budget in budgets):
        return "budget missed"
    if unfinished:
        return "not finished"
    if any(fails_undecided(budget) for budget in budgets):
        return "undecided"
    return "within budget" if budgets and not partial else "no budgets"


def fails_undecided(budget: BudgetRecord) -> bool:
    """Was it not decided, and does the recipe count that as missed?"""
    return budget.result == "undecided" and budget.if_undecided != "pass"


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
        first = next(b for b in budgets if b.result == "missed" or (verdict == "undecided" and fails_undecided(b)))
        return _after(first, output)
    if isinstance(artifact, (Model, Graph)):
        return f"the {type(artifact).__name__.lower()} is in {output}"
    return f"deploy {output}"


def _after(budget: BudgetRecord, output: Path) -> str:
    """What to do about the budget that decided the verdict."""
    if budget.result == "missed":
        assert budget.got is not None
        spent = f" (spent by `{budget.spent_by}`)" if budget.spent_by else ""
        return (
            f"{budget.metric} {budget.rule} does not hold: got {budget.got:.4g}{spent}; "
            f"what would help: openclaw-opt explain {output}"
        )
    if budget.got is None:
        return (
            f"{budget.metric} {budget.rule} cannot be decided: not measured, {budget.why}; "
            "measure it elsewhere, or set `undecided: pass`"
        )
    return (
        f"{budget.metric} {budget.rule} cannot be decided: got {budget.got:.4g}, {budget.why}; "
        "give it more evidence, or set `undecided: pass`"
    )


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
