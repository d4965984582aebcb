"""PyTorch as a session: the untouched checkpoint and every Model on the way, for accuracy. Its latency is nobody's number.

Decode steps recompute the whole sequence: slow, and right for any model, which is what a comparison needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openclaw_opt.artifacts import Checkpoint, Model
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.errors import RecipeError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.hf import Classifier, Encoder
from openclaw_opt.models.reference import open_reference
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.models.store import open_model

if TYPE_CHECKING:
    from openclaw_opt.backends import Floats, Ids

    Logits = Callable[[Tensor], Tensor]


class TorchDecoder(DecoderSession):
    """`logits` maps int64 [batch, length] to float32 [batch, length, vocab]."""

    def __init__(self, logits: Logits) -> None:
        self._logits, self._rows = logits, list[list[int]]()

    def logits(self, ids: Ids) -> Floats:
        with torch.inference_mode():
            return np.asarray(self._logits(torch.from_numpy(np.ascontiguousarray(ids))).numpy(), np.float32)

    def prefill(self, ids: Ids, lengths: Ids | None = None) -> Floats:
        sizes = [ids.shape[1]] * len(ids) if lengths is None else [int(n) for n in lengths]
        if not sizes or min(sizes) < 1:
            raise RecipeError("an empty prompt: a sequence needs at least one token")
        self._rows = [row[:size].tolist() for row, size in zip(ids, sizes, strict=True)]
        return self._last()

    def decode(self, ids: Ids) -> Floats:
        for row, token in zip(self._rows, ids.tolist(), strict=True):
            row.append(token)
        return self._last()

    def _last(self) -> Floats:
        return np.stack([self.logits(np.array([row], np.int64))[0, -1] for row in self._rows])


class TorchGeneric(GenericSession):
    """An encoder or a classifier: tensors in the module's own order, arrays by the module's output names."""

    def __init__(self, run: Callable[..., dict[str, Tensor]]) -> None:
        self._run = run

    def infer(self, feed: dict[str, NDArray[Any]]) -> dict[str, Floats]:
        with torch.inference_mode():
            found = self._run(**{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feed.items()})
        return {name: np.asarray(value.float().numpy(), np.float32) for name, value in found.items()}


def open_checkpoint_session(checkpoint: Checkpoint) -> DecoderSession | GenericSession:
    """The untouched checkpoint as Hugging Face runs it, float32."""
    reference = open_reference(checkpoint)
    spec = spec_from_config(checkpoint.config)
    if isinstance(spec, DecoderSpec):
        return TorchDecoder(reference)
    output = "embedding" if spec.task == "encoder" else "logits"
    return TorchGeneric(lambda **feed: {output: reference(*feed.values())})


def open_model_session(
    model: Model, *, watch: Callable[[nn.Module, str], None] | None = None
) -> DecoderSession | GenericSession:
    """A Model folder, quantized layers included, as PyTorch computes it; `watch` is called with every layer and its name."""
    module = open_model(model)
    for name, layer in module.named_modules() if watch else ():
        if not list(layer.children()) and name:
            assert watch is not None
            watch(layer, name)
    return session_of(module)


def session_of(module: nn.Module) -> DecoderSession | GenericSession:
    """A module in memory: a Decoder, or what `models.hf` builds."""
    if isinstance(module, Decoder):
        return TorchDecoder(lambda ids: _decoder_logits(module, ids))
    assert isinstance(module, (Encoder, Classifier))
    names = module.output_names
    return TorchGeneric(lambda **feed: dict(zip(names, _tuple(module(**feed)), strict=True)))


def _decoder_logits(module: Decoder, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    logits: Tensor = module(ids, torch.ones_like(ids), positions)[0]
    return logits.float()


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
