"""Calibration data as batches of a module's inputs, and what a float model's layers see when it runs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from openclaw_opt.artifacts import Model
from openclaw_opt.data import Source
from openclaw_opt.data.load import load_images, load_sentences, load_tokens
from openclaw_opt.errors import RecipeError
from openclaw_opt.models.blocks import Prunable, layer_names, stream
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.spec import ModelFacts

Batch = tuple[Tensor, ...]
"""Positional inputs of the module: see `Decoder`, `models.hf.Encoder`, `models.hf.Classifier`."""
Progress = Callable[[float, str], None]
Seen = Callable[[str, Tensor, Tensor], None]
"""Called with a layer's name, its input and its output."""


@dataclass(frozen=True)
class Calibration:
    """Batches, and how much they are."""

    batches: Sequence[Batch]
    sequences: int
    """Sequences, sentences or images."""
    tokens: int
    """Real tokens, without padding; 0 for images."""
    fingerprint: str = ""


def load_calibration(source: Source, facts: ModelFacts, model: Model, cache: Path, batch_size: int) -> Calibration:
    """The source as batches of `batch_size` for the model that `facts` states.

    Raises:
        RecipeError: sequences are longer than the model's context, or `data.load` finds the source wanting.
    """
    if facts.task == "vision":
        images = load_images(source)
        parts = torch.split(torch.from_numpy(images.images), batch_size)
        return Calibration(tuple((part,) for part in parts), len(images.images), 0, images.fingerprint)
    tokenizer = model.assets / "tokenizer.json"
    if facts.task == "encoder":
        sentences = load_sentences(source, tokenizer, cache)
        batches = sentence_batches(torch.from_numpy(sentences.ids), torch.from_numpy(sentences.mask), batch_size)
        made = Calibration(batches, len(sentences.ids), int(sentences.mask.sum()), sentences.fingerprint)
    else:
        tokens = load_tokens(source, tokenizer, cache)
        made = decoder_calibration(torch.from_numpy(tokens.sequences), batch_size, tokens.fingerprint)
    _check_length(made, facts)
    return made


def decoder_calibration(sequences: Tensor, batch_size: int, fingerprint: str = "") -> Calibration:
    """int64 [sequences, length] without padding."""
    batches = tuple(decoder_batch(part) for part in torch.split(sequences, batch_size))
    return Calibration(batches, sequences.shape[0], sequences.numel(), fingerprint)


def decoder_batch(ids: Tensor) -> Batch:
    """ids int64 [batch, length], attention_mask and position_ids for sequences without padding."""
    return ids, torch.ones_like(ids), torch.arange(ids.shape[1]).expand_as(ids)


def sentence_batches(ids: Tensor, mask: Tensor, batch_size: int) -> tuple[Batch, ...]:
    """Batches of sentences of about one length, each cut to its longest: little padding is calibrated on."""
    order = mask.sum(1).argsort(stable=True)
    made = []
    for index in torch.split(order, batch_size):
        longest = int(mask[index].sum(1).max())
        made.append((ids[index, :longest], mask[index, :longest], torch.zeros_like(ids[index, :longest])))
    return tuple(made)


def _check_length(calibration: Calibration, facts: ModelFacts) -> None:
    longest, context = max(batch[0].shape[1] for batch in calibration.batches), getattr(facts.spec, "context", None)
    if context is not None and longest > context:
        raise RecipeError(
            f"calibration sequences of {longest} tokens are longer than the model's context of {context}",
            where="data.calibration.length",
            fix=f"length: {context}",
        )


@contextmanager
def watched(module: nn.Module, names: Sequence[str], seen: Seen) -> Iterator[None]:
    """While open, every call of a layer in `names` is passed to `seen`."""
    modules = dict(module.named_modules())

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: seen(name, inputs[0], output)

    handles = [modules[name].register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_batches(
    module: nn.Module,
    calibration: Calibration,
    progress: Progress,
    text: str,
    starts: Callable[[Batch], None] = lambda batch: None,
) -> None:
    """Run the module over every batch. `progress` gets the part done, 0 to 1; `starts` each batch before it runs."""
    for i, batch in enumerate(calibration.batches):
        progress(i / len(calibration.batches), f"{text}, batch {i + 1} of {len(calibration.batches)}")
        starts(batch)
        module(*batch)


@torch.no_grad()
def layer_outputs(model: Prunable, batch: Batch) -> list[tuple[str, Tensor]]:
    """Hidden states after every layer [batch, length, hidden] and the logits, or an encoder's embedding; each with the name of
    what made it."""
    seen: list[tuple[str, Tensor]] = []
    with watched(model, layer_names(model), lambda name, x, y: seen.append((name, stream(y)))):
        made = model(*batch)
    return [*seen, ("head", made[0]) if isinstance(model, Decoder) else ("embedding", made[1])]
