"""The process that calls TensorRT: `python -m openclaw_opt.backends.trt_child request.json`.

A compiler that crashes, runs out of memory or hangs takes its process with it, so it has one of its own. Events leave as
JSON lines on standard output; the log of every severity goes to the request's log file, and so does standard error,
where the compiler writes past its logger. The process ends itself when its parent is gone.

    {"event": "progress", "phase": "Compiling profile decode", "fraction": 0.5}
    {"event": "parse_error", "node": "layers.0.qkv.matmul", "op": "MatMul", "why": "..."}
    {"event": "no_module", "why": "..."}
    {"event": "failed"}
    {"event": "done", "tool": "tensorrt_rtx 1.7.1.116", "peak_bytes": 123456789, "repeatable": true}
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypedDict

NO_RANDOMIZE = 0x0040000
"""ADDR_NO_RANDOMIZE of personality(2)."""


class Shapes(TypedDict):
    """One optimization profile: its name, and by input name the shapes [min, opt, max]."""

    name: str
    shapes: dict[str, list[list[int]]]


class Request(TypedDict):
    module: str
    compute: list[list[int]]
    """Major and minor of every compute capability the engine is to hold; TensorRT-RTX only, the data-centre builder takes
    the GPU it finds."""
    onnx: str
    plan: str
    log: str
    profiles: list[Shapes]
    sparse: bool
    """Weights hold 2:4 zeros and the builder is to look for kernels that skip them."""


class Events:
    """Writes JSON lines to what was standard output; whatever a library prints there goes to standard error instead."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)

    def send(self, event: str, **values: object) -> None:
        with self._lock:
            self._out.write(json.dumps({"event": event, **values}) + "\n")


class Progress:
    """Builder phases → what it does and how far it is. Nearly all time goes into one phase, which compiles the profiles in turn."""

    COMPILE_PHASE = "Computing profile costs"

    def __init__(self, profiles: list[str]) -> None:
        self._profiles, self._steps, self._done, self._phase = profiles, 0, 0, ""

    def start(self, phase: str, steps: int) -> None:
        self._phase = phase
        if phase == self.COMPILE_PHASE:
            self._steps = max(steps, 1)

    def step(self, phase: str, step: int) -> None:
        if phase == self.COMPILE_PHASE:
            self._done = step + 1

    def now(self) -> tuple[str, float]:
        """In words, and the fraction of the build that lies behind, in [0, 1]."""
        if not self._steps:
            return self._phase, 0.0
        share = min(self._done / self._steps, 1.0)
        if share == 1.0:
            return "Writing the engine", 0.9
        return f"Compiling profile {self._profiles[int(share * len(self._profiles))]}", 0.1 + 0.8 * share


def fix_addresses(path: str) -> bool:
    """Start this process again without address randomization; False where the system does not let us.

    The compiler orders some things by their address, so an engine's bytes repeat only where addresses do; the paths and
    the environment that it sees are of one size too (`trt_process.workplace`, `trt_process.environment`).
    """
    if not sys.platform.startswith("linux"):
        return False
    personality = ctypes.CDLL(None).personality
    now = personality(ctypes.c_ulong(0xFFFFFFFF))
    if now & NO_RANDOMIZE:
        return True
    if now < 0 or personality(ctypes.c_ulong(now | NO_RANDOMIZE)) < 0:
        return False
    if not personality(ctypes.c_ulong(0xFFFFFFFF)) & NO_RANDOMIZE:
        return False
    os.execv(sys.executable, [sys.executable, "-m", "openclaw_opt.backends.trt_child", path])


def watch_parent() -> None:
    """End this process when the parent's end of our standard input closes: a killed parent must not leave a build behind."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would be held when the interpreter ends
            continue
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def make_logger(trt: Any, log: TextIO) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            log.write(f"[{severity.name}] {message}\n")

    return Logger()


def make_monitor(trt: Any, events: Events, profiles: list[str]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._progress, self._told = Progress(profiles), ("", -1.0)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._progress.start(name, steps)
            self._tell()

        def step_complete(self, name: str, step: int) -> bool:
            self._progress.step(name, step)
            self._tell()
            return True

        def phase_finish(self, name: str) -> None:
            """A phase is told when it starts."""

        def _tell(self) -> None:
            now = self._progress.now()
            if now != self._told:
                self._told = now
                events.send("progress", phase=now[0], fraction=now[1])

    return Monitor()


def make_writer(trt: Any, plan: BinaryIO) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.failed: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                return plan.write(data)
            except OSError as error:  # raised once the builder is done: it would drop it and call the build good
                self.failed = error
                return 0

    return Writer()


def configure(trt: Any, builder: Any, request: Request, monitor: Any) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor
    if request["sparse"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = len(request["compute"])
        for index, (major, minor) in enumerate(request["compute"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), index)
    for wanted in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in wanted["shapes"].items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    return config


def parse(trt: Any, network: Any, request: Request, logger: Any, events: Events) -> bool:
    parser = trt.OnnxParser(network, logger)
    from openclaw_opt.graph.trt_words import parser_model

    name = Path(request["onnx"]).name
    if parser.parse(parser_model(name), name):
        return True
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        events.send("parse_error", node=error.node_name(), op=error.node_operator(), why=parser_reason(error))
    return False


def parser_reason(error: Any) -> str:
    """The parser's reason: its description is often the bare text of an assertion, so its code and place stand beside it."""
    code = error.code().name.replace("_", " ").lower()
    said = error.desc().strip()
    return f"{code}{'' if said in ('', 'false') else f', {said}'} (in {error.func()})"


def build(trt: Any, request: Request, log: TextIO, plan: BinaryIO, events: Events) -> bool:
    """Parse and build into `plan`; False when TensorRT refuses, with the reason in the log."""
    logger = make_logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not parse(trt, network, request, logger, events):
        return False
    config = configure(trt, builder, request, make_monitor(trt, events, [one["name"] for one in request["profiles"]]))
    writer = make_writer(trt, plan)
    done = bool(builder.build_serialized_network_to_stream(network, config, writer))
    if writer.failed is not None:
        raise writer.failed
    return done


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's size at the time of the fork
        return next(
            int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM:")
        )
    import psutil

    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def main(path: str) -> int:
    fixed = fix_addresses(path)
    request: Request = json.loads(Path(path).read_text())
    events = Events()
    watch_parent()
    try:
        trt = importlib.import_module(request["module"])
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        events.send("no_module", why=str(error))
        return 1
    with open(request["log"], "a", encoding="utf-8", buffering=1) as log, open(request["plan"], "wb") as plan:
        os.chdir(
            Path(request["onnx"]).parent
        )  # through a link: the compiler sees the same path wherever the graph lies
        done = build(trt, request, log, plan, events)
    if not done:
        events.send("failed")
        return 1
    events.send("done", tool=f"{request['module']} {trt.__version__}", peak_bytes=peak_bytes(), repeatable=fixed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
