"""Quantized linear and convolution layers: the numbers are already low-bit, the forward is what ONNX Q/DQ does.

Layout, torch orientation, N outputs and K inputs (buffers of the module, stored as they are in safetensors):

    kind    weight_q                     weight_scale                  weight_global
    int8    int8 [N, K]                  float32 [N] or []             –
    fp8     float8_e4m3fn [N, K]         float32 [N] or []             –
    int4    uint8 [N, K / 2], packed     float32 [N, K / block]        –
    uint4   uint8 [N, K / 2], packed     float32 [N, K / block]        –
    nvfp4   uint8 [N, K / 2], packed     float8_e4m3fn [N, K / block]  float32 []

    weight_zero  uint8 [N, K / block], the code that stands for 0; of uint4 alone.
    input_scale  float32 [], absent for weight-only, and where each token has a scale of its own, found when it runs.
                 int8, fp8: the step. nvfp4: the global scale, absmax / (6 * 448).
    pre_scale    float32 [K], what the input is multiplied with before anything else (SmoothQuant, AWQ); may be absent.
    bias         float32 [N]; may be absent.
    weight       empty, not stored; its dtype is that of activations. Hugging Face models ask a layer's weight for it.

Scales are rounded to the activations' dtype before use, because the exported graph holds them in that dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openclaw_opt.models.spec import LayerQuant, WeightKind
from openclaw_opt.numerics.microscaling import ELEMENT_TOP, SCALE_BOTTOM, SCALE_TOP, e2m1_codes, e2m1_values
from openclaw_opt.numerics.pieces import slices
from openclaw_opt.numerics.quantization import TOP, blocked, pack_int4, pack_nibbles, unpack_int4, unpack_nibbles

WEIGHT_TYPES = {
    "int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8, "uint4": torch.uint8, "nvfp4": torch.uint8
}  # fmt: skip
SMALLEST_STEP = 1e-30
"""Of a token's scale: nothing divides by zero."""
PACKED = ("int4", "uint4", "nvfp4")
"""Kinds with two codes a byte."""


