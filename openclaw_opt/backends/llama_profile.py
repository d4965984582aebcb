"""Where llama.cpp's time goes: its scheduler asks a callback about every node, and runs one that is wanted by itself.

The callback is llama.cpp's own (`cb_eval`, what its imatrix tool uses). A node's time is from the question to the answer, so it holds
the barrier after it and the callback's own microseconds; kernels that would be fused run apart. Shares are what it is for.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

from openclaw_opt.errors import MachineError

FREE = ("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "NONE")
"""ggml's operations that move nothing."""


class NodeTimes:
    """Give `callback` to a context; `events` are Chrome trace events of every node that computed, microseconds since the first.

    Args:
        lib: the binding, as `llama_cpp.library` gives it.

    Raises:
        MachineError: its libraries do not tell a node's name.
    """

    def __init__(self, lib: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._began = self._first = 0
        base = _base(Path(lib.__file__).parent)
        self._name, self._kind = base.ggml_get_name, base.ggml_op_desc
        for function in (self._name, self._kind):
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
        self.callback = lib.ggml_backend_sched_eval_callback(self._asked)

    def _asked(self, node: int, ask: bool, _: object) -> bool:
        now = time.perf_counter_ns()
        if ask:
            self._began = now
            self._first = self._first or now
            return True
        kind = self._kind(node).decode()
        if kind not in FREE:
            name = self._name(node).decode(errors="replace")
            self.events.append(
                {
                    "name": name.split(" ")[0] or kind,
                    "cat": "Node",
                    "ph": "X",
                    "pid": 1,
                    "tid": 1,
                    "ts": (self._began - self._first) / 1e3,
                    "dur": (now - self._began) / 1e3,
                    "args": {"op_name": kind},
                }
            )
        return True


def _base(folder: Path) -> Any:
    for file in sorted(folder.glob("lib/*ggml-base*")):
        library = ctypes.CDLL(str(file))  # loaded already: this is a handle
        if hasattr(library, "ggml_get_name") and hasattr(library, "ggml_op_desc"):
            return library
    raise MachineError(
        "this llama.cpp's libraries do not tell the names of nodes, so there is no profile by layer",
        where=str(folder),
        fix="pip install 'llama-cpp-python>=0.3.36'",
    )
