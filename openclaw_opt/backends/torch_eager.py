"""PyTorch eager, float32, with a KV cache: what a user has without us, timed in turns with the engine.

Hugging Face's own code as `from_pretrained` gives it: the attention it picks by default (sdpa where the model allows it),
its DynamicCache, no compilation, as many threads as PyTorch takes. Nothing is slowed down to make the engine look good, and a
decode step does what `generate` does and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import transformers

from openclaw_opt.artifacts import Checkpoint
from openclaw_opt.backends import DecoderSession
from openclaw_opt.errors import RecipeError
from openclaw_opt.models.quiet import quiet

if TYPE_CHECKING:
    from openclaw_opt.backends import Floats, Ids


class EagerDecoder(DecoderSession):
    """A decoder of transformers. Prompts of unequal lengths are moved to the right end, padding first, as `generate` wants."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self._model: Any = model
        self._past: Any = None
        self._mask = torch.zeros((0, 0), dtype=torch.int64)
        self._lengths = torch.zeros(0, dtype=torch.int64)

    def close(self) -> None:
        self._model = self._past = None

    def logits(self, ids: Ids) -> Floats:
        with torch.inference_mode():
            found = self._model(input_ids=torch.from_numpy(np.ascontiguousarray(ids)), use_cache=False).logits
        return _floats(found)

    def prefill(self, ids: Ids, lengths: Ids | None = None) -> Floats:
        width = ids.shape[1]
        self._lengths = torch.full((len(ids),), width) if lengths is None else torch.from_numpy(np.array(lengths))
        if int(self._lengths.min()) < 1 or int(self._lengths.max()) > width:
            raise RecipeError(f"lengths {self._lengths.tolist()} do not fit ids of shape {list(ids.shape)}")
        places = torch.arange(width) - (width - self._lengths[:, None])
        moved = torch.from_numpy(np.ascontiguousarray(ids)).gather(1, places % width)
        self._mask, self._past = (places >= 0).long(), None
        return self._step(moved, places.clamp_min(0))

    def decode(self, ids: Ids) -> Floats:
        if ids.shape != tuple(self._lengths.shape) or self._past is None:
            raise RecipeError(f"decode got {ids.size} tokens for a batch of {len(self._lengths)} that was prefilled")
        self._mask = torch.cat([self._mask, torch.ones((len(ids), 1), dtype=torch.int64)], dim=1)
        logits = self._step(torch.from_numpy(np.ascontiguousarray(ids))[:, None], self._lengths[:, None])
        self._lengths = self._lengths + 1
        return logits

    def _step(self, ids: torch.Tensor, positions: torch.Tensor) -> Floats:
        with torch.inference_mode():
            made = self._model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._past,
                use_cache=True,
                logits_to_keep=1,
            )
        self._past = made.past_key_values
        return _floats(made.logits[:, -1])


def open_eager(checkpoint: Checkpoint) -> EagerDecoder:
    """The untouched checkpoint. Raises RecipeError when transformers cannot read it."""
    # Only eager attention applies Gemma 2's soft-cap; elsewhere the default is what a user gets.
    softcap = checkpoint.config.get("attn_logit_softcapping") is not None
    options = {"attn_implementation": "eager"} if softcap else {}
    try:
        with quiet("transformers"):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint.folder, dtype=torch.float32, local_files_only=True, **options
            )
    except (OSError, ValueError) as error:
        raise RecipeError(f"transformers cannot read the checkpoint: {error}", where=str(checkpoint.folder)) from error
    return EagerDecoder(model.eval())


def _floats(logits: torch.Tensor) -> Floats:
    return cast("Floats", np.array(logits.float().numpy(), np.float32))
