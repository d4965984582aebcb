"""The page that the side-by-side script makes of its raw numbers; the race itself is run by hand."""

from __future__ import annotations

from typing import Any

import pytest

from openclaw_opt.numerics.stats import Estimate
from tests.peers import speed


def row(peer: str, decode: float, prefill: float = 10.0, **more: Any) -> dict[str, Any]:
    facts = {"peer": peer, "why": "", "prefill_ms": [prefill] * 9, "decode_ms": [decode] * 9, "least_decode_ms": decode}
    return facts | {"bits_per_token": None, "ready_s": 1.0} | more


FOUND = {
    "model": "demo", "weight_bytes": 10**8, "readings": [1e10] * 8 + [2e10], "load": 0.1, "build_s": {"gguf": 3.0},
    "rows": [
        row("pytorch-fp32", 60.0), row("pytorch-bf16", 20.0), row("llama.cpp-q4_0", 6.0, 5.0), row("ours-gguf", 5.0, 8.0),
        row("openvino-int4", 0.0, why="not ready within 9 s", prefill_ms=[], decode_ms=[], least_decode_ms=None),
    ],
}  # fmt: skip


def test_the_page_orders_by_decode_and_judges_every_goal_by_its_interval() -> None:
    text = speed.page([FOUND], "COMMAND")
    lines = text.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")][1:] == [
        "ours-gguf", "llama.cpp-q4_0", "pytorch-bf16", "pytorch-fp32",
    ]  # fmt: skip
    assert "- decode at or above the fastest peer: met; llama.cpp-q4_0 / ours-gguf 1.20× (1.20 to 1.20)" in lines
    assert "- prefill at or above the fastest peer: missed; llama.cpp-q4_0 / ours-gguf 0.62× (0.62 to 0.62)" in lines
    assert "- decode at least 10 × PyTorch fp32: met; pytorch-fp32 / ours-gguf 12.00× (12.00 to 12.00)" in lines
    assert "- decode at least 5 × PyTorch bf16: missed; pytorch-bf16 / ours-gguf 4.00× (4.00 to 4.00)" in lines
    assert "(the largest of 9 readings, 20.0 GB/s): met; 1.00 (1.00 to 1.00), fastest token 1.00" in text
    assert "- openvino-int4: not measured: not ready within 9 s" in lines
    assert any(line.startswith("- olive: not measured: ") for line in lines)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(1.1, 1.3, "met"), (0.7, 0.9, "missed"), (0.9, 1.1, "undecided"), (None, None, "undecided")],
)
def test_an_interval_over_the_goal_decides_nothing(low: float | None, high: float | None, said: str) -> None:
    assert speed.verdict(Estimate(1.0, low, high, 9), 1.0) == said


def test_every_peer_has_a_worker_and_every_environment_is_pinned() -> None:
    from tests.peers.worker import PEERS

    assert set(PEERS) == set(speed.PEERS)
    assert all("==" in package for packages in speed.VENVS.values() for package in packages)
    assert set(speed.HOMES.values()) == set(speed.VENVS)
