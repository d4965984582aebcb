"""A training in several processes: this one starts them, passes on what they say, ends them, and takes over their weights.

Models and data go through files, each process mapping them: shared memory may be small. A killed parent's processes end with it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from openclaw_opt.artifacts import Checkpoint, Model
from openclaw_opt.errors import MachineError, OptError
from openclaw_opt.models.spec import ModelFacts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.models.student import put_fake_quantizers, teacher_of
from openclaw_opt.models.training import Pair, Report, Samples, Setup, Trained, train
from openclaw_opt.models.training_group import joined
from openclaw_opt.models.training_state import Progress

POLL_SECONDS = 0.1
START, DATA, MADE = "start", "data.safetensors", "trained.safetensors"


@dataclass(frozen=True)
class Job:
    """What every process needs besides the files in `folder`."""

    folder: Path
    checkpoint: Checkpoint
    setup: Setup
    layers: tuple[int, ...]
    rounding: tuple[str, int | None, tuple[str, ...]] | None
    """Arguments of `put_fake_quantizers`."""
    kept: Path | None
    count: int
    task: str = "decoder"
    parent: int = 0
    """Its process id: who has no parent left ends."""


def train_apart(pair: Pair, data: Samples, job: Job, facts: ModelFacts, assets: Path, report: Report) -> Trained:
    """What `training.train` does, in `job.count` processes; raises what it raises.

    Args:
        job: `folder` is replaced by one of this call's own, made in it.

    Raises:
        MachineError: there are fewer GPUs than processes, or a process died.
    """
    if job.setup.device != "cpu" and torch.cuda.device_count() < job.count:
        what = f"{job.count} processes want a GPU each, and there are {torch.cuda.device_count()}"
        raise MachineError(what, where="distill.processes", fix=f"processes: {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory(prefix="training-", dir=job.folder) as name:
        own = replace(job, folder=Path(name), parent=os.getpid())
        save_model(pair.student, facts, own.folder / START, assets)
        tensors = {"training": data.training.contiguous(), "held_back": data.held_back.contiguous()}
        save_file(tensors, own.folder / DATA)
        _run(own, report)
        return _taken_over(pair.student, own.folder / MADE)


def _run(job: Job, report: Report) -> None:
    """Start the processes and listen until all have ended."""
    from torch.multiprocessing.spawn import ProcessExitedException, start_processes

    told: Any = multiprocessing.get_context("spawn").SimpleQueue()
    # Ctrl-C goes to the whole terminal: it is for this process, which ends the others. They inherit that it is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        context = start_processes(_process, (job, told), job.count, join=False, start_method="spawn")  # type: ignore[no-untyped-call]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert context is not None
    refused: dict[str, Any] | None = None
    try:
        ended = False
        while not ended:
            try:
                ended = context.join(timeout=POLL_SECONDS)
            except ProcessExitedException as error:
                raise MachineError(
                    f"training process {error.error_index} ended with {error.signal_name or error.exit_code}",
                    where="distill",
                    fix="the same command goes on from the last checkpoint; fewer processes need less memory",
                ) from error
            while not told.empty():
                event = told.get()
                if "refused" in event:
                    refused = event
                else:
                    report(event["part"], event["text"])
    finally:
        for process in context.processes:
            process.kill()
            process.join()
        told.close()
    if refused is not None:
        raise OPT_ERRORS[refused["refused"]](refused["what"], where=refused["where"], fix=refused["fix"])


OPT_ERRORS = {cls.__name__: cls for cls in OptError.__subclasses__()}


def _process(rank: int, job: Job, told: Any) -> None:
    """One of the processes, from its start to its end."""
    group = joined(rank, job.count, job.folder / "meeting", job.setup.device)
    student = open_model(Model(job.folder / START))
    if job.rounding is not None:
        put_fake_quantizers(student, *job.rounding)
    teacher = teacher_of(job.checkpoint)
    setup = job.setup if job.setup.device == "cpu" else replace(job.setup, device=f"cuda:{rank}")

    def report(part: float, text: str) -> None:
        if os.getppid() != job.parent:
            raise SystemExit("the parent is gone")
        if rank == 0:
            told.put({"part": part, "text": text})

    pair, data = Pair(student, teacher, job.layers), Samples(**load_file(job.folder / DATA), task=job.task)
    try:
        made = train(pair, data, setup, job.kept, report, group)
    except OptError as error:  # every process raises the same: losses and norms are of all
        if rank == 0:
            told.put({"refused": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix})
        group.leave()
        return
    if rank == 0:
        plain = {name: value.detach().contiguous() for name, value in student.named_parameters()}
        said = {"progress": asdict(made.progress), "stopped": made.stopped, "zeros": made.zeros}
        save_file(plain, job.folder / MADE, metadata={"made": json.dumps(said)})
    group.leave()


def _taken_over(student: nn.Module, file: Path) -> Trained:
    with safe_open(file, "pt") as stored:
        said = json.loads(stored.metadata()["made"])
        for name, value in student.named_parameters():
            value.data = stored.get_tensor(name)
    student.requires_grad_(False)
    return Trained(Progress(**said["progress"]), said["stopped"], said["zeros"])
