"""The page that the side-by-side script makes of its raw numbers; the race itself is run by hand."""

from __future__ import annotations

from typing import Any

import pytest

from openclaw_opt.numerics.stats import Estimate
from tests.peers import speed, speed_encoder, speed_page


def row(peer: str, decode: float, prefill: float = 10.0, **more: Any) -> dict[str, Any]:
    facts = {"peer": peer, "why": "", "prefill_ms": [prefill] * 9, "decode_ms": [decode] * 9, "least_decode_ms": decode}
    return facts | {"bits_per_token": None, "ready_s": 1.0} | more


FOUND = {
    "model": "demo", "weight_bytes": 10**8, "readings": [1e10] * 8 + [2e10], "load": 0.1, "command": "COMMAND", "when": "a day", "half_bytes": 2**30,
    "builds": {
        "ours-onnxruntime": {"seconds": 30.0, "peak_bytes": 2**32}, "olive-rtn-int4": {"seconds": 100.0, "peak_bytes": 2**30},
        "olive-builder-int4": {"seconds": 40.0, "peak_bytes": 2**31},
    },
    "rows": [
        row("pytorch-fp32", 60.0), row("pytorch-bf16", 20.0), row("llama.cpp-q4_0", 6.0, 5.0), row("ours-gguf", 5.0, 8.0),
        row("openvino-int4", 0.0, why="not ready within 9 s", prefill_ms=[], decode_ms=[], least_decode_ms=None),
    ],
}  # fmt: skip


def test_the_page_orders_by_decode_and_judges_every_goal_by_its_interval() -> None:
    text = speed_page.page([FOUND], speed.PEERS, speed.NOT_RUN)
    lines = text.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")][1:5] == [
        "ours-gguf", "llama.cpp-q4_0", "pytorch-bf16", "pytorch-fp32",
    ]  # fmt: skip
    assert "- decode at or above the fastest peer: met; llama.cpp-q4_0 / ours-gguf 1.20× (1.20 to 1.20)" in lines
    assert "- prefill at or above the fastest peer: missed; llama.cpp-q4_0 / ours-gguf 0.62× (0.62 to 0.62)" in lines
    assert "- decode at least 10 × PyTorch fp32: met; pytorch-fp32 / ours-gguf 12.00× (12.00 to 12.00)" in lines
    assert "- decode at least 5 × PyTorch bf16: missed; pytorch-bf16 / ours-gguf 4.00× (4.00 to 4.00)" in lines
    assert "(the largest of 9 readings, 20.0 GB/s): met; 1.00 (1.00 to 1.00), fastest token 1.00" in text
    assert "- openvino-int4: not measured: not ready within 9 s" in lines
    assert any(line.startswith("- olive-gptq-int4: not measured: ") for line in lines)
    assert "| olive-builder-int4 | 40 | 2048 | 2.0 |" in lines
    assert "- build at most half of Olive's time: missed; 0.75 of its faster way's" in lines
    assert "- peak memory of the build at most 2 × the fp16 checkpoint: missed; 4.0 ×" in lines


def encoder(peer: str, ms: float, same: float) -> dict[str, Any]:
    accuracy = {
        name: {"value": same, "low": same, "high": same} for name in ("embedding.cosine.mean", "embedding.retrieval")
    }
    return {"peer": peer, "why": "", "ms": [[ms] * 9, [10 * ms] * 9], "accuracy": accuracy}


def test_an_encoder_is_judged_against_peers_that_keep_as_many_neighbours() -> None:
    rows = [
        encoder("ours-int8", 5.0, 0.98),
        encoder("ours-bad", 2.0, 0.9),
        encoder("onnxruntime-dynamic", 3.0, 0.85),
        encoder("onnxruntime-fused", 7.0, 1.0),
    ]
    found = {
        "model": "minilm", "shapes": [[1, 68], [16, 97]], "load": 9.0, "rows": rows, "command": "COMMAND", "when": "a day"
    }  # fmt: skip
    lines = speed_page.page([found], (), {}, ("torch-compile",)).splitlines()
    assert "| ours-int8 | 5.0 | 50.0 | 0.9800 (0.9800 to 0.9800) | 0.9800 (0.9800 to 0.9800) |" in lines
    goal = "tokens at least 1.2 × the fastest peer of equal or better accuracy: met; onnxruntime-fused / ours-int8 1.40× (1.40 to 1.40)"
    assert [f"- 1 × 68 {goal}", f"- 16 × 97 {goal}"] == [line for line in lines if "tokens at least" in line]
    assert "- torch-compile: not measured: not asked for in this run" in lines
    assert any("The machine was busy" in line for line in lines)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(1.1, 1.3, "met"), (0.7, 0.9, "missed"), (0.9, 1.1, "undecided"), (None, None, "undecided")],
)
def test_an_interval_over_the_goal_decides_nothing(low: float | None, high: float | None, said: str) -> None:
    assert speed_page.verdict(Estimate(1.0, low, high, 9), 1.0) == said


def test_every_peer_has_a_worker_and_every_environment_is_pinned() -> None:
    from tests.peers.worker import PEERS

    assert set(PEERS) == set(speed.PEERS)
    assert all("==" in package for packages in speed.VENVS.values() for package in packages)
    assert {*speed.HOMES.values(), "olive"} == set(speed.VENVS), "Olive builds in an environment of its own"
    assert {name.split("-")[0] for name in speed.ENCODER_PEERS if not name.startswith("ours-")} == set(
        speed_encoder.HOMES
    )
    assert {name for name in speed.ENCODER_PEERS if name.startswith("ours-")} == set(speed_encoder.OURS)
