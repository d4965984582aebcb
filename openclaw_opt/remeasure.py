"""Measure a built artifact again, on this machine: `openclaw-opt measure ARTIFACT`.

The recipe in the folder says which metrics; those that compare with evaluation data belong to the build and are left out. The rows
are appended to the artifact's report with this machine's name, and the manifest is brought up to date: nothing else changes.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path

from openclaw_opt.artifacts import Engine, Measurement
from openclaw_opt.backends.engines import cannot_run, open_session
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.judge import this_machine
from openclaw_opt.metrics import Metric
from openclaw_opt.metrics.memory import memory_command
from openclaw_opt.metrics.subject import Opener, Subject
from openclaw_opt.publish import MANIFEST, RESOLVED, locked, read_manifest
from openclaw_opt.recipe import Recipe, load_recipe
from openclaw_opt.records import MeasuredRecord, Report
from openclaw_opt.report import read_report, write_report
from openclaw_opt.store import sha256_file
from openclaw_opt.versions import versions

ACCURACY = "measured by the build: evaluation data and checkpoint belong to it"


def remeasure(folder: Path, progress: Callable[[float, str], None] = lambda part, text: None) -> MeasuredRecord:
    """The new record, which stands in the folder's report when this returns.

    Raises:
        RecipeError: the folder holds no finished engine, or its recipe measures nothing but accuracy.
        MachineError: this machine cannot run the engine.
    """
    folder = folder.absolute()
    report, engine, recipe = opened(folder)
    why = cannot_run(engine.facts)
    if why:
        raise MachineError(f"the engine cannot run here: {why}", where=str(folder))
    metrics = [metric for metric in recipe.metrics if not metric.needs_data]
    if not metrics:
        raise RecipeError(
            "the recipe measures nothing that could be measured again",
            where=str(folder / RESOLVED),
            fix="build with metrics: [latency, memory, size, roofline]",
        )
    with locked(folder):
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rows = _rows(metrics, subject_of(folder, engine, recipe), progress)
        record = MeasuredRecord(started=started, machine=this_machine(), versions=versions(), measurements=rows)
        _append(folder, report.model_copy(update={"remeasured": (*report.remeasured, record)}))
    return record


def opened(folder: Path) -> tuple[Report, Engine, Recipe]:
    """What a finished build's folder holds. Raises RecipeError for any other."""
    report, engine = read_report(folder), Engine(folder)
    if not report.finished or not (folder / engine.facts_file).is_file() or read_manifest(folder) is None:
        raise RecipeError(
            "the folder holds no finished engine", where=str(folder), fix="openclaw-opt build --recipe RECIPE"
        )
    return report, engine, load_recipe(folder / RESOLVED)


def subject_of(folder: Path, engine: Engine, recipe: Recipe) -> Subject:
    """The engine for metrics of time, memory and size; PyTorch beside it where the checkpoint is still there."""
    checkpoint, graph = Path(recipe.model), (folder / "model.onnx").is_file()
    weights = tuple(sorted(checkpoint.glob("*.safetensors"))) if checkpoint.is_dir() else ()
    return Subject(
        facts=engine.facts.graph,
        target=recipe.target,
        accuracy=Opener(None, "engine", ACCURACY),
        speed=Opener(lambda: open_session(engine), "engine"),
        eager=_eager(checkpoint, engine),
        files=tuple(folder / name for name in engine.facts.files),
        original_files=weights,
        graph=folder if graph else None,
        memory_command=memory_command(folder),
    )


def _eager(checkpoint: Path, engine: Engine) -> Opener:
    if not (checkpoint / "config.json").is_file() or engine.facts.task != "decoder":
        return Opener(None, "reference", f"the checkpoint {checkpoint} is not here")
    from openclaw_opt.artifacts import Checkpoint
    from openclaw_opt.backends.torch_eager import open_eager

    config = json.loads((checkpoint / "config.json").read_text())
    there = Checkpoint(checkpoint, config, {})
    return Opener(lambda: open_eager(there), "reference", note="PyTorch eager, float32")


def _rows(metrics: list[Metric], subject: Subject, progress: Callable[[float, str], None]) -> tuple[Measurement, ...]:
    rows: list[Measurement] = []
    for i, metric in enumerate(metrics):
        progress(i / len(metrics), metric.word)
        rows += metric.measure(subject)
    return tuple(rows)


def _append(folder: Path, report: Report) -> None:
    """The report in all its forms, then the manifest with their digests, last: it is what says that the folder is whole."""
    manifest = read_manifest(folder)
    assert manifest is not None, "`opened` has seen it"
    written = write_report(report, folder)
    files = dict(manifest.data["files"]) | {name: sha256_file(folder / name) for name in written}
    part = folder.parent / f".{folder.name}.{os.getpid()}.{MANIFEST}"
    part.write_text(json.dumps(manifest.data | {"files": files}, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(folder / MANIFEST)
