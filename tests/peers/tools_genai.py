"""onnxruntime-genai's model builder, int4; its graph is run by ONNX Runtime with an empty cache, every position's logits at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_worker import Arrays, Made, Task
from tools_torch import linears, load, parameters

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def built(algorithm: str, block: int, symmetric: bool = True) -> Callable[[Task], Made]:
    """The head stays float; activations stay float32 (`accuracy_level=1`; 4, its default, rounds them to int8)."""

    def make(task: Task) -> Made:
        folder = task.work / "built"
        options = [
            f"block_size={block}", f"algo_config={algorithm}", "accuracy_level=1", f"is_symmetric={str(symmetric).lower()}",
            "nodes_to_exclude=/lm_head/MatMul",
        ]  # fmt: skip
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", task.checkpoint, "-o", str(folder)]
        more = ["-p", "int4", "-e", "cpu", "-c", str(task.work / "hub"), "--extra_options", *options]
        subprocess.run([*command, *more], check=True, stdout=sys.stderr)
        model = load(task)
        layers = linears(model, task)
        weights = sum(one.weight.numel() for one in layers.values())
        low = _matmul_nbits(str(folder / "model.onnx"))
        return Made(_runner(str(folder / "model.onnx")), parameters(model), len(layers), weights, {"nodes": low})

    return make


def _matmul_nbits(file: str) -> int:
    """Nodes in low bits. Raises ValueError where the head is among them."""
    import onnx

    names = [n.name for n in onnx.load(file, load_external_data=False).graph.node if n.op_type == "MatMulNBits"]
    if any("lm_head" in name for name in names):
        raise ValueError("the builder quantized the head too")
    return len(names)


def _runner(file: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {one.name: one for one in session.get_inputs()}
    stated = json.loads(Path(file).with_name("genai_config.json").read_text())["model"]["decoder"]
    shape = [1, stated["num_key_value_heads"], 0, stated["head_size"]]
    past = {
        name: np.zeros(shape, FLOATS[one.type]) for name, one in inputs.items() if name.startswith("past_key_values")
    }

    def run(sample: Arrays) -> np.ndarray:
        length = sample["input_ids"].shape[1]
        feed = {**sample, "position_ids": np.arange(length, dtype=np.int64)[None], **past}
        return np.asarray(session.run(["logits"], {name: value for name, value in feed.items() if name in inputs})[0])

    return run


ROWS = {
    "default-32": built("default", 32),
    "rtn-32": built("rtn", 32),
    "k-quant-32": built("k_quant", 32),
    "k-quant-asym-32": built("k_quant", 32, False),
    "default-128": built("default", 128),
    "k-quant-128": built("k_quant", 128),
}
