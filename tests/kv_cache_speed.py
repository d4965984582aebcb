"""Time of ONNX Runtime's attention kernel by type of its cache: `python tests/kv_cache_speed.py [threads]`.

One layer of the shape below, batch 1, kernels in turns; of each the fastest run and the median, in milliseconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
RUNS = {1: 25}
"""New tokens → turns; 5 for prompts."""
CASES = ((512, 1), (4096, 1), (16384, 1), (1024, 1024))
"""Tokens in the sequence, and how many of them are new."""
KINDS = {
    "float32": (0, "NONE", np.float32, HEAD_DIM),
    "int8, channel": (8, "PER_CHANNEL", np.int8, HEAD_DIM),
    "int8, tensor": (8, "PER_TENSOR", np.int8, HEAD_DIM),
    "int4, channel": (4, "PER_CHANNEL", np.uint8, HEAD_DIM // 2),
}


def session(kind: str, threads: int) -> ort.InferenceSession:
    """GroupQueryAttention alone."""
    bits, scaling, dtype, width = KINDS[kind]
    helper, types = onnx.helper, onnx.TensorProto
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    sizes = zip("qkv", (Q_HEADS, KV_HEADS, KV_HEADS), strict=True)
    inputs = [helper.make_tensor_value_info(n, types.FLOAT, [1, "new", heads * HEAD_DIM]) for n, heads in sizes]
    inputs += [helper.make_tensor_value_info(n, element, [1, KV_HEADS, "room", width]) for n in ("pk", "pv")]
    inputs += [
        helper.make_tensor_value_info("last", types.INT32, [1]),
        helper.make_tensor_value_info("all", types.INT32, []),
    ]
    names, options = [value.name for value in inputs], {}
    if bits:
        options = {"kv_cache_bit_width": bits, "k_quant_type": scaling, "v_quant_type": scaling}
        inputs += [helper.make_tensor_value_info(n, types.FLOAT, None) for n in ("ks", "vs")]
        names += [*[""] * 5, "ks", "vs"]
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "nk", "nv"], domain="com.microsoft",
        num_heads=Q_HEADS, kv_num_heads=KV_HEADS, scale=HEAD_DIM**-0.5, **options,
    )  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", types.FLOAT, [1, "new", Q_HEADS * HEAD_DIM])]
    outputs += [helper.make_tensor_value_info(n, element, [1, KV_HEADS, "room", width]) for n in ("nk", "nv")]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "attention", inputs, outputs), opset_imports=opsets, ir_version=11
    )
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), chosen, providers=["CPUExecutionProvider"])


def prepared(kind: str, tokens: int, new: int, threads: int) -> Any:
    """A call without arguments that runs one step in place."""
    bits, scaling, dtype, width = KINDS[kind]
    random, made = np.random.default_rng(0), session(kind, threads)
    held = random.normal(0, 40, (1, KV_HEADS, tokens, width)).astype(dtype)
    feed: dict[str, Any] = {
        "pk": held,
        "pv": held.copy(),
        "last": np.array([tokens - 1], np.int32),
        "all": np.array(tokens, np.int32),
    }
    for name, heads in zip("qkv", (Q_HEADS, KV_HEADS, KV_HEADS), strict=True):
        feed[name] = random.standard_normal((1, new, heads * HEAD_DIM)).astype(np.float32)
    if bits:
        feed |= dict.fromkeys(
            ("ks", "vs"), np.full(KV_HEADS * HEAD_DIM if scaling == "PER_CHANNEL" else 1, 0.02, np.float32)
        )
    binding, values = made.io_binding(), {}
    for name, array in feed.items():
        values[name] = ort.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, values[name])
    binding.bind_output("y")
    binding.bind_ortvalue_output("nk", values["pk"])
    binding.bind_ortvalue_output("nv", values["pv"])
    return lambda: made.run_with_iobinding(binding)


def main(threads: int = 1) -> None:
    print(f"onnxruntime {ort.__version__}, {threads} threads; fastest (median), ms")
    for tokens, new in CASES:
        steps = {kind: prepared(kind, tokens, new, threads) for kind in KINDS}
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(RUNS.get(new, 5)):
            for kind, step in steps.items():
                began = time.perf_counter()
                step()
                times[kind].append(1e3 * (time.perf_counter() - began))
        told = ", ".join(f"{kind} {min(each):.2f} ({statistics.median(each):.2f})" for kind, each in times.items())
        print(f"{tokens} tokens, {new} new: {told}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
