"""A model's inputs, layer by layer: each linear's Σ x·xᵀ on calibration data, with the linears before it already changed.

A decoder streams: the hidden states of all batches stand before one layer, that layer's linears are handed over, then the
states run through what became of it. So at most one layer's matrices and one set of hidden states are in memory. Within a
layer all four linears see the float layer. One stage of a decoder (`models.stages`) has its states brought to it. Models that
run as Hugging Face wrote them go through whole, as many linears at a time as GRAM_BYTES hold, and their linears see the
unchanged model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.stages import Stage

GRAM_BYTES = 2**30
Change = Callable[[str, Tensor], None]
"""Called once a linear with its name and its inputs' products, float32 [K, K]; may change its weight."""


@torch.no_grad()
def each_gram(
    module: nn.Module, names: Sequence[str], calibration: Calibration, change: Change, progress: Progress
) -> None:
    """Call `change` for every linear in `names`, in the order of the model's computation."""
    if isinstance(module, Decoder):
        _through_decoder(module, names, calibration, change, progress)
        return
    if isinstance(module, Stage):
        with gathered(module, names) as grams:
            run_batches(module, calibration, progress, "inputs of each layer")
        for name in names:
            change(name, grams.pop(name))
        return
    chunks = list(_chunks(module, names))
    for i, chunk in enumerate(chunks):
        with gathered(module, chunk) as grams:
            run_batches(module, calibration, _nth(progress, i, len(chunks)), "inputs of each layer")
        for name in chunk:
            change(name, grams.pop(name))


def _nth(progress: Progress, i: int, count: int) -> Progress:
    return lambda part, text: progress((i + part) / count, text)


def _through_decoder(
    decoder: Decoder, names: Sequence[str], calibration: Calibration, change: Change, progress: Progress
) -> None:
    chosen, states = set(names), [decoder.entered(*batch)[0] for batch in calibration.batches]
    for i, layer in enumerate(decoder.layers):
        progress(i / (len(decoder.layers) + 1), f"layer {i + 1} of {len(decoder.layers)}")
        own = [name for name in _in_order(layer, f"layers.{i}") if name in chosen]
        if own:
            with gathered(decoder, own) as grams:
                for batch, x in zip(calibration.batches, states, strict=True):
                    layer(x, *decoder.contexts(*batch[1:])[i])
            for name in own:
                change(name, grams.pop(name))
        for at, batch in enumerate(calibration.batches):
            states[at] = layer(states[at], *decoder.contexts(*batch[1:])[i])[0]
    if "head" in chosen:
        gram = sum((_products(decoder.norm_out(x)) for x in states[1:]), _products(decoder.norm_out(states[0])))
        change("head", gram)


def _in_order(layer: nn.Module, prefix: str) -> Iterator[str]:
    """Linears of a decoder layer as they compute."""
    for leaf in ("qkv", "o", "gate_up", "up", "down"):
        if hasattr(layer, leaf):
            yield f"{prefix}.{leaf}"


@contextmanager
def gathered(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While open, the input products of the linears in `names` add up; their weights are not quantized meanwhile."""
    grams: dict[str, Tensor] = {}

    def add(name: str, x: Tensor, y: Tensor) -> None:
        products = _products(x)
        if name in grams:
            grams[name] += products
        else:
            grams[name] = products

    every = list(names)
    with watched(module, every, add), weights_unquantized([module.get_submodule(name) for name in every]):
        yield grams


@contextmanager
def weights_unquantized(layers: Iterable[Any]) -> Iterator[None]:
    """While open, modelopt's quantizers leave the weights of these layers as they are."""
    quantizers = [layer.weight_quantizer for layer in layers if hasattr(layer, "weight_quantizer")]
    open_ones = [quantizer for quantizer in quantizers if quantizer.is_enabled]
    for quantizer in open_ones:
        quantizer.disable()
    try:
        yield
    finally:
        for quantizer in open_ones:
            quantizer.enable()


def _products(x: Tensor) -> Tensor:
    rows = x.flatten(0, -2).float()
    return rows.T @ rows


def _chunks(module: nn.Module, names: Sequence[str]) -> Iterator[list[str]]:
    """Names whose matrices fit GRAM_BYTES together; a larger one stands alone."""
    chunk: list[str] = []
    held = 0
    sizes: Mapping[str, int] = {name: 4 * _inputs(module.get_submodule(name)) ** 2 for name in names}
    for name, size in sizes.items():
        if chunk and held + size > GRAM_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(name)
        held += size
    if chunk:
        yield chunk


def _inputs(layer: nn.Module) -> int:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.shape[1]
