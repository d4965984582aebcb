"""TensorRT and TensorRT-RTX: one backend, the target's row says which module builds.

`tensorrt_rtx` compiles for its GPUs on any machine; `tensorrt` compiles for the GPU it runs on. A build runs in a process
of its own (see `trt_child`): it reports progress, has a time limit, ends with its parent, and a crash in it is one error.
The engine's file appears under its name only when it is whole.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from openclaw_opt.artifacts import Engine, EngineFacts, Graph, ReceiptRow
from openclaw_opt.backends import cache_notes, trt_errors, trt_log, trt_process
from openclaw_opt.backends.trt_profiles import Profiles, shapes_of
from openclaw_opt.errors import MachineError, VerificationError
from openclaw_opt.graph import trt_legality
from openclaw_opt.targets import Target

Tell = Callable[[str, float], None]
"""Called with the builder's phase and how far the whole build is, in [0, 1]."""

LOG = "build.log"
PARTIAL = ".partial"


class TensorrtOptions(BaseModel):
    """What a build is asked.

    Attributes:
        profiles: shape ranges.
        timeout_s: seconds after which the build is stopped; None for no limit.
        require_realised: fail when a quantized layer does not run in the format asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profiles: Profiles = Profiles()
    timeout_s: float | None = None
    require_realised: bool = True


def engine_file(target: Target) -> str:
    return f"engine-{target.sm}.plan"


def cannot_build(target: Target) -> str:
    """Why this machine cannot build for the target, as a sentence; empty if it can."""
    if not target.module:
        return f"TensorRT does not build for {target.name}"
    if importlib.util.find_spec(target.module) is None:
        return f"package {target.module} is not installed"
    return "" if target.runtime == "rtx" else _wrong_gpu(target)


def _wrong_gpu(target: Target) -> str:
    from openclaw_opt.targets import host

    here = host()
    if not here.is_gpu:
        return f"{target.module} builds only on the GPU it builds for, and this machine has no NVIDIA GPU"
    if here.compute != target.compute:
        return f"{target.module} builds only on the GPU it builds for; this one is {here.title} ({here.sm}), not {target.sm}"
    return ""


def unfinished(graph: Graph, target: Target, folder: Path, why: str) -> Engine:
    """An engine folder that holds the verified graph and the command that finishes it on the GPU host."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(graph.folder, folder / "graph", dirs_exist_ok=True)  # no hard links: onnx.checker refuses them
    engine = _with_assets(graph, folder)
    engine.write_facts(
        _facts(graph, target).model_copy(
            update={"finished": False, "unfinished_why": why, "finish_command": f"openclaw-opt build {folder} --resume"}
        )
    )
    return engine


def build(graph: Graph, target: Target, options: TensorrtOptions, folder: Path, tell: Tell) -> Engine:
    """Compile a graph of dialect `tensorrt` into `folder`: engine-smXY.plan, build.log, engine.json.

    Raises:
        RecipeError: shape ranges or a number format the target does not have.
        MachineError: the package, the GPU or memory is missing; the time limit; the builder process crashed.
        VerificationError: the parser refuses a node, or a precision was not realised.
    """
    if graph.facts.dialect != "tensorrt":
        raise VerificationError(
            f"a graph of dialect {graph.facts.dialect} is not lowered to TensorRT", where=str(graph.folder)
        )
    why = cannot_build(target)
    if why:
        raise MachineError(why, fix="build with `--until graph` here, and finish on the GPU host")
    folder.mkdir(parents=True, exist_ok=True)
    return _Build(graph, target, options, folder).run(tell)


