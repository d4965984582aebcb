"""nvidia-modelopt calibrates, our layers hold the result: data only, and proven equal layer by layer.

The proof: for inputs taken from calibration, `QuantLinear` and modelopt's fake-quantized layer give the same output within
TOLERANCE of the largest. The inputs are first put on 0.997 of the quantizer's own grid, where no value is a rounding tie:
there one unit in the last place of float32 would decide, and prove nothing. NVFP4 runs through `numerics.microscaling`,
since modelopt's kernels for it need a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from openclaw_opt.errors import VerificationError
from openclaw_opt.models.calibrate import Calibration, Progress, run_batches
from openclaw_opt.models.linear import QuantConv2d, QuantLayer, QuantLinear, QuantParts
from openclaw_opt.models.plain import on_grid
from openclaw_opt.models.schemes import BLOCKED, SCALES_INPUTS, SWEEPS, Scheme
from openclaw_opt.models.smoothing import smooth
from openclaw_opt.numerics.grid import Grid
from openclaw_opt.numerics.microscaling import fake_quantize_nvfp4, global_scale_of, quantize_nvfp4
from openclaw_opt.numerics.quantization import (
    DEAD,
    channel_amax,
    quantize,
    quantize_blocks,
    relative_difference,
    scale_of,
)

TOLERANCE = 1e-5
OFF_GRID = 0.997
PROBE_ROWS = 256
STAND_IN = 1e-8


def config_of(scheme: Scheme, names: Sequence[str]) -> dict[str, Any]:
    """modelopt's configuration: an ordered list in which later entries win; everything but `names` is off."""
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in names:
        entries.append({"quantizer_name": f"{name}.weight_quantizer", "cfg": _weight_settings(scheme)})
        if scheme.row.input is not None:
            entries.append(
                {"quantizer_name": f"{name}.input_quantizer", "cfg": _filled(scheme.row.input, scheme.block)}
            )
    algorithm: Any = "max"
    if scheme.algorithm == "smoothquant" and not scheme.smooths_tokens:
        algorithm = {"method": "smoothquant", "alpha": scheme.alpha}
    elif scheme.algorithm in SCALES_INPUTS:
        algorithm = {"method": "awq_lite", "alpha_step": 0.1}
    return {"quant_cfg": entries, "algorithm": algorithm}


def _weight_settings(scheme: Scheme) -> dict[str, Any]:
    settings = _filled(scheme.row.weight, scheme.block)
    return {**settings, "axis": 0} if scheme.per_channel else settings


def _filled(row: Mapping[str, Any], block: int | None) -> dict[str, Any]:
    made = copy.deepcopy(dict(row))
    if "block_sizes" in made and block is not None:
        made["block_sizes"][-1] = block
    return made


def calibrated(
    module: nn.Module, names: Sequence[str], scheme: Scheme, calibration: Calibration | None, progress: Progress
) -> list[str]:
    """Put modelopt's quantizers on the layers in `names`, in place, and calibrate them.

    Returns:
        What modelopt warned of about any of the layers.
    """
    with warnings.catch_warnings():
        # It was tried with this version of transformers, and every layer is proven below.
        warnings.filterwarnings("ignore", message=r"transformers .* is not tested")
        import modelopt.torch.quantization as mtq

    own = scheme.smooths_tokens
    sweeps, out, err, done = SWEEPS[scheme.algorithm], sys.stdout, sys.stderr, 0

    def report(part: float, text: str) -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            progress(min(1.0, (done + part) / sweeps), text)

    def forward(model: nn.Module) -> None:
        nonlocal done
        assert calibration is not None
        run_batches(model, calibration, report, scheme.algorithm)
        done += 1

    smoothed = [module.get_submodule(name) for name in names] if scheme.algorithm == "smoothquant" and not own else []
    with quiet_modelopt() as said, blocks_on_cpu(), torch.no_grad(), stand_ins(smoothed):
        mtq.quantize(module, config_of(scheme, names), forward_loop=forward if scheme.needs_data and not own else None)
        if own:
            assert calibration is not None
            assert scheme.alpha is not None
            smooth(module, names, scheme.alpha, calibration, report)
    return [str(warning.message) for warning in said if any(name in str(warning.message) for name in names)]


class _Muted(io.TextIOBase):
    """A stream that drops what this thread writes; a progress bar's own thread goes on writing to it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.owner = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.owner else self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


@contextlib.contextmanager
def quiet_modelopt() -> Iterator[list[warnings.WarningMessage]]:
    """Keep modelopt's prints off the terminal, and its warnings in the list."""
    with (
        warnings.catch_warnings(record=True) as said,
        contextlib.redirect_stdout(_Muted(sys.stdout)),
        contextlib.redirect_stderr(_Muted(sys.stderr)),
    ):
        warnings.simplefilter("always")
        yield said


@contextlib.contextmanager
def stand_ins(layers: Sequence[Any]) -> Iterator[None]:
    """While open, input channels that no output uses have one tiny weight: modelopt's SmoothQuant fails on a zero column."""
    changed = []
    for layer in (layer for layer in layers if isinstance(layer, nn.Linear)):
        unused = layer.weight.abs().amax(0) <= STAND_IN
        if bool(unused.any()):
            changed.append((layer, unused, layer.weight[0, unused]))
            layer.weight[0, unused] = STAND_IN
    yield
    for layer, unused, before in changed:
        quantized: Any = layer
        quantized.weight[0, unused] = before / quantized.input_quantizer.pre_quant_scale.flatten()[unused]
        quantized.weight_quantizer.amax = channel_amax(quantized.weight)


