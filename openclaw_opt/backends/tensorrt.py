"""TensorRT and TensorRT-RTX: one backend, the target's row says which module builds.

`tensorrt_rtx` compiles for its GPUs on any machine; `tensorrt` compiles for the GPU it runs on. A build runs in a process
of its own (see `trt_child`): it reports progress, has a time limit, ends with its parent, and a crash in it is one error.
The engine's file appears under its name only when it is whole.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from openclaw_opt import zeros
from openclaw_opt.advisories import advisories, told, traits_of
from openclaw_opt.artifacts import Engine, EngineFacts, Graph, ReceiptRow
from openclaw_opt.backends import cache_notes, trt_errors, trt_log, trt_process, trt_sparsity
from openclaw_opt.backends.trt_kernels import FILE as LAYERS
from openclaw_opt.backends.trt_kernels import EngineLayers, ProfileLayers, kernel_row, profile_layers
from openclaw_opt.backends.trt_process import Tell
from openclaw_opt.backends.trt_profiles import Profiles, shapes_of
from openclaw_opt.errors import MachineError, VerificationError
from openclaw_opt.graph import trt_legality
from openclaw_opt.targets import Target, target_named

LOG = "build.log"
PARTIAL = ".partial"


class TensorrtOptions(BaseModel):
    """What a build is asked.

    Attributes:
        profiles: shape ranges.
        timeout_s: seconds after which the build is stopped; None for no limit.
        require_realised: fail when a quantized layer does not run in the format asked for.
        engines: for targets of several compute capabilities, `one` engine that holds them all or one `each`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profiles: Profiles = Profiles()
    timeout_s: float | None = None
    require_realised: bool = True
    engines: Literal["one", "each"] = "one"


def engine_file(targets: Sequence[Target]) -> str:
    """`engine-sm89.plan`; of several compute capabilities `engine-sm86-sm89.plan`."""
    return f"engine-{'-'.join(capabilities(targets))}.plan"


def capabilities(targets: Sequence[Target]) -> list[str]:
    """The distinct compute capabilities, lowest first: cards of one share an engine."""
    return [f"sm{major}{minor}" for major, minor in sorted({target.compute for target in targets})]


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


