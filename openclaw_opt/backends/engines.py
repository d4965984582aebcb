"""The session of any artifact, and which engines this machine can run."""

from __future__ import annotations

from openclaw_opt.artifacts import Artifact, Checkpoint, Engine, EngineFacts, Graph, Model
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.errors import MachineError


def cannot_run(facts: EngineFacts) -> str:
    """Why the engine cannot run here, as the report says it; empty if it can."""
    if not facts.finished:
        return facts.unfinished_why
    if facts.backend == "onnxruntime":
        return ""
    if facts.backend == "gguf":
        from openclaw_opt.backends.gguf import missing

        return missing()
    from openclaw_opt.targets import host

    if not host().is_gpu:
        return "no NVIDIA GPU"
    return "this version of openclaw-opt does not run TensorRT engines; it measures their graph on ONNX Runtime"


def open_engine(engine: Engine) -> DecoderSession | GenericSession:
    """A session on the engine. Raises MachineError when it cannot run here."""
    why = cannot_run(engine.facts)
    if why:
        raise MachineError(f"the engine cannot run here: {why}", where=str(engine.folder))
    if engine.facts.backend == "gguf":
        from openclaw_opt.backends import gguf

        session: DecoderSession = gguf.open_engine(engine)
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
