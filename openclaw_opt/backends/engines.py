"""The session of any artifact, and which engines this machine can run."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from openclaw_opt.artifacts import Artifact, Checkpoint, Engine, EngineFacts, Graph, Model
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.errors import MachineError
from openclaw_opt.targets import Target
from openclaw_opt.versions import version_of

PACKAGED = ("gguf", "openvino")
"""Backends for a CPU whose runtime is a package that may be missing."""


def packaged(backend: str) -> Any:
    """The module of one of PACKAGED: `missing`, `build`, `open_engine`."""
    return import_module(f"openclaw_opt.backends.{backend}")


def require_runtime(backend: str) -> None:
    """Raises MachineError where the backend's package is not here: said before the first pass, not after the last."""
    if backend in PACKAGED and (why := packaged(backend).missing()):
        raise MachineError(why, fix=f"pip install 'openclaw-opt[{backend}]'")


def cannot_run(facts: EngineFacts) -> str:
    """Why the engine cannot run here, as the report says it; empty if it can."""
    if not facts.finished:
        return facts.unfinished_why
    if facts.backend == "onnxruntime":
        return other_machine(facts, None, installed="", threads=usable_threads())
    if facts.backend in PACKAGED:
        return str(packaged(facts.backend).missing())
    from openclaw_opt.targets import host

    here = host()
    if not here.is_gpu:
        return "no NVIDIA GPU"
    module = facts.tool.split(" ", 1)[0]
    differs = other_machine(facts, here, installed=version_of(module.replace("_", "-")), threads=0)
    if differs:
        return differs
    return "this version of openclaw-opt does not run TensorRT engines; it measures their graph on ONNX Runtime"


def other_machine(facts: EngineFacts, card: Target | None, *, installed: str, threads: int) -> str:
    """What differs between this machine and the one an engine was built for, as a sentence; empty if nothing does.

    Args:
        card: this machine's GPU; None where the engine is for a CPU.
        installed: version of the runtime that built it, here; empty where its files fit any.
        threads: that this process may use.
    """
    if card is not None and facts.compute and card.sm not in facts.compute:
        cards = f"for {', '.join(facts.targets or (facts.target,))} ({', '.join(facts.compute)})"
        return f"it was built {cards}, and this GPU is {card.title} ({card.sm})"
    module, _, built = facts.tool.partition(" ")
    if installed == "not installed":
        return f"it was built by {facts.tool}, and {module} is not installed here"
    if installed and built and installed != built:
        return f"it was built by {module} {built}, and {module} {installed} is installed here: only the version that built an engine runs it"
    if facts.threads is not None and threads != facts.threads:
        return f"its session options were tuned for {facts.threads} threads, and this host has {threads}"
    return ""


def usable_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_engine(engine: Engine) -> DecoderSession | GenericSession:
    """A session on the engine. Raises MachineError when it cannot run here."""
    why = cannot_run(engine.facts)
    if why:
        raise MachineError(f"the engine cannot run here: {why}", where=str(engine.folder))
    if engine.facts.backend in PACKAGED:
        session: DecoderSession | GenericSession = packaged(engine.facts.backend).open_engine(engine)
        return session
    from openclaw_opt.backends.onnxruntime import open_engine as open_onnxruntime

    return open_onnxruntime(engine)


def open_session(artifact: Artifact | Checkpoint) -> DecoderSession | GenericSession:
    """Checkpoint and Model in PyTorch, Graph of any dialect on ONNX Runtime CPU, Engine on its own runtime."""
    if isinstance(artifact, Engine):
        return open_engine(artifact)
    if isinstance(artifact, Graph):
        from openclaw_opt.backends.ort_sessions import open_graph

        return open_graph(artifact)
    from openclaw_opt.backends.torch_sessions import open_checkpoint_session, open_model_session

    if isinstance(artifact, Model):
        return open_model_session(artifact)
    assert isinstance(artifact, Checkpoint)
    return open_checkpoint_session(artifact)
