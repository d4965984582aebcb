"""The whole program on one page: check, plan, run the passes, measure, judge, publish.

A fold over the steps with one hook for progress. Each step's result goes into the store with its record, so that the next
build takes it from there; what a step needs of the outside world is in `Work`.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import gc
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from openclaw_opt import interrupts, verify
from openclaw_opt.artifacts import Artifact, Checkpoint, Engine, Graph, Measurement, Model, weight_files
from openclaw_opt.backends.engines import cannot_run, require_runtime
from openclaw_opt.comparison.comparable import baseline_record, check_model, provenance_of
from openclaw_opt.errors import MachineError, OptError, RecipeError, VerificationError
from openclaw_opt.hooks import Hooks
from openclaw_opt.judge import judge, provenance_of_plan
from openclaw_opt.measure import measure, remembered, with_costs, with_latency
from openclaw_opt.memory import Peak, peak_memory
from openclaw_opt.passes import PROOF, Done, Work
from openclaw_opt.plan import Plan, Step, fuse_context, make_plan, output_folder, source_facts, steps_until, why_redone
from openclaw_opt.publish import Manifest, locked, prepare, publish, read_manifest
from openclaw_opt.recipe import Recipe
from openclaw_opt.records import BaselineRecord, HistoryRecord, PassRecord, Report, Verification
from openclaw_opt.report import read_report
from openclaw_opt.store import Store, digest, tree_size
from openclaw_opt.turns import Turns
from openclaw_opt.waterfall import Workplace, with_passes

KINDS: dict[str, type[Artifact]] = {"Model": Model, "Graph": Graph, "Engine": Engine}
ALONE = Turns()


def build(  # noqa: PLR0913 - what a build can be asked, by name
    recipe: Recipe,
    *,
    store: Store,
    output: Path | None = None,
    until: str | None = None,
    baseline: Path | None = None,
    history: Path | None = None,
    hooks: Hooks,
    turns: Turns = ALONE,
) -> Report:
    """Do the recipe. The report's `exit_code` says whether it is within budget; every other failure is raised.

    Args:
        baseline: a report.json, or the folder of a build, of the same checkpoint: what budgets `against: baseline` compare with.
        history: a file or folder of builds; those that can be compared stand in the report beside this one.
        turns: how this build shares the machine with others that run at the same time.
    """
    began, started = time.monotonic(), datetime.datetime.now(datetime.UTC)
    folder = output_folder(recipe, output)
    with locked(folder), disk_errors(), peak_memory() as peak:
        prepare(folder)
        plan = make_plan(recipe, store, until)
        against, beside = opened_baseline(plan, baseline), opened_history(plan, history)
        steps = steps_until(plan, until)
        if any(step.part.gives() is Engine and not step.cached for step in steps):
            require_runtime(recipe.backend)
        read_data(plan, steps, store)
        untimed, artifact = run_steps(plan, steps, store, read_manifest(folder), hooks, turns)
        measurements = measure(plan, steps, artifact, store, hooks, turns)
        records = with_latency(untimed, measurements)
        if not turns.shared:
            records = with_passes(records, plan, steps, artifact, Workplace(store, hooks, turns, run_steps))
        report = judge(
            plan,
            records,
            artifact,
            measurements,
            started=started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - began,
            peak_bytes=peak.bytes,
            partial=until is not None and len(steps) < len(plan.steps),
            output=folder,
            baseline=against,
        )
        report = with_costs(report.model_copy(update={"history": beside}), plan, steps, artifact, store)
        publish(folder, report, artifact, Manifest.of(plan, steps, records, report), store)
    return report


def read_data(plan: Plan, steps: tuple[Step, ...], store: Store) -> None:
    """Data that is empty or too short costs no pass: it is read, and tokenized for those who need it, before the first one."""
    recipe, missing = plan.recipe, [step for step in steps if not step.cached]
    roles = {
        "calibration": recipe.calibration if any("calibration" in step.part.reads for step in missing) else None,
        "training": recipe.training if any("training" in step.part.reads for step in missing) else None,
        "evaluation": recipe.evaluation if missing and any(metric.needs_data for metric in recipe.metrics) else None,
    }
    for role, source in roles.items():
        if source is None:
            continue
        from openclaw_opt.evaluate import load_data

        try:
            with store.making():  # a cache that cannot be written is said as such
                load_data(plan, source, store)
        except RecipeError as error:
            error.where = recipe.located.place(("data", role, error.where)) or error.where
            raise


def opened_baseline(plan: Plan, path: Path | None) -> BaselineRecord | None:
    """What the build is held against. Raises RecipeError, before any work, for one that nothing can be compared with."""
    if path is None:
        return None
    report = read_report(path)
    check_model(provenance_of_plan(plan), provenance_of(report), f"--baseline {path}")
    return baseline_record(report, str(path))


def opened_history(plan: Plan, path: Path | None) -> HistoryRecord | None:
    """Earlier builds for the report. Raises RecipeError, before any work, for what cannot be read or compared."""
    if path is None:
        return None
    from openclaw_opt.comparison.earlier import earlier_builds
    from openclaw_opt.history import read_history

    return earlier_builds(read_history(path), provenance_of_plan(plan), plan.checkpoint.files, str(path))


def run_steps(
    plan: Plan, steps: tuple[Step, ...], store: Store, last: Manifest | None, hooks: Hooks, turns: Turns = ALONE
) -> tuple[list[PassRecord], Artifact]:
    """Run or fetch each step in turn: their records, and the last artifact."""
    artifact: Artifact | Checkpoint = plan.checkpoint
    records: list[PassRecord] = []
    known = verify.Outputs()
    for step in steps:
        hooks.started(step.part.word, step.index + 1, len(steps))
        with store.claimed(step.key), turns.working():
            found = _fetched(plan, step, store, hooks)
            if found is None:
                why = why_redone(step, last.ingredients_of(step) if last else None)
                found = _run(plan, step, artifact, store, hooks, why, known)
        record, artifact = found
        records.append(record)
        hooks.finished(record)
    assert isinstance(artifact, Artifact)
    return records, artifact


def _fetched(plan: Plan, step: Step, store: Store, hooks: Hooks) -> tuple[PassRecord, Artifact] | None:
    """The step's result from the store, if it is there and whole; its accuracy on this recipe's data and metrics."""
    stored = store.find(step.key)
    if stored is None:
        return None
    artifact = KINDS[stored["kind"]](store.folder(step.key))
    if tree_size(artifact.folder) - (artifact.folder / "done.json").stat().st_size != stored["bytes"]:
        store.drop(step.key)  # damaged: made again rather than trusted
        return None
    record = PassRecord.model_validate(stored["record"])
    accuracy = _accuracy(plan, step, artifact, store, hooks) if stored["costs"] else ()
    return record.model_copy(update={"cached": True, "redone_why": "", "accuracy": accuracy}), artifact


def _run(
    plan: Plan,
    step: Step,
    source: Artifact | Checkpoint,
    store: Store,
    hooks: Hooks,
    why: str,
    known: verify.Outputs,
) -> tuple[PassRecord, Artifact]:
    part = step.part
    with store.making() as folder, peak_memory() as peak:
        began = time.monotonic()
        with logs_kept(folder, store.root / "logs" / step.key[:32]):
            work = work_of(plan, folder, store, lambda part, text: _progress(hooks, 0.85 * part, text))
            done = _done(step, source, replace(work, kept=store.unfinished(step.key)))
        seconds = time.monotonic() - began
        gc.collect()  # a graph refers to itself and maps its weights' file for as long as it is there
        hooks.progress(0.9, "verifying")
        verification = _verified(plan, step, source, done, known)
        shutil.rmtree(folder / PROOF, ignore_errors=True)
        record = _record(step, done, verification, seconds=seconds, peak=peak, why=why)
        costs = part.kind == "lossy" or done.proof is not None
        stored = {"kind": type(done.artifact).__name__, "bytes": tree_size(folder), "costs": costs}
        final = store.keep(folder, step.key, stored | {"record": record.model_dump(mode="json")})
    known.moved(folder, final)
    shutil.rmtree(store.unfinished(step.key), ignore_errors=True)
    artifact = replace(done.artifact, folder=final)
    accuracy = _accuracy(plan, step, artifact, store, hooks) if costs else ()
    return record.model_copy(update={"accuracy": accuracy}), artifact


@contextlib.contextmanager
def logs_kept(folder: Path, kept: Path) -> Iterator[None]:
    """A failed pass loses its work folder; a log its error points at stays, and the error says where."""
    try:
        yield
    except OptError as error:
        log = Path(error.where)
        if log.suffix == ".log" and log.is_relative_to(folder) and log.is_file():
            kept.mkdir(parents=True, exist_ok=True)
            error.where = str(shutil.copyfile(log, kept / log.name))
        raise


def _done(step: Step, source: Artifact | Checkpoint, work: Work) -> Done[Any]:
    """Run the pass; a pass that changed nothing has failed."""
    try:
        done = step.part.run(source, work)
    except OptError as error:
        error.where = error.where or f"pass {step.index + 1} `{step.part.word}`"
        raise
    if done.count == 0:
        raise VerificationError(
            f"pass `{step.part.word}` changed nothing",
            fix="take it out of the recipe, or give it options that change something",
        )
    return done


def work_of(plan: Plan, folder: Path, store: Store, progress: Callable[[float, str], None]) -> Work:
    """What a pass of the plan may use, with `folder` for its result."""
    recipe = plan.recipe
    return Work(
        folder=folder,
        checkpoint=plan.checkpoint,
        target=recipe.target,
        backend=recipe.backend,
        calibration=recipe.calibration,
        data_cache=store.root / "data",
        seed=recipe.seed,
        others=recipe.others,
        progress=progress,
        training=recipe.training,
    )


def _progress(hooks: Hooks, fraction: float, text: str) -> None:
    interrupts.check()
    hooks.progress(fraction, text)


def _verified(
    plan: Plan, step: Step, source: Artifact | Checkpoint, done: Done[Any], known: verify.Outputs
) -> Verification | None:
    from openclaw_opt.evaluate import facts_of

    if step.part.kind == "lossy":
        return None
    if isinstance(done.artifact, Engine) and cannot_run(done.artifact.facts):
        return None  # the graph it is made of was verified by the pass before
    spec = plan.spec.model_copy(update={"vocab": facts_of(plan.spec, done.artifact).vocab})  # trimmed, it may be
    probe = verify.make_probe(spec, plan.recipe.seed, fuse_context(plan.recipe))
    return verify.compare(step.part, source, done.artifact, probe, done.proof, known)


def _accuracy(plan: Plan, step: Step, artifact: Artifact, store: Store, hooks: Hooks) -> tuple[Measurement, ...]:
    """What the pass left of the accuracy, on this recipe's evaluation data; measured once for each artifact and data."""
    metrics = [{metric.word: metric.model_dump(mode="json")} for metric in plan.recipe.metrics if metric.needs_data]
    if plan.recipe.evaluation is None or not metrics:
        return ()
    key = digest({"accuracy": metrics, "of": step.key, "data": source_facts(plan.recipe.evaluation)})

    def made() -> tuple[Measurement, ...]:
        from openclaw_opt import evaluate

        hooks.progress(0.95, "measuring what it cost in accuracy")
        return evaluate.accuracy_of(plan, artifact, store)

    return remembered(store, key, made)


def _record(
    step: Step,
    done: Done[Any],
    verification: Verification | None,
    *,
    seconds: float,
    peak: Peak,
    why: str,
) -> PassRecord:
    details = dict(done.details)
    layers = details.pop("layers", [])
    return PassRecord(
        index=step.index,
        word=step.part.word,
        options=step.part.model_dump(mode="json"),
        kind=step.part.kind,
        changed=done.changed,
        seconds=seconds,
        peak_bytes=peak.bytes,
        cached=False,
        redone_why=why,
        size_bytes=weight_bytes(done.artifact.folder),
        parameters=details.pop("parameters", None),
        verification=verification,
        layers=tuple(layers),
        details=details,
    )


def weight_bytes(folder: Path) -> int:
    """Bytes of what the model is made of; tokenizers, logs and reports are left out."""
    return sum(path.stat().st_size for path in weight_files(folder))


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk is the machine's fault: exit code 3, and the store has kept every pass that was whole."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MachineError(
            "the disk is full",
            where=str(error.filename2 or error.filename or ""),  # of a copy, what was written
            fix="free space and run the same command: whole passes are kept",
        ) from error
    except MemoryError as error:
        raise MachineError("out of memory", fix="fewer or shorter calibration samples, or a larger machine") from error
