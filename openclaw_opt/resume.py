"""Finish on the GPU host what another machine built up to the verified graph: `openclaw-opt build ARTIFACT --resume`.

The folder carries the graph, the resolved recipe and the report with all accuracy measured so far; only the engine is built
here, and its latency measured where it can run. The checkpoint is not needed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from openclaw_opt.artifacts import Engine, Graph, Measurement
from openclaw_opt.backends.engines import cannot_run
from openclaw_opt.backends.tensorrt import cannot_build
from openclaw_opt.comparison.budgets import Case, judge_budget
from openclaw_opt.comparison.comparable import provenance_of
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.judge import exit_code_of, next_step_of, this_machine, verdict_of
from openclaw_opt.memory import peak_memory
from openclaw_opt.pipeline import disk_errors, logs_kept, weight_bytes
from openclaw_opt.publish import RESOLVED, Manifest, locked, publish, read_manifest
from openclaw_opt.recipe import Recipe, load_recipe
from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import read_report
from openclaw_opt.report.provenance import machine_line
from openclaw_opt.store import Store
from openclaw_opt.versions import versions

if TYPE_CHECKING:
    from openclaw_opt.hooks import Hooks
    from openclaw_opt.passes.build import Build

GRAPH = "graph"


def finish(folder: Path, *, store: Store, hooks: Hooks) -> Report:
    """Build the engine of an unfinished folder in place.

    Raises:
        RecipeError: the folder is no unfinished build.
        MachineError: this machine cannot build it either.
    """
    folder = folder.absolute()
    report, manifest, recipe = _opened(folder)
    why = cannot_build(recipe.target)
    if why:
        raise MachineError(
            f"this machine cannot finish it either: {why}",
            where=str(folder),
            fix=f"run the same on a {recipe.target.title} host",
        )
    began = time.monotonic()
    with locked(folder), disk_errors(), peak_memory() as peak, store.making() as work:
        hooks.started("build", 1, 1)
        part = _build_pass(recipe)
        with logs_kept(work, store.root / "logs" / folder.name):
            engine = part.engine_of(Graph(folder / GRAPH), recipe.targets, recipe.backend, work, hooks.progress)
        record = _record(report.passes[-1], engine, time.monotonic() - began, peak.bytes)
        hooks.finished(record)
        finished = _report(report, recipe, engine, record, folder)
        publish(folder, finished, engine, manifest)
    return finished


def _opened(folder: Path) -> tuple[Report, Manifest, Recipe]:
    report, manifest = read_report(folder), read_manifest(folder)
    if report.finished or manifest is None or not (folder / GRAPH).is_dir():
        raise RecipeError(
            "there is nothing to finish in this folder",
            where=str(folder),
            fix="--resume wants a build that ended with `not finished`",
        )
    return report, manifest, load_recipe(folder / RESOLVED)


def _build_pass(recipe: Recipe) -> Build:
    from openclaw_opt.passes.build import Build

    return next(part for part in recipe.passes if isinstance(part, Build))


def _record(before: PassRecord, engine: Engine, seconds: float, peak_bytes: int) -> PassRecord:
    facts = engine.facts
    return before.model_copy(
        update={
            "changed": f"built {', '.join(facts.files)} with {facts.tool}",
            "seconds": seconds,
            "peak_bytes": peak_bytes,
            "cached": False,
            "redone_why": "finished on this machine",
            "size_bytes": weight_bytes(engine.folder),
        }
    )


def _report(report: Report, recipe: Recipe, engine: Engine, record: PassRecord, folder: Path) -> Report:
    facts = engine.facts
    measurements = tuple(_renewed(row, cannot_run(facts)) for row in report.measurements)
    records = (*report.passes[:-1], record)
    ours = replace(provenance_of(report), machine=machine_line(this_machine()))
    case = Case(measurements, records, report.baseline, ours, recipe.undecided)
    budgets = tuple(judge_budget(budget, case) for budget in recipe.budgets)
    verdict = verdict_of(budgets, unfinished=False, partial=False)
    return report.model_copy(
        update={
            "verdict": verdict,
            "exit_code": exit_code_of(verdict),
            "finished": True,
            "finish_command": "",
            "unfinished_why": "",
            "engine_tool": facts.tool,
            "engine_files": facts.files,
            "engine_bytes": record.size_bytes,
            "next_step": next_step_of(verdict, budgets, engine, folder),
            "budgets": budgets,
            "measurements": measurements,
            "passes": records,
            "receipt": facts.receipt,
            "kernels": facts.kernels,
            "notes": facts.notes,
            "machine": this_machine(),
            "versions": versions(),
        }
    )


def _renewed(row: Measurement, why: str) -> Measurement:
    """What was not measured for want of an engine is still not measured, for this machine's own reason."""
    return row if row.value is not None or not why else row.model_copy(update={"not_measured": why})