@dataclass(frozen=True)
class QuantParts:
    """What a quantize pass hands over for one layer; shapes as in the module docstring.

    `weight_q` of int4 is int8 [N, K] in [-8, 7], of uint4 and nvfp4 uint8 [N, K] codes or already packed [N, K / 2].
    """

    format: str
    kind: WeightKind
    weight_q: Tensor
    weight_scale: Tensor
    weight_global: Tensor | None = None
    block: int | None = None
    input_scale: Tensor | None = None
    pre_scale: Tensor | None = None
    bias: Tensor | None = None
    weight_zero: Tensor | None = None
    dynamic: bool = False

    @property
    def quant(self) -> LayerQuant:
        return LayerQuant(
            format=self.format,
            kind=self.kind,
            block=self.block,
            per_channel=self.weight_scale.ndim > 0,
            input_scale=self.input_scale is not None,
            dynamic=self.dynamic,
            pre_scale=self.pre_scale is not None,
        )

    @classmethod
    def empty(cls, quant: LayerQuant, shape: tuple[int, ...], *, bias: bool) -> QuantParts:
        """Parts of a weight of `shape` without numbers, for loading into."""
        rows, columns = shape[0], shape[1]
        wide = (rows, columns // 2) if quant.kind in PACKED else shape
        if quant.block is not None:
            scales: tuple[int, ...] = (rows, columns // quant.block)
        else:
            scales = (rows,) if quant.per_channel else ()
        meta = torch.device("meta")
        scale_type = torch.float8_e4m3fn if quant.kind == "nvfp4" else torch.float32
        return cls(
            quant.format,
            quant.kind,
            torch.empty(wide, dtype=WEIGHT_TYPES[quant.kind], device=meta),
            torch.empty(scales, dtype=scale_type, device=meta),
            torch.empty((), device=meta) if quant.kind == "nvfp4" else None,
            quant.block,
            torch.empty((), device=meta) if quant.input_scale else None,
            torch.empty(columns, device=meta) if quant.pre_scale else None,
            torch.empty(rows, device=meta) if bias else None,
            torch.empty(scales, dtype=torch.uint8, device=meta) if quant.kind == "uint4" else None,
            quant.dynamic,
        )


class QuantLayer(nn.Module):
    """The buffers of a quantized layer and their arithmetic."""

    weight: Tensor
    weight_q: Tensor
    weight_scale: Tensor
    weight_global: Tensor | None
    weight_zero: Tensor | None
    input_scale: Tensor | None
    pre_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, parts: QuantParts) -> None:
        super().__init__()
        self.quant = parts.quant
        self.takes_float = False
        """Inputs are left as they are; to compare what else a layer does."""
        for name, value in _buffers(parts).items():
            self.register_buffer(name, value)
        self.register_buffer("weight", torch.empty(0, device="cpu"), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLayer:
        """Follow `.to(device)`, and keep every dtype through `.half()` and the like: the numbers are the format."""
        self.weight = fn(self.weight)
        for name, value in self._buffers.items():
            if value is not None and name != "weight":
                self._buffers[name] = value.to(fn(value.new_empty(0)).device)
        return self

    @property
    def out_features(self) -> int:
        return self.weight_q.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight_q.shape[1] * (2 if self.quant.kind in PACKED else 1)

    def weight_values(self, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
        """What the low-bit weight stands for, in `dtype`: [N, K] (or [N, K / groups, height, width]), or some rows of it."""
        codes, scale = self.weight_q[rows], self.weight_scale.float()
        if self.quant.kind == "nvfp4":
            assert self.weight_global is not None
            scale = scale * self.weight_global
        scale = scale.to(dtype).float()
        scale = scale[rows] if scale.ndim else scale
        zero = None if self.weight_zero is None else self.weight_zero[rows]
        shape = (len(codes), self.in_features) if self.quant.kind in PACKED else codes.shape
        made = torch.empty(shape, dtype=dtype, device=codes.device)
        for at in slices(made):
            steps = scale[at] if scale.ndim else scale
            made[at] = self._values(codes[at], steps, None if zero is None else zero[at])
        return made

    def _values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Rows of codes, float32."""
        values = self._unpacked(codes)
        if self.quant.block is not None:
            blocks = blocked(values, self.quant.block)
            if zero is not None:
                blocks = blocks - zero[..., None]
            return (blocks * scale[..., None]).flatten(1)
        return values * (scale.reshape(-1, *[1] * (values.ndim - 1)) if scale.ndim else scale)

    def _unpacked(self, codes: Tensor) -> Tensor:
        if self.quant.kind == "int4":
            return unpack_int4(codes).float()
        if self.quant.kind == "uint4":
            return unpack_nibbles(codes).float()
        if self.quant.kind == "nvfp4":
            return e2m1_values(unpack_nibbles(codes))
        return codes.float()

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input as the low-bit multiplication sees it: scaled, rounded and scaled back."""
        if self.pre_scale is not None:
            x = x * self.pre_scale.to(x.dtype)
        if self.takes_float:
            return x
        if self.quant.dynamic:
            return _by_token(x)
        if self.input_scale is None:
            return x
        if self.quant.kind == "nvfp4":
            return self._fp4_input(x)
        step = self.input_scale.to(x.dtype).float()
        rounded = (_round_fp8 if self.quant.kind == "fp8" else _round_int8)(x.float() / step)
        return (rounded * step).to(x.dtype)

    def _fp4_input(self, x: Tensor) -> Tensor:
        """Blocks of the last axis, each with an E4M3 scale of its own times the global scale."""
        assert self.input_scale is not None
        assert self.quant.block is not None
        blocks = blocked(x, self.quant.block)
        scale = _round_fp8(
            (blocks.abs().amax(-1, keepdim=True) / (ELEMENT_TOP * self.input_scale)).clamp_min(SCALE_BOTTOM)
        )
        step = (scale * self.input_scale).to(x.dtype).float()
        return (e2m1_values(e2m1_codes(blocks / step)) * step).flatten(-2).to(x.dtype)


class QuantLinear(QuantLayer):
    """x [..., K] → [..., N], in the dtype of x."""

    def __init__(self, parts: QuantParts) -> None:
        super().__init__(parts)
        if self.quant.block is not None and self.in_features % self.quant.block:
            raise ValueError(f"{self.in_features} inputs are not a multiple of block {self.quant.block}")

    @classmethod
    def from_parts(cls, parts: QuantParts) -> QuantLinear:
        return cls(parts)

    @classmethod
    def like(cls, linear: nn.Linear, quant: LayerQuant) -> QuantLinear:
        """An empty one in the place of `linear`, for loading into."""
        return cls(QuantParts.empty(quant, tuple(linear.weight.shape), bias=linear.bias is not None))

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(self.quantized_input(x), self.weight_values(x.dtype), bias)


class QuantConv2d(QuantLayer):
    """x [batch, channels, height, width]; int8 or fp8 weights [N, channels / groups, height, width]."""

    def __init__(self, parts: QuantParts, like: nn.Conv2d) -> None:
        super().__init__(parts)
        if self.quant.kind not in ("int8", "fp8") or self.quant.block is not None or self.quant.pre_scale:
            raise ValueError(f"a convolution cannot be {self.quant}")
        if not isinstance(like.padding, tuple) or like.padding_mode != "zeros":
            raise ValueError(f"padding {like.padding!r} {like.padding_mode!r} of a convolution is not supported")
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, like.groups

    @classmethod
    def like(cls, conv: nn.Conv2d, quant: LayerQuant) -> QuantConv2d:
        """An empty one in the place of `conv`, for loading into."""
        return cls(QuantParts.empty(quant, tuple(conv.weight.shape), bias=conv.bias is not None), conv)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight_values(x.dtype)
        return F.conv2d(self.quantized_input(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)


def _by_token(x: Tensor) -> Tensor:
    """int8 with the largest value of each vector as its range; a vector of zeros stays one."""
    wide = x.float()
    step = (wide.abs().amax(-1, keepdim=True) / TOP["int8"]).clamp_min(SMALLEST_STEP)
    return ((wide / step).round() * step).to(x.dtype)


def _round_int8(x: Tensor) -> Tensor:
    return x.round().clamp(-128, 127)


def _round_fp8(x: Tensor) -> Tensor:
    return x.clamp(-SCALE_TOP, SCALE_TOP).to(torch.float8_e4m3fn).float()


def _buffers(parts: QuantParts) -> dict[str, Tensor | None]:
    weight = parts.weight_q
    if parts.kind == "int4" and weight.dtype != torch.uint8:
        weight = pack_int4(weight)
    if (
        parts.kind in ("uint4", "nvfp4")
        and parts.block
        and weight.shape[1] == parts.weight_scale.shape[1] * parts.block
    ):
        weight = pack_nibbles(weight)
    if weight.dtype != WEIGHT_TYPES[parts.kind]:
        raise ValueError(f"weight_q of {parts.kind} must be {WEIGHT_TYPES[parts.kind]}, not {weight.dtype}")
    scale = parts.weight_scale if parts.kind == "nvfp4" else parts.weight_scale.float()
    return {
        "weight_q": weight.contiguous(),
        "weight_scale": scale.contiguous(),
        "weight_global": _single(parts.weight_global),
        "weight_zero": None if parts.weight_zero is None else parts.weight_zero.contiguous(),
        "input_scale": _single(parts.input_scale),
        "pre_scale": None if parts.pre_scale is None else parts.pre_scale.float().contiguous(),
        "bias": None if parts.bias is None else parts.bias.float().contiguous(),
    }


def _single(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float().reshape(())


def quantized_layers(module: nn.Module) -> dict[str, LayerQuant]:
    """Every quantized layer of `module` by its name."""
    return {name: layer.quant for name, layer in module.named_modules() if isinstance(layer, QuantLayer)}


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place called `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)
