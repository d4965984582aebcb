"""The script for a real card: its page from raw numbers, and a run on the CPU as far as it goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openclaw_opt.targets import host
from tests.gpu import measure

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "gpu" / "measure.py"
RESULTS = ROOT / "docs" / "results"


def row(subject: str, later: float, batch: int = 1, read: int = 0, why: str = "", watts: float = 0) -> dict[str, Any]:
    times = [later] * 9 if later else []
    board = {"gpu.power_w": watts, "gpu.energy_per_token_j": watts / 1e3} if watts else {}
    return {
        "subject": subject,
        "batch": batch,
        "first": times,
        "later": times,
        "bytes": read,
        "board": board,
        "why": why,
    }


FOUND = {
    "command": "COMMAND", "device": "cuda", "machine": {"card": "NVIDIA H200"},
    "shapes": [{
        "shape": "8b", "rates": [4.0e12, 4.4e12],
        "rows": [
            row("pytorch-eager", 20.0), row("onnxruntime-int4", 2.0, read=4_400_000_000, watts=600.0), row("onnxruntime-fp16", 5.0, read=16 * 10**9),
            row("tensorrt-fp16", 0.0, why="this card is not for TensorRT-RTX"), row("pytorch-eager", 25.0, 16),
            row("onnxruntime-int4", 5.0, 16, 10**9),
        ],
    }],
}  # fmt: skip


def test_the_page_has_every_subject_and_judges_by_intervals() -> None:
    text = measure.page(FOUND)
    assert (
        "| onnxruntime-int4 | 1 | 2.00 | 2.000 | 500 | 10.00× (10.00 to 10.00) | 0.50 (0.50 to 0.50) | 600 | 0.6 |"
        in text
    )
    assert (
        "| onnxruntime-int4 | 16 | 5.00 | 5.000 | 3200 | 5.00× (5.00 to 5.00) | 0.05 (0.05 to 0.05) | – | – |" in text
    )
    assert "| tensorrt-fp16 | 1 | not measured: this card is not for TensorRT-RTX |" in text
    assert "- at least 5 × PyTorch eager: met; onnxruntime-int4 10.00×" in text
    assert "- at least 0.7 of the bound: missed; onnxruntime-int4 0.50×" in text
    assert "Memory was read at 4400 GB/s at most in this run." in text
    assert "Not measured on a GPU" not in text


def test_a_page_without_a_card_says_so_and_judges_nothing() -> None:
    text = measure.page({**FOUND, "device": "cpu"})
    assert "**Not measured on a GPU.**" in text
    assert "met;" not in text
    assert "missed;" not in text


def test_the_page_in_the_docs_is_the_scripts() -> None:
    raw = RESULTS / "gpu.json"
    wanted = measure.page(json.loads(raw.read_text())) if raw.is_file() else measure.UNMEASURED
    assert (RESULTS / "gpu.md").read_text() == wanted


@pytest.mark.skipif(host().is_gpu, reason="this machine has a GPU: the script would run on it")
def test_without_a_card_the_script_stops_at_once(tmp_path: Path) -> None:
    done = script("--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        3,
        "not measured: this machine has no NVIDIA GPU; --device cpu tries the script",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_script_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    subjects = ("pytorch-eager", "onnxruntime-int4", "tensorrt-fp16")
    done = script(
        "--device", "cpu", "--shapes", "tiny", "--subjects", *subjects, "--batches", "1", "2", "--rounds", "7", "--read-mib", "8",
        "--cache", str(tmp_path / "cache"), "--output", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    rows = {(one["subject"], one["batch"]): one for one in found["shapes"][0]["rows"]}
    assert {len(rows[name, batch]["later"]) for name in subjects[:2] for batch in (1, 2)} == {7}
    assert rows["onnxruntime-int4", 2]["bytes"] > rows["onnxruntime-int4", 1]["bytes"] > 0
    assert len(found["shapes"][0]["rates"]) == 14
    if not host().is_gpu:
        assert "TensorRT does not build for" in rows["tensorrt-fp16", 1]["why"]
    assert (tmp_path / "gpu.md").read_text() == measure.page(found)


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
