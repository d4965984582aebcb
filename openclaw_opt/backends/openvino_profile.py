"""Where OpenVINO's time goes: after each run it tells how long every node of its compiled model took.

It does not tell when a node began, so events lie one after the other, in the order of execution, from where the last run ended.
"""

from __future__ import annotations

from typing import Any

CONSTANT = "Const"


class NodeTimes:
    """Call it with an `openvino.InferRequest` after each run; `events` are Chrome trace events, microseconds since the first run."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._now = 0.0

    def __call__(self, request: Any) -> None:
        for node in request.get_profiling_info():
            spent = 1e6 * node.real_time.total_seconds()
            if not spent or node.node_type == CONSTANT:
                continue
            args = {"op_name": node.node_type, "kernel": node.exec_type}
            event = {
                "name": node.node_name,
                "cat": "Node",
                "ph": "X",
                "pid": 1,
                "tid": 1,
                "ts": self._now,
                "dur": spent,
            }
            self.events.append({**event, "args": args})
            self._now += spent
