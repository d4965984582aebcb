"""A model folder → the same model with zeros in its linear weights: rank on streamed inputs, zero, prove, record, save.

A decoder's layers are gone through in order (`models.layerwise`): each sees the inputs that the layers before it, already
sparse, give it. Output errors are of those inputs and without the bias: Σ (W − Ŵ)x·xᵀ(W − Ŵ)ᵀ against Σ Wx·xᵀWᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log10
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openclaw_opt.artifacts import LayerZeros, Model
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.models.calibrate import Calibration, Progress
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.layerwise import each_gram
from openclaw_opt.models.rewritten import Rewritten
from openclaw_opt.models.spec import ModelFacts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.models.survey import broken_weights, refuse_broken, survey
from openclaw_opt.numerics.gptq import NotPositive, output_error
from openclaw_opt.numerics.quantization import sqnr_db
from openclaw_opt.numerics.sparsity import Sparse, by_magnitude, by_sparsegpt, by_wanda, is_two_of_four, zeros_share

Method = Literal["magnitude", "wanda", "sparsegpt"]
Choose = Callable[[Mapping[str, int], str], list[str]]
"""Layers and their inputs, task → the layers to make sparse."""


@dataclass(frozen=True)
class Job:
    """The options of a sparsify pass with every default filled in; `ratio` None means 2:4."""

    ratio: float | None
    method: Method
    damping: float

    @property
    def pattern(self) -> Literal["2:4", "unstructured"]:
        return "2:4" if self.ratio is None else "unstructured"

    @property
    def title(self) -> str:
        share = "" if self.ratio is None else f" {self.ratio:g}"
        return f"{self.pattern}{share} ({self.method})"


@dataclass
class _Done:
    """What becomes of the layers while inputs stream through."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    zeros: dict[str, LayerZeros] = field(default_factory=dict)
    count: int = 0


def sparsify_model(
    source: Model,
    facts: ModelFacts,
    calibration: Calibration | None,
    folder: Path,
    job: Job,
    choose: Choose,
    progress: Progress,
) -> Rewritten:
    """Do the job; the new model is in `folder`.

    Raises:
        RecipeError: an option does not fit the layers, or weights or inputs hold no usable numbers; the layer is named.
        VerificationError: a weight does not have the pattern it was given.
    """
    module = open_model(source)
    every = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    names = choose({name: layer.in_features for name, layer in every.items()}, facts.task)
    refuse_broken(broken_weights(module, names))
    names, unreached = _reached(module, names, calibration, lambda part, text: progress(0.2 * part, text))
    untied = _untie(module, names)
    done = _Done()

    def change(name: str, gram: Tensor | None) -> None:
        _zero(name, every[name], gram, job, done)

    if calibration is None:
        for i, name in enumerate(names):
            progress(i / len(names), name)
            change(name, None)
    else:
        each_gram(module, names, calibration, change, lambda part, text: progress(0.2 + 0.7 * part, text))
    _prove(module, done.zeros)
    sentence = f"{len(names)} of {len(every)} linear layers to {job.title}: {done.count:,} more zeros"
    if untied:
        sentence += "; the head is no longer tied to the embedding"
    details = {
        "layers": done.rows,
        "pattern": job.pattern,
        "method": job.method,
        "zeros": {name: zeros.share for name, zeros in done.zeros.items()},
        "kept": [name for name in every if name not in names],
        "unreached": unreached,
        "parameters": sum(value.numel() for value in module.parameters()),
    }
    changes = {"notes": (*facts.notes, sentence), "sparse": {**facts.sparse, **done.zeros}}
    return Rewritten(
        save_model(module, facts.model_copy(update=changes), folder, source.assets), sentence, done.count, details
    )


def _reached(
    module: nn.Module, names: Sequence[str], calibration: Calibration | None, progress: Progress
) -> tuple[list[str], list[str]]:
    """Layers that calibration data runs through, and those it does not. RecipeError where it is NaN, or reaches none."""
    if calibration is None:
        return list(names), []
    reach = survey(module, names, calibration, progress)
    reached = [name for name in names if reach[name].rows]
    if not reached:
        raise RecipeError("calibration data reaches no layer that is to be made sparse", where="sparsify.keep")
    return reached, [name for name in names if not reach[name].rows]


def _untie(module: nn.Module, names: Sequence[str]) -> bool:
    """Give a head that is to be changed a weight of its own; the embedding keeps its."""
    if not isinstance(module, Decoder) or "head" not in names or module.head.weight is not module.embed.weight:
        return False
    module.spec = module.spec.model_copy(update={"tied": False})
    module.head.weight = nn.Parameter(module.head.weight.clone(), requires_grad=False)
    return True


def _zero(name: str, layer: nn.Linear, gram: Tensor | None, job: Job, done: _Done) -> None:
    weight = layer.weight.detach().float()
    try:
        made = _made(weight, gram, job)
    except NotPositive as error:
        raise RecipeError(
            f"sparsegpt: {error}", where=name, fix="more calibration samples, or method: wanda"
        ) from error
    done.count += int(weight.count_nonzero()) - int(made.values.count_nonzero())
    layer.weight = nn.Parameter(made.values.to(layer.weight.dtype).contiguous(), requires_grad=False)
    done.zeros[name] = LayerZeros(pattern=job.pattern, share=made.share)
    done.rows.append(_row(name, weight, made, gram, job))


def _made(weight: Tensor, gram: Tensor | None, job: Job) -> Sparse:
    if job.method == "magnitude":
        return by_magnitude(weight, job.ratio)
    assert gram is not None, "check refuses a method that needs data without any"
    if job.method == "wanda":
        return by_wanda(weight, gram, job.ratio)
    return by_sparsegpt(weight, gram, job.ratio, job.damping)


def _row(name: str, weight: Tensor, made: Sparse, gram: Tensor | None, job: Job) -> dict[str, Any]:
    """A row of the report's layer table; *plain* is the same pattern by magnitude."""
    plain = None if job.method == "magnitude" else by_magnitude(weight, job.ratio).values
    note = f"{100 * made.share:.1f} % zeros"
    if made.damping > job.damping:
        note += f"; damping raised to {made.damping:g}"
    return {
        "name": name,
        "format": job.pattern,
        "parameters": weight.numel(),
        "weight_sqnr_db": sqnr_db(weight, made.values),
        "output_sqnr_db": output_sqnr_db(weight, made.values, gram),
        "plain_weight_sqnr_db": None if plain is None else sqnr_db(weight, plain),
        "plain_output_sqnr_db": None if plain is None else output_sqnr_db(weight, plain, gram),
        "note": note,
    }


def output_sqnr_db(weight: Tensor, changed: Tensor, gram: Tensor | None) -> float | None:
    """10·log10 of the output's energy over that of its error, on the inputs that `gram` is of; None where either is zero."""
    if gram is None:
        return None
    signal, noise = output_error(weight, torch.zeros_like(weight), gram), output_error(weight, changed, gram)
    return 10 * log10(signal / noise) if signal > 0 and noise > 0 else None


def _prove(module: nn.Module, zeros: Mapping[str, LayerZeros]) -> None:
    for name, said in zeros.items():
        weight = module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        if said.pattern == "2:4" and not is_two_of_four(weight):
            raise VerificationError("a group of four has more than two weights that are not zero", where=name)
        if abs(zeros_share(weight) - said.share) > 1e-9:
            raise VerificationError(
                f"{100 * zeros_share(weight):.2f} % of the weight is zero, not {100 * said.share:.2f} %", where=name
            )
