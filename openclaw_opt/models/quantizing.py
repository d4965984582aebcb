"""A model folder → the same model with low-bit layers: calibrate, convert, prove, measure, fold, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import RecipeError
from openclaw_opt.models.calibrate import Calibration, Progress, rows_reaching, run_batches, watched
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.folding import fold
from openclaw_opt.models.linear import QuantLayer, replace_layer
from openclaw_opt.models.modelopt import Scheme, calibrated, dead_note, layer_of, prove_equal
from openclaw_opt.models.spec import ModelFacts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.numerics.quantization import SqnrMeter, sqnr_db

Choose = Callable[[Mapping[str, int], str], list[str]]
"""Layers and their inputs, task → the layers to quantize."""


@dataclass(frozen=True)
class Job:
    """The options of a quantize pass with every default filled in."""

    format: str
    algorithm: Literal["max", "rtn", "smoothquant", "awq"]
    alpha: float | None
    block: int | None
    least_rows: int = 0
    """Vectors every layer must see in calibration."""

    @property
    def scheme(self) -> Scheme:
        return Scheme(self.format, self.algorithm, self.alpha, self.block)

    @property
    def title(self) -> str:
        more = f", alpha {self.alpha:g}" if self.alpha is not None else ""
        blocks = f", blocks of {self.block}" if self.block is not None else ""
        return f"{self.format} ({self.algorithm}{more}{blocks})"


@dataclass
class Errors:
    """What each layer lost: the meters that fill while calibration data streams through."""

    output: dict[str, SqnrMeter] = field(default_factory=dict)
    proven: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantized:
    """What was made, in words and in numbers; `details` is JSON for the report."""

    model: Model
    sentence: str
    count: int
    details: dict[str, Any]


@dataclass(frozen=True)
class Input:
    """A model folder, its facts, and data to calibrate on (None where the algorithm needs none)."""

    model: Model
    facts: ModelFacts
    calibration: Calibration | None


def quantize_model(source: Input, folder: Path, job: Job, choose: Choose, progress: Progress) -> Quantized:
    """Do the job; the new model is in `folder`.

    Raises:
        RecipeError: an option does not fit the layers, or calibration data is too little.
        VerificationError: a converted layer is not what was calibrated; it is named.
    """
    started, facts, calibration = time.monotonic(), source.facts, source.calibration
    reference = open_model(source.model)
    every = quantizable(reference, job)
    names = choose({name: inputs_of(layer) for name, layer in every.items()}, facts.task)
    names, unreached = _reached(reference, names, calibration, job)
    theirs = open_model(source.model)
    said = calibrated(theirs, names, job.scheme, calibration, lambda part, text: progress(0.8 * part, text))
    layers = {name: layer_of(theirs.get_submodule(name), job.scheme) for name in names}
    errors = measure(reference, theirs, layers, calibration, lambda part, text: progress(0.8 + 0.15 * part, text))
    rows = [_row(name, reference, theirs, layers[name], job, errors, said) for name in names]
    progress(0.95, "folding input factors")
    made, folded = assemble(source, layers)
    sentence = f"{len(names)} of {len(every)} linear layers to {job.title}"
    noted = facts.model_copy(update={"notes": (*facts.notes, sentence)})
    details = {
        "layers": rows,
        "calibration": _calibration_row(calibration, job, time.monotonic() - started),
        "kept": [name for name in every if name not in layers],
        "unreached": unreached,
        "folded": folded,
        "largest_difference_from_modelopt": max(errors.proven.values(), default=None),
    }
    return Quantized(save_model(made, noted, folder, source.model.assets), sentence, len(names), details)


def _calibration_row(calibration: Calibration | None, job: Job, seconds: float) -> dict[str, Any]:
    return {
        "tokens": calibration.tokens if calibration else 0,
        "sequences": calibration.sequences if calibration else 0,
        "fingerprint": calibration.fingerprint if calibration else "",
        "algorithm": job.algorithm,
        "alpha": job.alpha,
        "block": job.block,
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


def _reached(
    module: nn.Module, names: Sequence[str], calibration: Calibration | None, job: Job
) -> tuple[list[str], list[str]]:
    """Layers that calibration data runs through, and those it does not: the model's output does not depend on these."""
    if calibration is None:
        return list(names), []
    rows = rows_reaching(module, names, calibration)
    for name, count in rows.items():
        if 0 < count < job.least_rows and isinstance(module.get_submodule(name), nn.Linear):
            raise RecipeError(
                f"{job.algorithm} needs at least {job.least_rows} calibration vectors, {name} sees {count}",
                where="data.calibration.samples",
                fix="raise data.calibration.samples, or algorithm: max",
            )
    reached = [name for name in names if rows[name]]
    if not reached:
        raise RecipeError("calibration data reaches no layer that is to be quantized", where="quantize.keep")
    return reached, [name for name in names if not rows[name]]


def measure(
    reference: nn.Module,
    theirs: nn.Module,
    layers: Mapping[str, QuantLayer],
    calibration: Calibration | None,
    progress: Callable[[float, str], None],
) -> Errors:
    """Prove each layer on the first inputs it sees, and meter its output on all; without data on random inputs alone."""
    errors = Errors()
    if calibration is None:
        for name, layer in layers.items():
            x = torch.randn(64, inputs_of(reference.get_submodule(name)), generator=torch.Generator().manual_seed(0))
            errors.proven[name] = prove_equal(name, theirs.get_submodule(name), layer, x)
        return errors

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        if name not in errors.proven:
            errors.proven[name] = prove_equal(name, theirs.get_submodule(name), layers[name], x)
        errors.output.setdefault(name, SqnrMeter()).add(y, layers[name](x))

    with watched(reference, list(layers), seen):
        run_batches(reference, calibration, progress, "measuring each layer's error")
    return errors


def _row(
    name: str, reference: nn.Module, theirs: nn.Module, layer: QuantLayer, job: Job, errors: Errors, said: Sequence[str]
) -> dict[str, Any]:
    """A row of the report's layer table."""
    weight, values = reference.get_submodule(name).weight, layer.weight_values(torch.float32)
    assert isinstance(weight, Tensor)
    if layer.pre_scale is not None:
        values = values * layer.pre_scale
    meter = errors.output.get(name)
    notes = [dead_note(theirs.get_submodule(name), job.scheme), *(text for text in said if name in text)]
    if name == "head" and isinstance(reference, Decoder) and reference.spec.tied:
        notes.append("was tied to the embedding, which stays float")
    return {
        "name": name,
        "format": job.format,
        "parameters": weight.numel(),
        "weight_sqnr_db": sqnr_db(weight, values),
        "output_sqnr_db": None if meter is None else meter.db,
        "note": "; ".join(note for note in notes if note),
    }


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
