"""One layer of the 0.41 B shape in each of ONNX Runtime's low-bit kernels, in turns on one thread: `python tests/peers/kernel_times.py`.

Inputs [M, 896] by weights [896, 4864], M = 1 and 64. The fastest call and the first quartile of the calls, milliseconds, and billions of
operations (two a weight and token) a second at the fastest, which is what a busy machine disturbs least.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

K, N, TOKENS, CALLS = 896, 4864, (1, 64), 40


def session(kind: str, arrays: dict[str, np.ndarray], domain: str = "", **attributes: int) -> Any:
    node = helper.make_node(kind, ["x", *arrays], ["y"], domain=domain, **attributes)
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", size])] for name, size in (("x", K), ("y", N))
    ]
    graph = helper.make_graph([node], "layer", *ends, [numpy_helper.from_array(a, name) for name, a in arrays.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def blocks(bits: int, block: int, level: int) -> Any:
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (N, K // block, block * bits // 8)).astype(np.uint8)
    arrays = {"codes": codes, "scale": np.full(N * K // block, 0.01, np.float32)}
    options = {"K": K, "N": N, "bits": bits, "block_size": block, "accuracy_level": level}
    return session("MatMulNBits", arrays, "com.microsoft", **options)


def dynamic(signed: bool) -> Any:
    codes = np.random.default_rng(0).integers(-127, 128, (K, N))
    scale = {"scale": np.full(N, 0.01, np.float32)}
    if signed:
        return session("DynamicQuantizeMatMul", {"codes": codes.astype(np.int8)} | scale, "com.microsoft")
    arrays = {"codes": (codes + 128).astype(np.uint8)} | scale | {"zero": np.full(N, 128, np.uint8)}
    return session("DynamicQuantizeMatMul", arrays, "com.microsoft")


def main() -> None:
    kernels = {
        f"MatMulNBits {bits} bits, blocks of {block}, level {level}": blocks(bits, block, level)
        for bits, block, level in ((4, 32, 4), (4, 64, 4), (4, 128, 4), (4, 32, 0), (8, 32, 4), (8, 128, 4))
    }
    kernels |= {f"DynamicQuantizeMatMul, {word}": dynamic(word == "signed") for word in ("signed", "unsigned")}
    weights = np.random.default_rng(0).normal(size=(K, N)).astype(np.float32)
    kernels["MatMul float32"] = session("MatMul", {"weight": weights})
    for tokens in TOKENS:
        x = np.random.default_rng(0).normal(size=(tokens, K)).astype(np.float32)
        times: dict[str, list[float]] = {name: [] for name in kernels}
        for _ in range(CALLS):
            for name, kernel in kernels.items():
                began = time.perf_counter_ns()
                kernel.run(None, {"x": x})
                times[name].append((time.perf_counter_ns() - began) / 1e6)
        for name, found in times.items():
            quartile, rate = statistics.quantiles(found, n=4)[0], 2e-6 * tokens * K * N / min(found)
            sys.stdout.write(f"{tokens:3} tokens  {name:45} {min(found):7.2f} {quartile:7.2f} ms {rate:5.0f} G/s\n")


if __name__ == "__main__":
    main()
