"""Linears of one module in low bits: calibrate, convert, prove, measure. The module is a whole model, or a decoder's stage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.linear import QuantConv2d, QuantLayer, QuantLinear
from openclaw_opt.models.modelopt import calibrated, dead_note, layer_of, prove_equal
from openclaw_opt.models.plain import plain_parts
from openclaw_opt.models.refining import refined, round_to_nearest
from openclaw_opt.models.schemes import Job
from openclaw_opt.models.stages import Stage, let_go
from openclaw_opt.models.survey import Reach, ranges, survey
from openclaw_opt.numerics.pieces import slices
from openclaw_opt.numerics.quantization import SqnrMeter


@dataclass(frozen=True)
class Feed:
    """What the module runs on: its inputs, and what is told of its outputs."""

    floats: Calibration | None
    """As the float model has them."""
    changed: Calibration | None
    """As layers that were rounded before this module leave them; the same where nothing was."""
    left: Callable[[int, Tensor], None] | None = None
    """Called with a batch's number and the float module's output."""
    rounded: Callable[[Any], None] | None = None
    """Called with the module whose weights are rounded, once they are."""


@dataclass(frozen=True)
class Piece:
    """Layers in low bits, proven and measured."""

    layers: Mapping[str, QuantLayer]
    rows: Mapping[str, dict[str, Any]]
    """Rows of the report's layer table, by layer."""
    unreached: Sequence[str]
    proven: float | None
    """Largest difference from fake-quantized layers."""


@dataclass
class Errors:
    """What each layer lost: the meters that fill while calibration data streams through."""

    output: dict[str, SqnrMeter] = field(default_factory=dict)
    plain: dict[str, SqnrMeter] = field(default_factory=dict)
    proven: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def convert(
    opened: Callable[[], nn.Module],
    names: Sequence[str],
    job: Job,
    feed: Feed,
    sparse: Collection[str],
    progress: Progress,
) -> Piece:
    """The layers in `names` as the job makes them.

    Args:
        opened: opens the float module, anew at every call: it is never in memory beside more than one changed copy.
        sparse: layers whose zeros must stay.

    Raises:
        RecipeError: calibration data is too little, or holds no usable numbers for a layer.
        VerificationError: a converted layer is not what was calibrated; it is named.
    """
    reach = _surveyed(opened(), names, feed.floats, job, part(progress, 0.0, 0.1))
    names, unreached = _reached(names, reach)
    theirs = opened()
    untie(theirs, names)
    said: Sequence[str] = ()
    if job.scheme.uses_modelopt:
        said = calibrated(theirs, names, job.scheme, feed.floats, part(progress, 0.1, 0.55))
    grids = refined(theirs, names, job.scheme, feed.changed, part(progress, 0.55, 0.8), sparse)
    if feed.rounded is not None:
        feed.rounded(theirs)
    reference = opened()
    if job.scheme.searches_ranges:
        assert feed.floats is not None
        _set_ranges(reference, theirs, names, job, feed.floats, part(progress, 0.8, 0.85))
    ours = {name: layer_of(theirs.get_submodule(name), job.scheme, grids.get(name)) for name in names}
    if not job.scheme.uses_modelopt:
        round_to_nearest(theirs, [name for name in names if name not in grids], job.scheme)
    prove_zeros(reference, ours, sparse)
    plain = (
        {} if job.is_plain else {name: _plain(reference.get_submodule(name), job, reach.get(name)) for name in names}
    )
    layers = Compared(ours, plain)
    with outputs_told(reference, feed.left):
        errors = measure(reference, theirs, layers, feed.floats, part(progress, 0.85, 1.0))
    rows = {name: _row(name, reference, theirs, layers, job, errors, said) for name in names}
    let_go(reference, theirs)
    return Piece(ours, rows, unreached, max(errors.proven.values(), default=None))


def untie(module: nn.Module, names: Collection[str]) -> None:
    """Give a head that is to change a weight of its own: an algorithm multiplies it in place, and the embedding must stay."""
    if isinstance(module, Decoder) and module.spec.tied and "head" in names:
        module.head.weight = nn.Parameter(module.head.weight.detach().clone(), requires_grad=False)


@contextmanager
def outputs_told(module: nn.Module, left: Callable[[int, Tensor], None] | None) -> Iterator[None]:
    """While open, `left` gets what the module gives, batch by batch."""
    if left is None:
        yield
        return
    count = itertools.count()
    handle = module.register_forward_hook(lambda _, inputs, output: left(next(count), output))
    try:
        yield
    finally:
        handle.remove()


def part(progress: Progress, start: float, end: float) -> Progress:
    """A piece of the whole: 0 is `start`, 1 is `end`."""
    return lambda part, text: progress(start + part * (end - start), text)


