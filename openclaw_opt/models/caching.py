"""A decoder → the same with a low-bit key/value cache: ranges of keys and values on calibration data, their scales, the error.

Keys are taken as they are cached, after norm and rotation. Each kv head and channel of a layer has a range of its own,

    max                       the largest value seen
    percentile, mse, entropy  that times a factor a layer has for its keys and one for its values, found on the histogram of
                              |x| over the largest value of its channel (`numerics.histogram`), which holds all channels at once

or the largest of these ranges is that of all the layer's keys, and one that of its values.

The model is calibrated as it will run: with the weights that are already low-bit, and with a float cache, so that one layer's
rounding is not in the next one's range. With `dynamic` nothing is calibrated: the runtime finds its scales when it writes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import RecipeError
from openclaw_opt.formats import CACHES, CacheFormat
from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.models.converting import outputs_told, part
from openclaw_opt.models.rewritten import Rewritten
from openclaw_opt.models.schemes import Ranges
from openclaw_opt.models.spec import CacheSpec, ModelFacts, read_facts
from openclaw_opt.models.stages import Flow, Stage, StagedDecoder, let_go
from openclaw_opt.models.store import write_decoder
from openclaw_opt.numerics.cache import as_cached, scales_of
from openclaw_opt.numerics.histogram import Histogram, range_of
from openclaw_opt.numerics.quantization import DEAD, SqnrMeter

PARTS = ("key", "value")
Place = tuple[int, str]
"""Layer, and `key` or `value`."""


@dataclass(frozen=True)
class CacheJob:
    """The options of a pass with every default filled in."""

    format: str
    dynamic: bool = False
    ranges: Ranges = "max"
    percentile: float | None = None
    per_channel: bool = True

    @property
    def row(self) -> CacheFormat:
        return CACHES[self.format]

    @property
    def title(self) -> str:
        if self.dynamic:
            return f"{self.format}, in blocks of {self.row.blocks} whose scales the engine finds"
        more = {"max": "largest values", "percentile": f"percentile {self.percentile:g}" if self.percentile else ""}
        each = "a scale a head and channel" if self.per_channel else "a scale for keys and one for values"
        return f"{self.format}, {each} ({more.get(self.ranges, self.ranges)})"


@torch.no_grad()
def quantize_cache(
    source: Model, calibration: Calibration | None, folder: Path, job: CacheJob, progress: Progress
) -> Rewritten:
    """The new model in `folder`, one decoder layer in memory at a time.

    Args:
        calibration: sequences; None with `dynamic` alone.

    Raises:
        RecipeError: keys or values are NaN or infinite; the layer is named.
    """
    began, facts = time.monotonic(), read_facts(source)
    assert facts.decoder is not None, "only decoders have a cache"
    decoder = StagedDecoder(source, facts.decoder, facts.quant)
    found: list[Found] = []
    if not job.dynamic:
        assert calibration is not None, "`check` wants calibration data"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="stages-", dir=folder) as scratch:
            found = list(_calibrated(decoder, calibration, job, Path(scratch), progress))
    count = len(facts.decoder.layers)
    sentence = f"key/value cache of {count} layers to {job.title}"
    details = {
        "format": job.format,
        "dynamic": job.dynamic,
        "ranges": job.ranges,
        "percentile": job.percentile,
        "per_channel": job.per_channel,
        "tokens": calibration.tokens if calibration and not job.dynamic else 0,
        "seconds": round(time.monotonic() - began, 3),
    }
    spec = facts.decoder.model_copy(update={"cache": CacheSpec(format=job.format, dynamic=job.dynamic)})
    noted = facts.model_copy(update={"notes": (*facts.notes, sentence), "decoder": spec})
    model = _with_scales(decoder, {one.tensor: one.scales for one in found}, noted, folder, source.assets)
    return Rewritten(model, sentence, count, {"layers": [one.row() for one in found], "cache": details})


def _with_scales(
    decoder: StagedDecoder, scales: Mapping[str, Tensor], facts: ModelFacts, folder: Path, assets: Path
) -> Model:
    """The decoder as it was, with these tensors beside its own."""

    def read(name: str) -> Iterable[Tensor]:
        return [scales[name]] if name in scales else decoder.pieces(name)

    return write_decoder(facts, {**decoder.stored, **scales}, read, folder, assets)


@dataclass(frozen=True)
class Found:
    """Of one layer's keys or values: ranges and scales, float32 [kv_heads, 1, head_dim], and what rounding costs."""

    place: Place
    format: str
    ranges: Tensor
    scales: Tensor
    meter: SqnrMeter

    @property
    def tensor(self) -> str:
        """Name of the scales in the model's file."""
        return f"layers.{self.place[0]}.{self.place[1][0]}_scale"

    def row(self) -> dict[str, Any]:
        """For the report's layer table."""
        return {
            "name": f"layers.{self.place[0]}.{self.place[1]}",
            "format": self.format,
            "parameters": 0,
            "output_sqnr_db": self.meter.db,
            "note": f"cache; ranges up to {float(self.ranges.max()):.3g}" + _unseen(self.ranges),
        }