def unfinished(graph: Graph, target: Target, folder: Path, why: str, others: Sequence[Target] = ()) -> Engine:
    """An engine folder that holds the verified graph and the command that finishes it on the GPU host."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(graph.folder, folder / "graph", dirs_exist_ok=True)  # no hard links: onnx.checker refuses them
    engine = _with_assets(graph, folder)
    engine.write_facts(
        _facts(graph, (target, *others)).model_copy(
            update={"finished": False, "unfinished_why": why, "finish_command": f"openclaw-opt build {folder} --resume"}
        )
    )
    return engine


def build(
    graph: Graph,
    target: Target,
    options: TensorrtOptions,
    folder: Path,
    tell: Tell,
    others: Sequence[Target] = (),
) -> Engine:
    """Compile a graph of dialect `tensorrt` into `folder`: engine-smXY.plan, build.log, layers.json, engine.json.

    `others` are further targets of the same module; with `engines: each` every compute capability gets a plan and a log of
    its own.

    Raises:
        RecipeError: shape ranges or a number format a target does not have.
        MachineError: the package, the GPU or memory is missing; the time limit; the builder process crashed.
        VerificationError: the parser refuses a node, or a precision was not realised.
    """
    if graph.facts.dialect != "tensorrt":
        raise VerificationError(
            f"a graph of dialect {graph.facts.dialect} is not lowered to TensorRT", where=str(graph.folder)
        )
    targets = (target, *others)
    why = next((why for one in targets if (why := cannot_build(one))), "")
    if why:
        raise MachineError(why, fix="build with `--until graph` here, and finish on the GPU host")
    folder.mkdir(parents=True, exist_ok=True)
    groups = _groups(targets, options.engines)
    made = []
    for index, group in enumerate(groups):
        label = capabilities(group)[0] if len(groups) > 1 else ""
        done = _Build(graph, group, options, folder, label).run(partial(_share, tell, index, len(groups)))
        made.append(done)
    engine = _with_assets(graph, folder)
    _write(engine, _facts(graph, targets), made)
    return engine


def _groups(targets: Sequence[Target], engines: str) -> list[list[Target]]:
    """The targets of each engine."""
    if engines == "one":
        return [list(targets)]
    return [[one for one in targets if one.compute == compute] for compute in sorted({one.compute for one in targets})]


def _share(tell: Tell, index: int, count: int, phase: str, fraction: float) -> None:
    """Progress of one of several builds as progress of all."""
    tell(phase, (index + fraction) / count)


@dataclass(frozen=True)
class _Made:
    """What one builder process made."""

    file: str
    receipt: tuple[ReceiptRow, ...]
    layers: tuple[ProfileLayers, ...]
    notes: tuple[str, ...]
    tool: str
    seconds: float
    peak_bytes: int


class _Build:
    """One engine in one child process; `label` tells its rows and its log from those of the others."""

    def __init__(
        self, graph: Graph, targets: Sequence[Target], options: TensorrtOptions, folder: Path, label: str
    ) -> None:
        self.graph, self.targets, self.options, self.label = graph, targets, options, label
        self.plan, self.log = folder / engine_file(targets), folder / (f"build-{label}.log" if label else LOG)
        self.partial = self.plan.with_name(self.plan.name + PARTIAL)
        self.profiles = shapes_of(options.profiles, graph.facts, input_shapes(graph.onnx))

    def run(self, tell: Tell) -> _Made:
        started = time.monotonic()
        self.log.write_text("")
        try:
            with trt_process.workplace(self.graph.folder, self.partial, self.log) as place:
                request = place / "request.json"
                request.write_text(json.dumps(self._request()))
                ended = trt_process.drive(request, self.log, self.options.timeout_s, tell)
            if ended.event.get("event") != "done":
                raise self._failure(ended)
            made = self._read_log(ended.event, time.monotonic() - started)
            os.replace(self.partial, self.plan)
        finally:
            self.partial.unlink(missing_ok=True)
        return made

    def _request(self) -> dict[str, Any]:
        # So that their bytecode is on disk: a child that compiles it first allocates differently, and addresses decide bytes.
        for module in ("openclaw_opt.graph.trt_words", "openclaw_opt.backends.trt_child"):
            importlib.import_module(module)
        return {
            "module": self.targets[0].module,
            "compute": sorted({target.compute for target in self.targets}),
            "onnx": f"graph/{self.graph.onnx.name}",
            "plan": "plan",
            "log": "log",
            "profiles": self.profiles,
            "sparse": self._asks_for_sparse_kernels(),
        }

    def _asks_for_sparse_kernels(self) -> bool:
        """Are there 2:4 zeros, and does a builder look for them? TensorRT-RTX knows the flag and does nothing with it."""
        patterns = {one.pattern for one in self.graph.facts.sparse.values()}
        return zeros.TWO_OF_FOUR in patterns and zeros.may_skip(self.targets[0], "tensorrt")

    def _failure(self, ended: trt_process.Ended) -> Exception:
        last, lines = ended.event, self.log.read_text(errors="replace").splitlines()
        if last.get("event") == "parse_error":
            return trt_errors.parse_refused(last["node"], last["op"], last["why"], self.graph.onnx)
        if last.get("event") == "no_module":
            module = self.targets[0].module
            return MachineError(f"{module} does not load: {last['why']}", fix=f"pip install {module.replace('_', '-')}")
        said, short = trt_log.problems(lines), trt_log.shortages(lines)
        if last.get("event") == "failed" or short or (ended.code > 0 and said):
            return trt_errors.refused(said, self.log, short)
        return trt_errors.crashed(ended.code, lines, self.log, ended.address_limit)

    def _read_log(self, done: dict[str, Any], seconds: float) -> _Made:
        """What the finished engine is. Raises VerificationError when a required precision is not there."""
        names = [f"{profile['name']} {self.label}".strip() for profile in self.profiles]
        with self.log.open(errors="replace") as lines:
            log = trt_log.parse(lines, done["tool"])
        receipt = trt_log.receipt(log, self.graph.facts.quantized, names)
        if self.options.require_realised:
            _require_realised(receipt, self.log)
        layers = profile_layers(log, names, self.plan.name)
        notes = (*log.notes, *_repeatable(done))
        if self._asks_for_sparse_kernels():
            with self.log.open(errors="replace") as lines:
                notes += trt_sparsity.notes(lines)
        return _Made(self.plan.name, receipt, layers, notes, done["tool"], seconds, done["peak_bytes"])


def _write(engine: Engine, facts: EngineFacts, made: Sequence[_Made]) -> None:
    """layers.json and engine.json of all engines of the folder."""
    tables = tuple(table for one in made for table in one.layers)
    table = EngineLayers(tool=made[0].tool, profiles=tables)
    (engine.folder / LAYERS).write_text(table.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    notes = dict.fromkeys(note for one in made for note in one.notes)
    targets = [target_named(name) for name in facts.targets]
    advice = told(advisories(targets, made[0].tool.partition(" ")[2], traits_of(facts.graph)))
    engine.write_facts(
        facts.model_copy(
            update={
                "files": tuple(one.file for one in made),
                "receipt": tuple(row for one in made for row in one.receipt),
                "kernels": tuple(kernel_row(table) for table in tables),
                "notes": (*facts.notes, *notes, *_several(facts), *trt_legality.advise(facts.graph), *advice),
                "tool": made[0].tool,
                "build_seconds": round(sum(one.seconds for one in made), 3),
                "build_peak_bytes": max(one.peak_bytes for one in made),
            }
        )
    )


def _several(facts: EngineFacts) -> tuple[str, ...]:
    """What a report of several targets must say: bounds and prices are figures of one card."""
    if len(facts.targets) < 2:
        return ()
    held = f"compute capabilities {', '.join(facts.compute)}"
    return (f"built for {', '.join(facts.targets)} ({held}); bounds and prices are of {facts.target}",)


def _repeatable(done: dict[str, Any]) -> tuple[str, ...]:
    return (
        ()
        if done["repeatable"]
        else ("this system does not let addresses be fixed: engines built twice may differ in a few bytes",)
    )


def _facts(graph: Graph, targets: Sequence[Target]) -> EngineFacts:
    facts = graph.facts
    return EngineFacts(
        task=facts.task,
        backend="tensorrt",
        target=targets[0].name,
        targets=tuple(target.name for target in targets),
        compute=tuple(capabilities(targets)),
        dialect="tensorrt",
        dtype=facts.dtype,
        graph=facts,
        notes=(*zeros.notes(facts, targets, "tensorrt"), *cache_notes(facts)),
    )


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
