"""A model folder → the same model with low-bit layers: calibrate, convert, prove, measure, fold, save.

A decoder streams (`models.streaming`): one of its layers is in memory at a time. Other models are open whole.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from openclaw_opt.artifacts import Model
from openclaw_opt.models.calibrate import Calibration, Progress
from openclaw_opt.models.converting import Feed, Piece, convert, inputs_of, part, quantizable
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.folding import fold
from openclaw_opt.models.linear import QuantLayer, replace_layer
from openclaw_opt.models.rewritten import Rewritten
from openclaw_opt.models.schemes import Job
from openclaw_opt.models.spec import ModelFacts
from openclaw_opt.models.stages import StagedDecoder, in_stage
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.models.streaming import Rewriter, streamed
from openclaw_opt.models.survey import broken_weights, refuse_broken

Choose = Callable[[Mapping[str, int], str], list[str]]
"""Layers and their inputs, task → the layers to quantize."""


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
    """Largest difference from fake-quantized layers."""


def quantize_model(source: Input, folder: Path, job: Job, choose: Choose, progress: Progress) -> Rewritten:
    """Do the job; the new model is in `folder`.

    Raises:
        RecipeError: an option does not fit the layers, or calibration data is too little.
        VerificationError: a converted layer is not what was calibrated; it is named.
    """
    started = time.monotonic()
    quantized = _quantize_decoder if source.facts.decoder is not None else _quantize_whole
    made, folded, save = quantized(source, folder, job, choose, progress)
    sentence = f"{len(made.rows)} of {len(made.every)} linear layers to {job.title}"
    details = {
        "layers": list(made.rows.values()),
        "calibration": _calibration_row(source.calibration, job, time.monotonic() - started),
        "kept": [name for name in made.every if name not in made.rows],
        "unreached": made.unreached,
        "folded": folded,
        "largest_difference_from_fake_quantized": made.proven,
    }
    saved = save(source.facts.model_copy(update={"notes": (*source.facts.notes, sentence)}))
    return Rewritten(saved, sentence, len(made.rows), details)


Save = Callable[[ModelFacts], Model]


def _quantize_whole(
    source: Input, folder: Path, job: Job, choose: Choose, progress: Progress
) -> tuple[Converted, list[str], Save]:
    made = converted_whole(source, job, choose, part(progress, 0.0, 0.95))
    progress(0.95, "folding input factors")
    module, folded = assemble(source, made.layers)
    return made, folded, lambda facts: save_model(module, facts, folder, source.model.assets)


def _quantize_decoder(
    source: Input, folder: Path, job: Job, choose: Choose, progress: Progress
) -> tuple[Converted, list[str], Save]:
    """Each stage is folded and put on disk as soon as it is done."""
    decoder, every, names = _chosen(source, job, choose)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix="stages-", dir=folder)
    probe = None
    if source.calibration is not None and job.scheme.may_scale_inputs:
        probe = tuple(value[:1] for value in source.calibration.batches[0])
    writer = Rewriter(decoder, Path(scratch.name), probe)
    pieces = []
    steps = streamed(decoder, names, job, source.calibration, source.facts.sparse, Path(scratch.name), progress)
    for stage, piece in steps:
        writer.put(stage, piece.layers)
        pieces.append(Piece({}, piece.rows, piece.unreached, piece.proven))

    def save(facts: ModelFacts) -> Model:
        with scratch:
            return writer.save(facts, folder, source.model.assets)

    return _joined(pieces, every), writer.folded, save


def converted(source: Input, job: Job, choose: Choose, progress: Progress, scratch: Path | None = None) -> Converted:
    """The chosen layers as the job makes them, all in memory; the source stays as it is. Raises what `quantize_model` raises.

    Args:
        scratch: an existing folder for hidden states while it runs; the system's for temporary files where it is None.
    """
    if source.facts.decoder is None:
        return converted_whole(source, job, choose, progress)
    decoder, every, names = _chosen(source, job, choose)
    with tempfile.TemporaryDirectory(prefix="stages-", dir=scratch) as states:
        steps = streamed(decoder, names, job, source.calibration, source.facts.sparse, Path(states), progress)
        return _joined([piece for _, piece in steps], every)


def converted_whole(source: Input, job: Job, choose: Choose, progress: Progress) -> Converted:
    """The same with the whole model open: what models that do not stream take, and what a stream is compared with in tests."""
    module = open_model(source.model)
    every = quantizable(module, job)
    names = choose({name: inputs_of(layer) for name, layer in every.items()}, source.facts.task)
    refuse_broken(broken_weights(module, names))
    feed = Feed(source.calibration, source.calibration)
    piece = convert(lambda: open_model(source.model), names, job, feed, source.facts.sparse, progress)
    return _joined([piece], tuple(every))


def _chosen(source: Input, job: Job, choose: Choose) -> tuple[StagedDecoder, tuple[str, ...], list[str]]:
    """The decoder, all of its layers that could take the format, and those that are to."""
    assert source.facts.decoder is not None
    decoder = StagedDecoder(source.model, source.facts.decoder, source.facts.quant)
    every = quantizable(decoder.skeleton, job)
    names = choose({name: inputs_of(layer) for name, layer in every.items()}, source.facts.task)
    refuse_broken(
        [
            wrong
            for stage in decoder.names
            if in_stage(names, stage)
            for wrong in broken_weights(decoder.open(stage), in_stage(names, stage))
        ]
    )
    return decoder, tuple(every), names


def _joined(pieces: Iterable[Piece], every: tuple[str, ...]) -> Converted:
    known = list(pieces)
    return Converted(
        {name: layer for piece in known for name, layer in piece.layers.items()},
        {name: row for piece in known for name, row in piece.rows.items()},
        every,
        [name for piece in known for name in piece.unreached],
        max((piece.proven for piece in known if piece.proven is not None), default=None),
    )


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


def assemble(source: Input, layers: Mapping[str, QuantLayer]) -> tuple[nn.Module, list[str]]:
    """The source's module with the layers put in, input factors folded where that is exact."""
    module = open_model(source.model)
    for name, layer in layers.items():
        replace_layer(module, name, layer)
    if not isinstance(module, Decoder) or not any(layer.pre_scale is not None for layer in layers.values()):
        return module.eval().requires_grad_(False), []
    assert source.calibration is not None
    folded = fold(module, tuple(value[:1] for value in source.calibration.batches[0]))
    return module.eval().requires_grad_(False), folded
