"""What `quantize: {kv_cache: …}` asks of the recipe's backend and model, checked without torch, and the job it becomes.

Three engines hold a low-bit cache, each in its own way: ONNX Runtime's attention kernel on a CPU with constant scales that are
calibrated here, llama.cpp in blocks of 32 channels whose half-precision scales it finds when it writes a token, OpenVINO with a scale and
a zero point that it finds for each token and head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from openclaw_opt.errors import RecipeError
from openclaw_opt.formats import CACHES, NO_CACHE
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.passes import Complaint, View
from openclaw_opt.targets import FASTEST, RUNTIMES

if TYPE_CHECKING:
    from openclaw_opt.models.caching import CacheJob
    from openclaw_opt.passes.quantize import Quantize

FLOAT: Final = "float"
FINDERS = ("gguf", "openvino")
"""Backends whose runtime finds the scales of its cache when it writes."""
STAYS = "kv_cache: float"
DEFAULT_PERCENTILE = 99.99
OF_CACHES = ("kv_calibration", "kv_per_channel")
OF_WEIGHTS = ("algorithm", "calibration", "damping", "act_order", "sweeps", "alpha", "block", "per_channel", "keep")


def read_word(word: Any) -> Any:
    """The option as written. Raises RecipeError for a format that no engine holds a cache in."""
    if isinstance(word, str) and word in NO_CACHE:
        raise RecipeError(f"kv_cache: {word} is not realised: {NO_CACHE[word]}", fix="kv_cache: int8")
    return word


def is_dynamic(backend: str) -> bool:
    """Does the engine find the scales itself?"""
    return backend in FINDERS


def complaints(options: Quantize, view: View) -> Iterator[Complaint]:
    """What stands against the cache that is asked for, or against options that mean nothing without one."""
    if options.kv_cache == FLOAT:
        for name in OF_CACHES:
            if getattr(options, name) is not None:
                yield Complaint(f"{name} has no effect on a float cache", name, "kv_cache: int8, or leave it out")
        if options.format == FLOAT:
            yield Complaint("it names neither a format nor a kv_cache", "", "format: int8, or kv_cache: int8")
        return
    if not isinstance(view.spec, DecoderSpec):
        yield Complaint("a model without a decoder has no key/value cache", "kv_cache", STAYS)
        return
    if any(getattr(one, "kv_cache", FLOAT) != FLOAT for one in view.earlier):
        yield Complaint("an earlier pass has quantized the cache", "kv_cache", "leave it out of one")
    if options.format == "auto":
        what = "the choice among formats would be measured without the cache's loss"
        yield Complaint(what, "kv_cache", f"a pass before this one: `- quantize: {{kv_cache: {options.kv_cache}}}`")
    found = list(_backend(options, view, view.spec))
    yield from found or _data(options, view)


def _backend(options: Quantize, view: View, spec: DecoderSpec) -> Iterator[Complaint]:
    row, word, title = CACHES[options.kv_cache], options.kv_cache, view.target.title
    if view.backend == FASTEST:
        yield Complaint(f"{word} cache: {NO_CACHE[FASTEST]}", "kv_cache", "backend: onnxruntime, gguf or openvino")
    elif view.backend not in row.backends:
        why = NO_CACHE.get(view.backend, "it has no such cache")
        yield Complaint(f"{view.backend} does not realise an {word} cache on {title}: {why}", "kv_cache", STAYS)
    elif view.backend == "onnxruntime" and view.target.is_gpu:
        yield Complaint(f"an {word} cache is not offered on {title}: {NO_CACHE['cuda']}", "kv_cache", STAYS)
    elif view.backend == "openvino" and spec.attention_softcap is not None:
        what = "OpenVINO has no kernel for attention with capped logits, and without it the cache stays float"
        yield Complaint(what, "kv_cache", f"{STAYS}, or backend: onnxruntime")
    elif view.backend == "gguf" and spec.head_dim % row.blocks:
        what = (
            f"llama.cpp rounds a cache in blocks of {row.blocks}, which do not divide the head_dim of {spec.head_dim}"
        )
        yield Complaint(what, "kv_cache", f"{STAYS}, or backend: onnxruntime")


def _data(options: Quantize, view: View) -> Iterator[Complaint]:
    if is_dynamic(view.backend):
        for name in OF_CACHES:
            if getattr(options, name) is not None:
                what = f"{name} has no effect on {view.backend}: {RUNTIMES[view.backend]} finds the scales of its cache when it runs"
                yield Complaint(what, name, "leave it out")
        return
    if view.calibration is None:
        what = f"an {options.kv_cache} cache needs calibration data"
        yield Complaint(what, "kv_cache", "add `calibration` to `data`")
    elif view.calibration.kind != "text":
        what = f"calibration data is {view.calibration.kind}, the model takes text"
        yield Complaint(what, "", "change data.calibration")
    if options.kv_calibration == "entropy" and options.kv_cache != "int8":
        what = f"{options.kv_cache} has no entropy calibration"
        yield Complaint(what, "kv_calibration", "legal: max, percentile, mse")


def weights_stay(options: Quantize) -> Iterator[Complaint]:
    """Options of weights in a pass that leaves them as they are."""
    fields = type(options).model_fields
    for name in OF_WEIGHTS:
        if getattr(options, name) != fields[name].default:
            yield Complaint(f"{name} has no effect without a format", name, "name a format, or leave it out")
    if options.percentile is not None and options.kv_calibration != "percentile":
        yield Complaint("percentile has no effect without it", "percentile", "kv_calibration: percentile")


def cache_job(options: Quantize, backend: str) -> CacheJob:
    """The same with every default filled in."""
    from openclaw_opt.models.caching import CacheJob

    ranges = options.kv_calibration or "max"
    share = (options.percentile or DEFAULT_PERCENTILE) if ranges == "percentile" else None
    return CacheJob(options.kv_cache, is_dynamic(backend), ranges, share, options.kv_per_channel is not False)