class _Build:
    """One build in one child process."""

    def __init__(self, graph: Graph, target: Target, options: TensorrtOptions, folder: Path) -> None:
        self.graph, self.target, self.options, self.folder = graph, target, options, folder
        self.plan, self.log = folder / engine_file(target), folder / LOG
        self.partial = self.plan.with_name(self.plan.name + PARTIAL)
        self.request = folder / f"request.json{PARTIAL}"
        self.profiles = shapes_of(options.profiles, graph.facts, input_shapes(graph.onnx))

    def run(self, tell: Tell) -> Engine:
        started = time.monotonic()
        self.log.write_text("")
        self.request.write_text(json.dumps(self._request()))
        try:
            done = self._drive(tell)
            facts = self._read_log(done, time.monotonic() - started)
            os.replace(self.partial, self.plan)
        finally:
            self.partial.unlink(missing_ok=True)
            self.request.unlink(missing_ok=True)
        engine = _with_assets(self.graph, self.folder)
        engine.write_facts(facts)
        return engine

    def _request(self) -> dict[str, Any]:
        return {
            "module": self.target.module,
            "compute": list(self.target.compute),
            "onnx": str(self.graph.onnx),
            "plan": str(self.partial),
            "log": str(self.log),
            "profiles": self.profiles,
        }

    def _drive(self, tell: Tell) -> dict[str, Any]:
        """Run the child to its end and give its `done` event. Whatever happens here, the child is gone afterwards."""
        command = [sys.executable, "-m", "openclaw_opt.backends.trt_child", str(self.request)]
        with self.log.open("ab") as errors:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=trt_process.environment(),
                start_new_session=True,
            )
        try:
            return self._listen(child, tell)
        finally:
            trt_process.stop(child)

    def _listen(self, child: subprocess.Popen[bytes], tell: Tell) -> dict[str, Any]:
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=trt_process.pump, args=(child, events), daemon=True).start()
        limit = self.options.timeout_s
        deadline = None if limit is None else time.monotonic() + limit
        last: dict[str, Any] = {}
        while (event := self._next(events, deadline)) is not None:
            if event["event"] == "progress":
                tell(event["phase"], event["fraction"])
            elif not last:
                last = event  # the first parse error is the cause; others, and `failed`, follow from it
        code = child.wait()
        if last.get("event") != "done":
            raise self._failure(last, code)
        return last

    def _next(self, events: queue.Queue[dict[str, Any] | None], deadline: float | None) -> dict[str, Any] | None:
        try:
            return events.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            raise MachineError(
                f"the build was stopped at its time limit of {self.options.timeout_s} s",
                where=str(self.log),
                fix="raise `build: {timeout_minutes: …}`, or narrow the shape ranges",
            ) from None

    def _failure(self, last: dict[str, Any], code: int) -> Exception:
        lines = self.log.read_text(errors="replace").splitlines()
        if last.get("event") == "parse_error":
            return trt_errors.parse_refused(last["node"], last["op"], last["why"], self.graph.onnx)
        if last.get("event") == "no_module":
            return MachineError(
                f"{self.target.module} does not load: {last['why']}",
                fix=f"pip install {self.target.module.replace('_', '-')}",
            )
        said = trt_log.problems(lines)
        if last.get("event") == "failed" or (code > 0 and said):
            return trt_errors.refused(said, self.log)
        return trt_errors.crashed(code, lines, self.log)

    def _read_log(self, done: dict[str, Any], seconds: float) -> EngineFacts:
        """The facts of the finished engine. Raises VerificationError when a required precision is not there."""
        names = [profile["name"] for profile in self.profiles]
        with self.log.open(errors="replace") as lines:
            log = trt_log.parse(lines, done["tool"])
        receipt = trt_log.receipt(log, self.graph.facts.quantized, names)
        if self.options.require_realised:
            _require_realised(receipt, self.log)
        return _facts(self.graph, self.target).model_copy(
            update={
                "files": (self.plan.name,),
                "receipt": receipt,
                "kernels": trt_log.kernel_rows(log, names),
                "notes": (
                    *cache_notes(self.graph.facts),
                    *log.notes,
                    *_repeatable(done),
                    *trt_legality.advise(self.graph.facts),
                ),
                "tool": done["tool"],
                "build_seconds": round(seconds, 3),
                "build_peak_bytes": done["peak_bytes"],
            }
        )


def _repeatable(done: dict[str, Any]) -> tuple[str, ...]:
    return (
        ()
        if done["repeatable"]
        else ("this system does not let addresses be fixed: engines built twice may differ in a few bytes",)
    )


def _facts(graph: Graph, target: Target) -> EngineFacts:
    facts = graph.facts
    return EngineFacts(
        task=facts.task, backend="tensorrt", target=target.name, dialect="tensorrt", dtype=facts.dtype, graph=facts,
        notes=cache_notes(facts),
    )  # fmt: skip


def _require_realised(receipt: tuple[ReceiptRow, ...], log: Path) -> None:
    missed = [row for row in receipt if not row.ok]
    if not missed:
        return
    layers = sorted({row.layer for row in missed})
    shown = ", ".join(layers[:8]) + (f" and {len(layers) - 8} more" if len(layers) > 8 else "")
    raise VerificationError(
        f"{missed[0].asked} was asked for and is not realised in {len(layers)} layers: {shown}; {missed[0].layer}: {missed[0].why}",
        where=str(log),
        fix="keep these layers in half precision (`keep:`), choose another format, or allow it with `build: {require: any}`",
    )


def input_shapes(path: Path) -> dict[str, list[int | str]]:
    """Shape of every graph input; a dynamic dimension is its name (`?` if it has none)."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.input
    }


def _with_assets(graph: Graph, folder: Path) -> Engine:
    engine = Engine(folder)
    if graph.assets.is_dir():
        shutil.copytree(graph.assets, engine.assets, dirs_exist_ok=True)
    return engine
