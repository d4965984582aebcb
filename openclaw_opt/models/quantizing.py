"""A model folder → the same model with low-bit layers: calibrate, convert, prove, measure, fold, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.folding import fold
from openclaw_opt.models.linear import QuantConv2d, QuantLayer, QuantLinear, replace_layer
from openclaw_opt.models.modelopt import calibrated, dead_note, layer_of, prove_equal
from openclaw_opt.models.plain import plain_parts
from openclaw_opt.models.refining import refined
from openclaw_opt.models.rewritten import Rewritten
from openclaw_opt.models.schemes import Algorithm, Ranges, Scheme
from openclaw_opt.models.spec import ModelFacts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.models.survey import Reach, ranges, refuse_broken_weights, survey
from openclaw_opt.numerics.quantization import SqnrMeter, sqnr_db

PLAIN: tuple[Algorithm, ...] = ("max", "rtn")
Choose = Callable[[Mapping[str, int], str], list[str]]
"""Layers and their inputs, task → the layers to quantize."""


@dataclass(frozen=True)
class Job:
    """The options of a quantize pass with every default filled in."""

    format: str
    algorithm: Algorithm
    alpha: float | None
    block: int | None
    least_rows: int = 0
    """Vectors every layer must see in calibration."""
    ranges: Ranges = "max"
    percentile: float | None = None
    damping: float = 0.01
    act_order: bool = True
    per_channel: bool = False

    @property
    def scheme(self) -> Scheme:
        return Scheme(
            self.format,
            self.algorithm,
            self.alpha,
            self.block,
            self.ranges,
            self.damping,
            self.act_order,
            self.per_channel,
        )

    @property
    def is_plain(self) -> bool:
        """Is it what every algorithm is compared with: largest values, rounding to nearest?"""
        return self.algorithm in PLAIN and self.ranges == "max"

    @property
    def title(self) -> str:
        more = ", per channel" if self.per_channel else ""
        more += f", alpha {self.alpha:g}" if self.alpha is not None else ""
        more += f", blocks of {self.block}" if self.block is not None else ""
        if self.ranges != "max":
            more += f", {self.ranges} ranges" if self.percentile is None else f", percentile {self.percentile:g}"
        return f"{self.format} ({self.algorithm}{more})"


@dataclass
class Errors:
    """What each layer lost: the meters that fill while calibration data streams through."""

    output: dict[str, SqnrMeter] = field(default_factory=dict)
    plain: dict[str, SqnrMeter] = field(default_factory=dict)
    proven: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """A model folder, its facts, and data to calibrate on (None where the algorithm needs none)."""

    model: Model
    facts: ModelFacts
    calibration: Calibration | None


@dataclass(frozen=True)
class Converted:
    """Float layers in low bits, proven and measured, beside the model they come from."""

    layers: Mapping[str, QuantLayer]
    rows: Mapping[str, dict[str, Any]]
    """Rows of the report's layer table, by layer."""
    every: tuple[str, ...]
    """All layers that could take the format."""
    unreached: list[str]
    proven: float | None
    """Largest difference from nvidia-modelopt's layers."""


def quantize_model(source: Input, folder: Path, job: Job, choose: Choose, progress: Progress) -> Rewritten:
    """Do the job; the new model is in `folder`.

    Raises:
        RecipeError: an option does not fit the layers, or calibration data is too little.
        VerificationError: a converted layer is not what was calibrated; it is named.
    """
    started, facts = time.monotonic(), source.facts
    made = converted(source, job, choose, _part(progress, 0.0, 0.95))
    progress(0.95, "folding input factors")
    module, folded = assemble(source, made.layers)
    sentence = f"{len(made.layers)} of {len(made.every)} linear layers to {job.title}"
    noted = facts.model_copy(update={"notes": (*facts.notes, sentence)})
    details = {
        "layers": list(made.rows.values()),
        "calibration": _calibration_row(source.calibration, job, time.monotonic() - started),
        "kept": [name for name in made.every if name not in made.layers],
        "unreached": made.unreached,
        "folded": folded,
        "largest_difference_from_modelopt": made.proven,
    }
    saved = save_model(module, noted, folder, source.model.assets)
    return Rewritten(saved, sentence, len(made.layers), details)