def _calibrated(
    decoder: StagedDecoder, calibration: Calibration, job: CacheJob, scratch: Path, progress: Progress
) -> Iterator[Found]:
    """Layer after layer; the hidden states that one leaves are the next one's."""
    flow, count = Flow(decoder, calibration, scratch, "float"), len(decoder.spec.layers)
    for i in range(count):
        stage = decoder.open(f"layers.{i}")
        told = part(progress, i / count, (i + 1) / count)
        yield from _of_layer(stage, i, flow.before(stage.name), flow.keep, job, told)
        let_go(stage)


def _of_layer(
    stage: Stage, at: int, states: Calibration, left: Callable[[int, Tensor], None], job: CacheJob, progress: Progress
) -> list[Found]:
    """Ranges, then errors of one layer; `left` gets what the layer makes of each batch."""
    ranges = _ranges(stage, at, states, job, progress)
    if not job.per_channel:
        ranges = {place: amax.amax().expand_as(amax).contiguous() for place, amax in ranges.items()}
    scales = {place: scales_of(amax, job.row) for place, amax in ranges.items()}
    meters = {place: SqnrMeter() for place in ranges}

    def add(place: Place, x: Tensor) -> None:
        meters[place].add(x, as_cached(x, scales[place], job.row))

    with outputs_told(stage, left):
        _each(stage, at, states, add, part(progress, 0.7, 1.0), "error of the cache")
    return [Found(place, job.format, ranges[place], scales[place], meters[place]) for place in ranges]


def _each(
    stage: Stage, at: int, states: Calibration, seen: Callable[[Place, Tensor], None], progress: Progress, text: str
) -> None:
    """Call `seen` with the layer's new keys and values of every batch, float [batch, kv_heads, tokens, head_dim]."""

    def both(name: str, x: Tensor, output: Any) -> None:
        for kind, value in zip(PARTS, output[1:3], strict=True):
            seen((at, kind), value.float())

    with watched(stage, [stage.name], both):
        run_batches(stage, states, progress, f"{stage.name}: {text}")


def _ranges(stage: Stage, at: int, states: Calibration, job: CacheJob, progress: Progress) -> dict[Place, Tensor]:
    """float32 [kv_heads, 1, head_dim] of the layer's keys and values."""
    tops: dict[Place, Tensor] = {}

    def largest(place: Place, x: Tensor) -> None:
        top = x.abs().amax((0, 2)).unsqueeze(1)
        tops[place] = torch.maximum(tops[place], top) if place in tops else top

    _each(stage, at, states, largest, part(progress, 0.0, 0.4), "ranges of keys and values")
    broken = next((place for place, top in tops.items() if not torch.isfinite(top).all()), None)
    if broken is not None:
        what = f"layers.{broken[0]}: a {broken[1]} is NaN or infinite on the calibration data"
        raise RecipeError(what, where="quantize.kv_cache", fix="look at the weights of that layer's qkv")
    if job.ranges == "max":
        return tops
    found = {place: Histogram(1.0) for place in tops}

    def count(place: Place, x: Tensor) -> None:
        live = (tops[place] > DEAD).expand_as(x)
        found[place].add((x / tops[place].clamp_min(DEAD))[live])

    _each(stage, at, states, count, part(progress, 0.4, 0.7), "histograms of keys and values")
    share = job.percentile if job.percentile is not None else 100.0
    return {place: tops[place] * range_of(found[place], job.ranges, job.format, share) for place in tops}


def _unseen(ranges: Tensor) -> str:
    count = int((ranges <= DEAD).sum())
    return f"; {count} of {ranges.numel()} channels never moved in calibration" if count else ""
