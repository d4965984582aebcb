"""Artifacts for the race, and what making them took: ours, and Olive's own workflow on the same checkpoint.

Each build runs in a process of its own; its wall time and the largest sum of resident memory of its process and their children,
sampled every 50 ms, stand in builds.json. Ours includes every check it makes and starts without a cache; Olive checks nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
SAMPLE_S = 0.05
RECIPE = """\
model: {model}
target: host
passes:
{quantize}  - export
  - fuse
  - build: {{backend: {backend}}}
metrics: []
"""
INT4 = """\
  - quantize: {format: int4, algorithm: rtn, calibration: signed, block: 32, keep: []}
"""
"""The head too, and the signed ranges of ONNX Runtime's and llama.cpp's own rounding: the same bytes as theirs."""
OURS = {
    "onnxruntime": ("onnxruntime", INT4), "gguf": ("gguf", INT4), "openvino": ("openvino", INT4), "float": ("gguf", ""),
}  # fmt: skip
"""Artifact → its backend and what is quantized; `float` is what llama.cpp quantizes itself."""
BUILDER = {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32, "int4_accuracy_level": 4}
OLIVE: dict[str, dict[str, Any]] = {
    "olive-builder-int4": {"build": BUILDER},
    "olive-rtn-int4": {"round": {"type": "Rtn", "bits": 4, "group_size": 32, "sym": True}, "build": BUILDER},
}
"""Olive's passes of each row: the model builder alone, and its own rounding to nearest before it."""


def built(name: str, record: Path, command: list[str], env: dict[str, str]) -> None:
    """Run a build and note seconds and peak bytes under its name. Raises CalledProcessError with its log's last line."""
    log = record.with_name(f"build-{name}.log")
    began, peak = time.monotonic(), 0
    with log.open("w") as out:
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | env)
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(SAMPLE_S)
    if process.returncode:
        lines = [line for line in log.read_text().splitlines() if line.strip()] or ["no word"]
        raise subprocess.CalledProcessError(process.returncode, f"the build of {name}: {lines[-1][:160]}")
    found = records(record) | {name: {"seconds": time.monotonic() - began, "peak_bytes": peak}}
    record.write_text(json.dumps(found, indent=1) + "\n")


def resident(process: psutil.Process) -> int:
    """Bytes of the process and its children now; what ended meanwhile counts as nothing."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def records(record: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(record.read_text()) if record.is_file() else {}
    return found


def ours(checkpoint: Path, cache: Path, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Those of our artifacts of that checkpoint; what each took, whenever it was made."""
    record = cache / "builds.json"
    for name in names:
        backend, quantize = OURS[name]
        folder = cache / f"ours-{name}"
        if (folder / "engine.json").is_file():
            continue
        recipe = cache / f"{name}.yaml"
        recipe.write_text(RECIPE.format(model=checkpoint.absolute(), quantize=quantize, backend=backend))
        command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", str(recipe), "--output", str(folder)]
        passes = cache / ("passes" if name == "onnxruntime" else f"passes-{name}")  # each from nothing
        built(f"ours-{name}", record, [*command, "--cache", str(passes)], {"PYTHONPATH": str(ROOT)})
        shutil.rmtree(passes)  # of half a billion weights in float32 it is ten gigabytes
    return records(record)


def olive(name: str, python: str, checkpoint: Path, cache: Path) -> Path:
    """The folder of Olive's result, for onnxruntime-genai."""
    folder = cache / name
    if not list(folder.rglob("genai_config.json")):
        config = cache / f"{name}.json"
        local = {
            "type": "LocalSystem",
            "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
        }
        asked = {
            "input_model": {"type": "HfModel", "model_path": str(checkpoint)},
            "systems": {"local": local}, "host": "local", "target": "local", "passes": OLIVE[name],
            "output_dir": str(folder), "cache_dir": str(cache / f"{name}.cache"),
        }  # fmt: skip
        config.write_text(json.dumps(asked, indent=1))
        env = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
        built(name, cache / "builds.json", [python, "-m", "olive", "run", "--config", str(config)], env)
    return next(iter(folder.rglob("genai_config.json"))).parent