@contextlib.contextmanager
def blocks_on_cpu() -> Iterator[None]:
    """Give modelopt a block quantizer for CPU tensors while this is open."""
    from modelopt.torch.quantization import tensor_quant

    original = tensor_quant.dynamic_block_quantize_op

    def quantize_blocks_of(x: Tensor, block: int, amax: Tensor | None, *bits: int) -> Any:
        if x.is_cuda or bits != (4, 2, 8, 4):
            return original(x, block, amax, *bits)
        return fake_quantize_nvfp4(x, amax, block)

    tensor_quant.dynamic_block_quantize_op = quantize_blocks_of
    try:
        yield
    finally:
        tensor_quant.dynamic_block_quantize_op = original


def parts_of(layer: Any, scheme: Scheme, grid: Grid | None = None) -> QuantParts:
    """The numbers of a layer (nn.Linear or nn.Conv2d) that modelopt or `refined` is done with, as our layers take them.

    Args:
        grid: what `refined` rounded the weight to; None where largest values are the ranges.
    """
    weight, kind, block = layer.weight.detach().float(), scheme.row.kind, scheme.block
    shared, zero = None, None
    if grid is not None:
        codes, scale, zero = on_grid(weight, grid)
    elif kind == "int4":
        assert block is not None
        codes, scale = quantize_blocks(weight, block)
    elif kind == "nvfp4":
        assert block is not None
        made = quantize_nvfp4(weight, layer.weight_quantizer.amax, block)
        codes, scale, shared = made.packed, made.scale, made.global_scale
    else:
        amax = channel_amax(weight) if kind == "int8" else layer.weight_quantizer.amax.float()
        amax = amax if amax.numel() > 1 else amax.reshape(())
        codes, scale = quantize(weight, amax, kind), scale_of(amax.flatten() if amax.ndim else amax, kind)
    return QuantParts(
        scheme.format,
        kind,
        codes,
        scale,
        shared,
        block if kind in BLOCKED else None,
        _input_scale(layer, scheme),
        factors_of(layer),
        None if layer.bias is None else layer.bias.detach().clone(),
        zero,
        scheme.row.dynamic,
    )


def _input_scale(layer: Any, scheme: Scheme) -> Tensor | None:
    if not scheme.has_ranges:
        return None
    amax: Tensor = layer.input_quantizer.amax.float().reshape(())
    return global_scale_of(amax) if scheme.row.kind == "nvfp4" else scale_of(amax, scheme.row.kind)


def has_quantizers(layer: Any) -> bool:
    """Has modelopt put its quantizers on the layer?"""
    return hasattr(layer, "weight_quantizer")


def factors_of(layer: Any) -> Tensor | None:
    """What modelopt multiplies the layer's input with, float32 [K]; None where it does not."""
    scale: Tensor | None = layer.input_quantizer.pre_quant_scale if has_quantizers(layer) else None
    return None if scale is None else scale.detach().float().flatten().clone()


def dead_note(layer: Any, scheme: Scheme) -> str:
    """What of a calibrated layer is always zero; empty if nothing is."""
    said = []
    if scheme.has_ranges and float(layer.input_quantizer.amax.max()) <= DEAD:
        said.append("its input is zero on all calibration data: scale 1")
    zero = int((channel_amax(layer.weight) <= DEAD).sum())
    if zero:
        said.append(f"{zero} of {layer.weight.shape[0]} output channels are zero: scale 1")
    return "; ".join(said)


def layer_of(layer: Any, scheme: Scheme, grid: Grid | None = None) -> QuantLayer:
    """Our layer in the place of a calibrated one."""
    parts = parts_of(layer, scheme, grid)
    return QuantConv2d(parts, layer) if isinstance(layer, nn.Conv2d) else QuantLinear.from_parts(parts)


@torch.no_grad()
def prove_equal(name: str, theirs: Any, ours: QuantLayer, x: Tensor) -> float:
    """Largest relative difference of the two layers' outputs near inputs `x`.

    Raises:
        VerificationError: it is above TOLERANCE; the layer is named.
    """
    with blocks_on_cpu() if has_quantizers(theirs) else contextlib.nullcontext():
        probe = _off_ties(theirs, x if x.ndim == 4 else _rows_of(x))
        difference = relative_difference(theirs(probe), ours(probe))
    if difference > TOLERANCE:
        raise VerificationError(
            f"the quantized layer differs from the fake-quantized one by {difference:.2g} of its largest output "
            f"(at most {TOLERANCE:g} is rounding)",
            where=name,
        )
    return difference


def _rows_of(x: Tensor) -> Tensor:
    """PROBE_ROWS vectors with as many axes as `x` has: modelopt's scales a token go by the axes of the first input they saw."""
    rows = x.flatten(0, -2)[:PROBE_ROWS]
    return rows.reshape(*(1 for _ in x.shape[:-2]), *rows.shape)


def _off_ties(layer: Any, x: Tensor) -> Tensor:
    quantizer = layer.input_quantizer if has_quantizers(layer) else None
    if quantizer is None or not quantizer.is_enabled:
        return x
    grid: Tensor = quantizer(x) * OFF_GRID
    return grid if quantizer.pre_quant_scale is None else grid / quantizer.pre_quant_scale