def converted(source: Input, job: Job, choose: Choose, progress: Progress) -> Converted:
    """The chosen layers as the job makes them; the source stays as it is. Raises what `quantize_model` raises."""
    calibration, reference = source.calibration, open_model(source.model)
    every = quantizable(reference, job)
    names = choose({name: inputs_of(layer) for name, layer in every.items()}, source.facts.task)
    refuse_broken_weights(reference, names)
    reach = _surveyed(reference, names, calibration, job, _part(progress, 0.0, 0.1))
    names, unreached = _reached(names, reach)
    theirs = open_model(source.model)
    said = calibrated(theirs, names, job.scheme, calibration, _part(progress, 0.1, 0.55))
    grids = refined(theirs, names, job.scheme, calibration, _part(progress, 0.55, 0.8), source.facts.sparse)
    if job.scheme.searches_ranges:
        assert calibration is not None
        _set_ranges(reference, theirs, names, job, calibration, _part(progress, 0.8, 0.85))
    layers = {name: layer_of(theirs.get_submodule(name), job.scheme, grids.get(name)) for name in names}
    prove_zeros(reference, layers, source.facts.sparse)
    plain = (
        {} if job.is_plain else {name: _plain(reference.get_submodule(name), job, reach.get(name)) for name in names}
    )
    errors = measure(reference, theirs, Compared(layers, plain), calibration, _part(progress, 0.85, 1.0))
    rows = {name: _row(name, reference, theirs, Compared(layers, plain), job, errors, said) for name in names}
    return Converted(layers, rows, tuple(every), unreached, max(errors.proven.values(), default=None))


def prove_zeros(reference: nn.Module, layers: Mapping[str, QuantLayer], sparse: Collection[str]) -> None:
    """VerificationError where a weight that was made zero is zero no more; the layer is named."""
    for name in [name for name in sparse if name in layers]:
        weight = reference.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        zero = weight == 0
        lost = int((zero & (layers[name].weight_values(torch.float32) != 0)).sum())
        if lost:
            raise VerificationError(f"{lost} of {int(zero.sum())} zeros are lost by rounding", where=name)


def _calibration_row(calibration: Calibration | None, job: Job, seconds: float) -> dict[str, Any]:
    return {
        "tokens": calibration.tokens if calibration else 0,
        "sequences": calibration.sequences if calibration else 0,
        "fingerprint": calibration.fingerprint if calibration else "",
        "algorithm": job.algorithm,
        "alpha": job.alpha,
        "block": job.block,
        "ranges": job.ranges,
        "percentile": job.percentile,
        "seconds": round(seconds, 3),
    }


def quantizable(module: nn.Module, job: Job) -> dict[str, nn.Module]:
    """Every layer that could take the format and is still float."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d) if job.format in ("int8", "fp8") else (nn.Linear,)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def inputs_of(layer: nn.Module) -> int:
    """Elements of the input that one output is a sum over."""
    assert isinstance(layer.weight, Tensor)
    return prod(layer.weight.shape[1:])


def _part(progress: Progress, start: float, end: float) -> Progress:
    """A piece of the whole: 0 is `start`, 1 is `end`."""
    return lambda part, text: progress(start + part * (end - start), text)


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
    if name == "head" and isinstance(reference, Decoder) and reference.spec.tied:
        notes.append("was tied to the embedding, which stays float")
    return {
        "name": name,
        "format": job.format,
        "parameters": weight.numel(),
        "weight_sqnr_db": sqnr_db(weight, _weight_of(layers.ours[name])),
        "output_sqnr_db": None if meter is None else meter.db,
        "plain_weight_sqnr_db": sqnr_db(weight, _weight_of(layers.plain[name])) if name in layers.plain else None,
        "plain_output_sqnr_db": None if plain is None else plain.db,
        "note": "; ".join(note for note in notes if note),
    }


def _weight_of(layer: QuantLayer) -> Tensor:
    """What stands for the weight: the low-bit numbers times the factors of the input."""
    values = layer.weight_values(torch.float32)
    return values if layer.pre_scale is None else values * layer.pre_scale


def assemble(source: Input, layers: Mapping[str, QuantLayer]) -> tuple[nn.Module, list[str]]:
    """The source's module with the layers put in, input factors folded where that is exact."""
    module = open_model(source.model)
    for name, layer in layers.items():
        replace_layer(module, name, layer)
    if not isinstance(module, Decoder) or not any(layer.pre_scale is not None for layer in layers.values()):
        return module.eval().requires_grad_(False), []
    assert source.calibration is not None
    folded = fold(module, tuple(part[:1] for part in source.calibration.batches[0]))
    return module.eval().requires_grad_(False), folded
