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

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import RecipeError
from openclaw_opt.formats import CACHES, CacheFormat
from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.models.decoder import Decoder, Layer
from openclaw_opt.models.rewritten import Rewritten
from openclaw_opt.models.schemes import Ranges
from openclaw_opt.models.spec import CacheSpec, read_facts
from openclaw_opt.models.store import open_model, save_model
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
    """The new model in `folder`. Raises RecipeError where keys or values are NaN or infinite; the layer is named.

    Args:
        calibration: sequences; None with `dynamic` alone.
    """
    began, facts, module = time.monotonic(), read_facts(source), open_model(source)
    assert isinstance(module, Decoder), "only decoders have a cache"
    rows: list[dict[str, Any]] = []
    scales: Mapping[Place, Tensor] = {}
    if not job.dynamic:
        assert calibration is not None, "`check` wants calibration data"
        ranges = _ranges(module, calibration, job, progress)
        if not job.per_channel:
            ranges = {place: amax.amax().expand_as(amax).contiguous() for place, amax in ranges.items()}
        scales = {place: scales_of(amax, job.row) for place, amax in ranges.items()}
        rows = _errors(module, calibration, scales, ranges, job, progress)
    put_cache(module, CacheSpec(format=job.format, dynamic=job.dynamic), scales)
    sentence = f"key/value cache of {len(module.layers)} layers to {job.title}"
    noted = facts.model_copy(update={"notes": (*facts.notes, sentence)})
    details = {
        "format": job.format,
        "dynamic": job.dynamic,
        "ranges": job.ranges,
        "percentile": job.percentile,
        "per_channel": job.per_channel,
        "tokens": calibration.tokens if calibration and not job.dynamic else 0,
        "seconds": round(time.monotonic() - began, 3),
    }
    return Rewritten(
        save_model(module, noted, folder, source.assets),
        sentence,
        len(module.layers),
        {"layers": rows, "cache": details},
    )


def put_cache(decoder: Decoder, cache: CacheSpec, scales: Mapping[Place, Tensor]) -> None:
    """Give the decoder the cache; `scales` for each layer and part, or none where it is dynamic."""
    decoder.spec = decoder.spec.model_copy(update={"cache": cache})
    for i, layer in enumerate(decoder.layers):
        assert isinstance(layer, Layer)
        layer.spec = decoder.spec
        if not cache.dynamic:
            layer.set_cache(*(scales[i, part] for part in PARTS))


def _each(
    decoder: Decoder, calibration: Calibration, seen: Callable[[Place, Tensor], None], progress: Progress, text: str
) -> None:
    """Call `seen` with every layer's new keys and values of every batch, float [batch, kv_heads, tokens, head_dim]."""
    layers = {f"layers.{i}": i for i in range(len(decoder.layers))}

    def both(name: str, x: Tensor, output: Any) -> None:
        for part, value in zip(PARTS, output[1:3], strict=True):
            seen((layers[name], part), value.float())

    with watched(decoder, list(layers), both):
        run_batches(decoder, calibration, progress, text)


def _ranges(decoder: Decoder, calibration: Calibration, job: CacheJob, progress: Progress) -> dict[Place, Tensor]:
    """float32 [kv_heads, 1, head_dim] of every layer's keys and values."""
    tops: dict[Place, Tensor] = {}

    def largest(place: Place, x: Tensor) -> None:
        top = x.abs().amax((0, 2)).unsqueeze(1)
        tops[place] = torch.maximum(tops[place], top) if place in tops else top

    _each(decoder, calibration, largest, _part(progress, 0.0, 0.4), "ranges of keys and values")
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

    _each(decoder, calibration, count, _part(progress, 0.4, 0.7), "histograms of keys and values")
    share = job.percentile if job.percentile is not None else 100.0
    return {place: tops[place] * range_of(found[place], job.ranges, job.format, share) for place in tops}


def _errors(
    decoder: Decoder,
    calibration: Calibration,
    scales: Mapping[Place, Tensor],
    ranges: Mapping[Place, Tensor],
    job: CacheJob,
    progress: Progress,
) -> list[dict[str, Any]]:
    """What rounding leaves of keys and values: a row a layer and part for the report."""
    meters = {place: SqnrMeter() for place in scales}

    def add(place: Place, x: Tensor) -> None:
        meters[place].add(x, as_cached(x, scales[place], job.row))

    _each(decoder, calibration, add, _part(progress, 0.7, 1.0), "error of the cache")
    return [
        {
            "name": f"layers.{index}.{part}",
            "format": job.format,
            "parameters": 0,
            "output_sqnr_db": meter.db,
            "note": f"cache; ranges up to {float(ranges[index, part].max()):.3g}" + _unseen(ranges[index, part]),
        }
        for (index, part), meter in sorted(meters.items())
    ]


def _unseen(ranges: Tensor) -> str:
    count = int((ranges <= DEAD).sum())
    return f"; {count} of {ranges.numel()} channels never moved in calibration" if count else ""


def _part(progress: Progress, start: float, end: float) -> Progress:
    return lambda part, text: progress(start + part * (end - start), text)
