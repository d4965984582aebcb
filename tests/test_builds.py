"""The shipped recipes, whole, on the real checkpoints in the box, by the command line a user would type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from openclaw_opt.artifacts import Engine, Measurement
from openclaw_opt.backends import DecoderSession
from openclaw_opt.backends.onnxruntime import open_engine
from openclaw_opt.records import Report
from openclaw_opt.report import read_report

ROOT = Path(__file__).parent.parent
PROMPT = "def __init__(self"
NEW_TOKENS = 32

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(recipe: str, cache: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`openclaw-opt build --recipe recipes/RECIPE.yaml`, with every core the machine has."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", f"recipes/{recipe}.yaml", "-o", str(out)]
    return subprocess.run(
        [*command, "--cache", str(cache), *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


def built(recipe: str, cache: Path, out: Path) -> Report:
    done = run(recipe, cache, out)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(out)
    assert report.verdict == "within budget"
    assert all(record.verification is None or record.verification.ok for record in report.passes)
    return report


def measured(report: Report, name: str) -> Measurement:
    return next(row for row in report.measurements if row.name == name and row.subject != "reference")


def test_int8_cpu(cache: Path, tmp_path: Path) -> None:
    """At least 0.99 of the checkpoint's own bits per byte, and twice the speed of PyTorch in the same interleaved run."""
    out = tmp_path / "out"
    report = built("int8-cpu", cache, out)
    recovery, speedup = measured(report, "bits_per_byte.recovery"), measured(report, "speedup")
    assert recovery.value is not None
    assert recovery.value >= 0.99
    assert speedup.low is not None
    assert speedup.low >= 2
    assert {row.realised for row in report.receipt} != set()
    assert all(row.ok for row in report.receipt)
    began = time.monotonic()
    again = run("int8-cpu", cache, out)
    assert again.returncode == 0
    assert time.monotonic() - began < 6, "no work; two seconds on an idle machine"
    assert all(record.cached for record in read_report(out).passes)


def test_int4_cpu_generates_the_same_text_in_genai(cache: Path, tmp_path: Path) -> None:
    import onnxruntime_genai as og

    out = tmp_path / "out"
    report = built("int4-cpu", cache, out)
    assert all(row.ok for row in report.receipt)
    model = og.Model(str(out))
    tokenizer = og.Tokenizer(model)
    prompt = tokenizer.encode(PROMPT)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + NEW_TOKENS, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    theirs = list(generator.get_sequence(0))[len(prompt) :]
    ours = greedy(Engine(out), np.array(prompt, np.int64))
    assert len(theirs) > 8
    assert theirs == ours[: len(theirs)]


def greedy(engine: Engine, prompt: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    with open_engine(engine) as session:
        assert isinstance(session, DecoderSession)
        token = session.prefill(prompt[None]).argmax(-1)
        found = [int(token[0])]
        while len(found) < NEW_TOKENS:
            token = session.decode(token).argmax(-1)
            found.append(int(token[0]))
    return found


def test_minilm_int8_cpu(cache: Path, tmp_path: Path) -> None:
    report = built("minilm-int8-cpu", cache, tmp_path / "out")
    assert report.task == "encoder"
    assert all(row.ok for row in report.receipt)
    assert report.receipt


@pytest.mark.parametrize(
    ("recipe", "sm", "realised"),
    [("int8-rtx4090", "sm89", "int8"), ("fp8-l40s", "sm89", "fp8"), ("int4-rtx3060", "sm86", "int4")],
)
def test_engines_without_a_gpu(recipe: str, sm: str, realised: str, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = built(recipe, cache, out)
    assert (out / f"engine-{sm}.plan").stat().st_size > 0
    assert {row.asked for row in report.receipt} == {realised}
    assert all(row.ok for row in report.receipt)
    decode = next(row for row in report.kernels if row.profile == "decode")
    assert decode.per_layer is not None
    assert decode.per_layer <= 10
    latency = measured(report, "latency.decode.p50_ms")
    assert latency.value is None
    assert latency.not_measured == "no NVIDIA GPU"
    assert measured(report, "bits_per_byte.recovery").subject == "engine graph on ONNX Runtime CPU"


def test_int8_h100_is_left_one_command_from_finished(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("int8-h100", cache, out)
    assert done.returncode == 3
    assert f"openclaw-opt build {out} --resume" in done.stdout
    assert (out / "graph" / "model.onnx").is_file()
    assert json.loads((out / "engine.json").read_text())["finished"] is False
    assert measured(read_report(out), "bits_per_byte.recovery").value is not None
    until = run("int8-h100", cache, tmp_path / "graph", "--until", "graph")
    assert until.returncode == 0, until.stderr


def test_pruned_int8_l4(cache: Path, tmp_path: Path) -> None:
    report = built("pruned-int8-l4", cache, tmp_path / "out")
    prune = next(record for record in report.passes if record.word == "prune")
    assert prune.parameters is not None
    assert prune.parameters < report.parameters
