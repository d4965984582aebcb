"""One run of lm-eval over a session: a score for each task and metric, and one number for every document."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openclaw_opt.backends import DecoderSession
from openclaw_opt.errors import RecipeError

BETTER: dict[bool | None, Literal["higher", "lower"]] = {True: "higher", False: "lower"}
OFFLINE = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Score:
    """One number of one task.

    Attributes:
        documents: lm-eval's number of each document, in the order of the data; empty where it is none (a ratio of sums).
    """

    task: str
    metric: str
    value: float
    better: Literal["higher", "lower", "neither"]
    documents: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """Every score, and how many tokens did not fit the context."""

    scores: tuple[Score, ...]
    truncated: int


def evaluate(
    session: DecoderSession,
    folder: Path,
    context: int,
    tasks: Sequence[str],
    *,
    task_folder: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
) -> Result:
    """Run `tasks` as lm-eval does, on a session that is open.

    Args:
        folder: of a checkpoint or an engine: its tokenizer and config.json.
        task_folder: with task files; lm-eval's own tasks are looked up only where it does not define all.
        limit: documents of each task, the first ones; None for all.
        shots: examples before each question; None for what the task says.
    Raises RecipeError where a task's data cannot be read.
    """
    from openclaw_opt.harness.tasks import named_in

    task_folder = task_folder.resolve() if task_folder is not None else None  # the working directory changes below
    own = set(tasks) <= set(named_in(task_folder))
    with _quiet(offline=own):
        import lm_eval
        from jinja2 import TemplateError
        from lm_eval.tasks import TaskManager

        from openclaw_opt.harness.adapter import SessionModel

        model = SessionModel(session, folder, context)
        manager = TaskManager(include_path=str(task_folder) if task_folder else None, include_defaults=not own)
        with _in_folder(task_folder):
            try:
                found = lm_eval.simple_evaluate(
                    model=model,
                    tasks=list(tasks),
                    task_manager=manager,
                    num_fewshot=shots,
                    limit=limit,
                    log_samples=True,
                    bootstrap_iters=0,
                )
            except (OSError, ValueError, KeyError, TemplateError) as error:
                raise RecipeError(f"lm-eval could not run {', '.join(tasks)}: {error}") from error
    return Result(tuple(_scores(found)), model.truncated)


def _scores(found: Mapping[str, Any]) -> Iterator[Score]:
    for task, numbers in found["results"].items():
        higher = found["higher_is_better"].get(task, {})
        for key, value in numbers.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            yield Score(
                task,
                name,
                float(value),
                BETTER.get(higher.get(metric), "neither"),
                _documents(found["samples"].get(task, ()), metric, filtered),
            )


def _documents(samples: Sequence[Mapping[str, Any]], metric: str, filtered: str) -> tuple[float, ...]:
    mine = [sample for sample in samples if sample.get("filter", "none") == filtered]
    rows = [sample.get(metric) for sample in sorted(mine, key=lambda sample: sample["doc_id"])]
    known = [float(row) for row in rows if isinstance(row, (int, float))]
    return tuple(known) if len(known) == len(rows) else ()


@contextmanager
def _quiet(*, offline: bool) -> Iterator[None]:
    """Without lm-eval's own log lines and bars, which would run through ours. Errors are raised as ever."""
    logger, wanted = logging.getLogger("lm_eval"), OFFLINE if offline else {}
    level, kept = logger.level, {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        for name, value in kept.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _in_folder(folder: Path | None) -> Iterator[None]:
    """A task's `data_files` count from its folder; lm-eval and datasets take them from the working directory."""
    if folder is None:
        yield
        return
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
