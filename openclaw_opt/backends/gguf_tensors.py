"""A lowered graph's weights as GGUF tensors: the same codes in another order of nibbles, the same scales in half precision.

    MatMulNBits  W[n, k] = s[n, k // 32] · (u[n, k] − 8)      u packed in pairs along k
    Q4_0         W[n, k] = d[n, k // 32] · (u[n, k] − 8)      u packed as k with k + 16 of a block, d float16
    Q8_0         W[n, k] = d[n, k // 32] · q[n, k]            q int8, d float16

so int4 in blocks of 32 is Q4_0 and int8 weights are Q8_0: codes are equal bit for bit, and scales are where they are half
precision already. Rounding them moves a weight by 2^-11 of itself at most. A single int8 scale a channel is repeated.

Source: ggml's `block_q4_0`, `block_q8_0`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from openclaw_opt.artifacts import Graph
from openclaw_opt.backends.gguf_facts import ARCHITECTURES, Architecture
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.graph.fuse_matmul_nbits import NAME as NBITS
from openclaw_opt.models.rope import inverse_frequencies
from openclaw_opt.models.spec import DecoderSpec

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
BLOCK = 32
PACKED = ".weight_q.nbits"
"""How `graph.fuse_matmul_nbits` names the codes of a layer."""
PARTS = {
    "qkv": "attn_qkv",
    "o": "attn_output",
    "down": "ffn_down",
    "norm_in": "attn_norm",
    "norm_mlp": "ffn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "norm_post_attn": "post_attention_norm",
    "norm_post_mlp": "post_ffw_norm",
}


@dataclass(frozen=True)
class Blocks:
    """A quantized weight: codes [N, K], scales [N, K / 32]; `bits` 4 or 8."""

    codes: Codes
    scales: Floats
    bits: int

    def rows(self, order: Any) -> Blocks:
        return Blocks(self.codes[order], self.scales[order], self.bits)

    @property
    def type_name(self) -> str:
        return "Q4_0" if self.bits == 4 else "Q8_0"

    @property
    def half(self) -> NDArray[np.float16]:
        """The scales as the file has them."""
        return self.scales.astype(np.float16)

    def values(self) -> Floats:
        """What the file's weight stands for, [N, K]."""
        spread = np.repeat(self.half.astype(np.float32), BLOCK, axis=1)
        return self.codes.astype(np.float32) * spread

    def exact_values(self) -> Floats:
        """What the graph's weight stands for: the scales before they are rounded."""
        return self.codes.astype(np.float32) * np.repeat(self.scales, BLOCK, axis=1)

    def packed(self) -> NDArray[np.uint8]:
        """The file's bytes, [N, K / 32 · bytes of a block]."""
        n, blocks = self.scales.shape
        codes = self.codes.reshape(n, blocks, BLOCK)
        body: NDArray[np.uint8] = codes.view(np.uint8)
        if self.bits == 4:
            unsigned = np.asarray(codes + 8, np.uint8)
            body = np.asarray(unsigned[..., : BLOCK // 2] | (unsigned[..., BLOCK // 2 :] << 4), np.uint8)
        scales = np.ascontiguousarray(self.half).view(np.uint8).reshape(n, blocks, 2)
        return np.concatenate([scales, body], axis=-1).reshape(n, -1)


Weight = Blocks | Floats


class Weights:
    """Initializers of a lowered graph by module name, as [N, K] weights."""

    def __init__(self, graph: Graph) -> None:
        proto = onnx.load(str(graph.onnx), load_external_data=False).graph
        self._constants = {tensor.name: partial(_array, tensor, graph.folder) for tensor in proto.initializer}
        self._nbits = {node.input[1].removesuffix(PACKED): node for node in proto.node if node.op_type == NBITS}
        self.where = str(graph.onnx)
        left = sorted(name.removesuffix(".pre_scale") for name in self._constants if name.endswith(".pre_scale"))
        if left:
            raise RecipeError(
                f"GGUF has no place for the input factors of {', '.join(left[:3])}"
                + (f" and {len(left) - 3} more" if len(left) > 3 else ""),
                where=self.where,
                fix="quantize: {algorithm: rtn}",
            )

    @property
    def head_is_embedding(self) -> bool:
        """A tied head that is still float has no weight of its own in the graph."""
        return "head" not in self._nbits and "head.weight" not in self._constants

    def find(self, name: str) -> Floats | None:
        """A float initializer by its full name."""
        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(tensor(), np.float32)

    def linear(self, layer: str) -> Weight:
        """The weight of a linear layer, [out, in]. Raises VerificationError where the graph has it in no form we know."""
        if layer in self._nbits:
            return _blocks(layer, self._nbits[layer], self._constants)
        matrix = self.find(f"{layer}.weight")
        if matrix is None:
            raise VerificationError(f"the graph holds no weight of {layer}", where=self.where)
        return np.ascontiguousarray(matrix.T)


def _array(tensor: Any, folder: Path) -> NDArray[Any]:
    """A constant, read from the weights' file as it is asked for; onnx itself opens no file that has several links."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    start, length = int(place.get("offset", 0)), int(place["length"])
    raw = np.memmap(folder / place["location"], np.uint8, "r", start, (length,))
    array: NDArray[Any] = raw.view(kind).reshape(tuple(tensor.dims))
    return array


def _blocks(layer: str, node: Any, constants: Mapping[str, Callable[[], NDArray[Any]]]) -> Blocks:
    facts = {attribute.name: attribute.i for attribute in node.attribute}
    k, n, bits, block = (facts[key] for key in ("K", "N", "bits", "block_size"))
    packed = constants[node.input[1]]().reshape(n, -1)
    scales = constants[node.input[2]]().astype(np.float32).reshape(n, -1)
    unsigned = np.stack((packed & 0xF, packed >> 4), -1).reshape(n, -1) if bits == 4 else packed
    codes = (unsigned.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    if k % BLOCK or block % BLOCK:
        raise RecipeError(f"{layer}: GGUF has blocks of {BLOCK}, which do not fit {k} inputs in blocks of {block}")
    made = Blocks(codes[:, :k], np.repeat(scales, block // BLOCK, axis=1)[:, : k // BLOCK], bits)
    half = made.half
    if not bool((np.isfinite(half) & (half != 0)).all()):
        low, high = float(made.scales.min()), float(made.scales.max())
        raise VerificationError(f"a scale between {low:.3g} and {high:.3g} has no float16 value", where=layer)
    return made


def tensors(graph: Graph, spec: DecoderSpec) -> Iterator[tuple[str, Weight, str]]:
    """Name in the file, weight or vector, and the quantized layer of ours it is (empty for others)."""
    weights, arch = Weights(graph), ARCHITECTURES[spec.family]
    embed = weights.find("embed.weight")
    assert embed is not None, "a decoder's graph has its embedding"
    yield "token_embd.weight", embed, ""
    for i in range(len(spec.layers)):
        yield from _layer(weights, spec, arch, i)
    norm = weights.find("norm_out.weight")
    assert norm is not None, "a decoder's graph ends with a norm"
    yield "output_norm.weight", norm, ""
    if weights.head_is_embedding:
        return
    head = weights.linear("head")
    if not isinstance(head, Blocks) and np.array_equal(head, embed):
        return
    if not arch.free_head:
        raise RecipeError(
            f"llama.cpp's {arch.name} takes its embedding for the head; this head is quantized",
            fix="quantize: {keep: [head]}",
        )
    yield "output.weight", head, "head"


def _layer(weights: Weights, spec: DecoderSpec, arch: Architecture, i: int) -> Iterator[tuple[str, Weight, str]]:
    ours, theirs = f"layers.{i}", f"blk.{i}"
    rows = qkv_order(spec, arch.interleaved)
    for part, name in PARTS.items():
        if part not in ("qkv", "o", "down"):
            vector = weights.find(f"{ours}.{part}.weight")
            if vector is not None:
                yield f"{theirs}.{name}.weight", vector, ""
            continue
        weight = weights.linear(f"{ours}.{part}")
        bias = weights.find(f"{ours}.{part}.bias")
        if part == "qkv":
            weight, bias = _rows(weight, rows), None if bias is None else bias[rows]
        yield f"{theirs}.{name}.weight", weight, f"{ours}.{part}"
        if bias is not None:
            yield f"{theirs}.{name}.bias", bias, ""
    yield from _gate_up(weights, spec, arch, i)
    if i == 0 and (factors := frequency_factors(spec)) is not None:
        yield "rope_freqs.weight", factors, ""


def _gate_up(weights: Weights, spec: DecoderSpec, arch: Architecture, i: int) -> Iterator[tuple[str, Weight, str]]:
    layer, ffn = f"layers.{i}.gate_up", spec.layers[i].ffn
    weight, bias = weights.linear(layer), weights.find(f"{layer}.bias")
    halves = {"ffn_up": slice(None)} if arch.merged_ffn else {"ffn_gate": slice(0, ffn), "ffn_up": slice(ffn, None)}
    for name, rows in halves.items():
        yield f"blk.{i}.{name}.weight", _rows(weight, rows), layer
        if bias is not None:
            yield f"blk.{i}.{name}.bias", bias[rows], ""


def _rows(weight: Weight, order: Any) -> Weight:
    return weight.rows(order) if isinstance(weight, Blocks) else weight[order]


def qkv_order(spec: DecoderSpec, interleaved: bool) -> NDArray[np.int64]:
    """Rows of [q | k | v] in the file's order: of each rotated head, elements i and i + dim / 2 become neighbours."""
    layer, dim = spec.layers[0], spec.head_dim
    rotated = np.arange((layer.q_heads + layer.kv_heads) * dim)
    if interleaved:
        rotated = rotated.reshape(-1, 2, dim // 2).swapaxes(1, 2).reshape(-1)
    return np.concatenate([rotated, len(rotated) + np.arange(layer.kv_heads * dim)])


def frequency_factors(spec: DecoderSpec) -> Floats | None:
    """What llama.cpp divides each plain frequency by, float32 [dim / 2]; None where frequencies are plain or linear."""
    rope = next(iter(spec.ropes.values()))
    if rope.type in ("default", "linear"):
        return None
    plain = inverse_frequencies(rope.model_copy(update={"type": "default"}))
    return np.asarray((plain / inverse_frequencies(rope)).to(torch.float32).numpy())