def quantizable(module: nn.Module, job: Job) -> dict[str, nn.Module]:
    """Every layer that could take the format and is still float."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d) if job.format in ("int8", "fp8") else (nn.Linear,)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def inputs_of(layer: nn.Module) -> int:
    """Elements of the input that one output is a sum over."""
    assert isinstance(layer.weight, Tensor)
    return prod(layer.weight.shape[1:])


def _surveyed(
    module: nn.Module, names: Sequence[str], calibration: Calibration | None, job: Job, progress: Progress
) -> Mapping[str, Reach]:
    """What calibration data does to each layer; empty without any. RecipeError where a layer sees too little."""
    if calibration is None:
        return {}
    reach = survey(module, names, calibration, progress)
    for name, seen in reach.items():
        if 0 < seen.rows < job.least_rows and isinstance(module.get_submodule(name), nn.Linear):
            raise RecipeError(
                f"{job.algorithm} needs at least {job.least_rows} calibration vectors, {name} sees {seen.rows}",
                where="data.calibration.samples",
                fix="raise data.calibration.samples, or algorithm: max",
            )
    return reach


def _reached(names: Sequence[str], reach: Mapping[str, Reach]) -> tuple[list[str], list[str]]:
    """Layers that calibration data runs through, and those it does not: the model's output does not depend on these."""
    if not reach:
        return list(names), []
    reached = [name for name in names if reach[name].rows]
    if not reached:
        raise RecipeError("calibration data reaches no layer that is to be quantized", where="quantize.keep")
    return reached, [name for name in names if not reach[name].rows]


def _set_ranges(
    reference: nn.Module,
    theirs: nn.Module,
    names: Sequence[str],
    job: Job,
    calibration: Calibration,
    progress: Progress,
) -> None:
    """Give modelopt's input quantizers the ranges that histograms of the float model's inputs say."""
    quantizers: dict[str, Any] = {name: theirs.get_submodule(name).input_quantizer for name in names}
    factors = {name: quantizer.pre_quant_scale for name, quantizer in quantizers.items()}
    tops = {name: float(quantizer.amax.max()) for name, quantizer in quantizers.items()}
    choice = (job.ranges, job.scheme.row.kind, 100.0 if job.percentile is None else job.percentile)
    for name, value in ranges(reference, factors, tops, calibration, choice, progress).items():
        quantizers[name].amax = torch.full_like(quantizers[name].amax, value)


def _plain(layer: nn.Module, job: Job, reach: Reach | None) -> QuantLayer:
    """The layer with largest values for ranges and its weight rounded to nearest: what an algorithm is to beat."""
    parts = plain_parts(layer, job.scheme, 0.0 if reach is None else reach.largest)
    return QuantConv2d(parts, layer) if isinstance(layer, nn.Conv2d) else QuantLinear.from_parts(parts)


@dataclass(frozen=True)
class Compared:
    """Our layers, and the plain ones beside them (none where ours are plain)."""

    ours: Mapping[str, QuantLayer]
    plain: Mapping[str, QuantLayer]


def measure(
    reference: nn.Module, theirs: nn.Module, layers: Compared, calibration: Calibration | None, progress: Progress
) -> Errors:
    """Prove each layer on the first inputs it sees, and meter its output on all; without data on random inputs alone."""
    errors = Errors()
    if calibration is None:
        for name, layer in layers.ours.items():
            x = torch.randn(64, inputs_of(reference.get_submodule(name)), generator=torch.Generator().manual_seed(0))
            errors.proven[name] = prove_equal(name, theirs.get_submodule(name), layer, x)
        return errors

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        if name not in errors.proven:
            errors.proven[name] = prove_equal(name, theirs.get_submodule(name), layers.ours[name], x)
        errors.output.setdefault(name, SqnrMeter()).add(y, layers.ours[name](x))
        if name in layers.plain:
            errors.plain.setdefault(name, SqnrMeter()).add(y, layers.plain[name](x))

    with watched(reference, list(layers.ours), seen):
        run_batches(reference, calibration, progress, "measuring each layer's error")
    return errors


def _row(
    name: str, reference: nn.Module, theirs: nn.Module, layers: Compared, job: Job, errors: Errors, said: Sequence[str]
) -> dict[str, Any]:
    """A row of the report's layer table."""
    weight = reference.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    meter, plain = errors.output.get(name), errors.plain.get(name)
    notes = [dead_note(theirs.get_submodule(name), job.scheme), *(text for text in said if name in text)]
    if name == "head" and isinstance(reference, (Decoder, Stage)) and reference.spec.tied:
        notes.append("was tied to the embedding, which stays float")
    return {
        "name": name,
        "format": job.format,
        "parameters": weight.numel(),
        "weight_sqnr_db": _weight_sqnr(weight, layers.ours[name]),
        "output_sqnr_db": None if meter is None else meter.db,
        "plain_weight_sqnr_db": _weight_sqnr(weight, layers.plain[name]) if name in layers.plain else None,
        "plain_output_sqnr_db": None if plain is None else plain.db,
        "note": "; ".join(note for note in notes if note),
    }


def _weight_sqnr(weight: Tensor, layer: QuantLayer) -> float | None:
    """dB of what stands for the weight: the low-bit numbers times the factors of the input."""
    meter = SqnrMeter()
    for at in slices(weight):
        values = layer.weight_values(torch.float32, at)
        meter.add(weight[at], values if layer.pre_scale is None else values * layer.pre_scale)
    return meter.db


def prove_zeros(reference: nn.Module, layers: Mapping[str, QuantLayer], sparse: Collection[str]) -> None:
    """VerificationError where a weight that was made zero is zero no more; the layer is named."""
    for name in [name for name in sparse if name in layers]:
        weight = reference.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        lost = sum(
            int(((weight[at] == 0) & (layers[name].weight_values(torch.float32, at) != 0)).sum())
            for at in slices(weight)
        )
        if lost:
            raise VerificationError(f"{lost} of {int((weight == 0).sum())} zeros are lost by rounding", where=name)
