"""OpenVINO: optimum-intel's export, NNCF's int8 for transformers (activations and weights) or weights alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from accuracy_worker import Arrays, Made, Task
from tools_torch import linears, load, parameters

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def encoder(kind: str) -> Callable[[Task], Made]:
    """`float32`, `int8-static` or `int8-weights` of an encoder; hidden states out."""

    def make(task: Task) -> Made:
        import nncf
        import openvino
        from optimum.intel import OVModelForFeatureExtraction

        model = load(task)
        wanted = linears(model, task)
        count, weights = parameters(model), sum(one.weight.numel() for one in wanted.values())
        made = OVModelForFeatureExtraction.from_pretrained(task.checkpoint, export=True, compile=False).model
        if kind == "int8-static":
            data = nncf.Dataset(task.samples("calibration"), lambda one: {name: one[name] for name in INPUTS})
            made = nncf.quantize(made, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=256)
        elif kind == "int8-weights":
            made = nncf.compress_weights(made, mode=nncf.CompressWeightsMode.INT8_SYM)
        compiled = openvino.compile_model(
            made, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        )
        request = compiled.create_infer_request()

        def run(arrays: Arrays) -> np.ndarray:
            return np.array(next(iter(request.infer({name: arrays[name] for name in INPUTS}).values())))

        low = kind != "float32"
        return Made(run, count, len(wanted) if low else 0, weights if low else 0)

    return make


ROWS = {kind: encoder(kind) for kind in ("float32", "int8-static", "int8-weights")}
