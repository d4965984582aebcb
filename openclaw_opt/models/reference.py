"""The untouched checkpoint, run in float32 by Hugging Face's own code: what every later stage is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor

from openclaw_opt.artifacts import Checkpoint
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.hf import Classifier, Encoder, load_hf
from openclaw_opt.models.quiet import quiet
from openclaw_opt.models.spec import DecoderSpec

Reference = Callable[..., Tensor]


def open_reference(checkpoint: Checkpoint) -> Reference:
    """A function of the task's inputs.

        decoder  (input_ids, attention_mask=None) int64 [batch, length] → logits, float32 [batch, length, vocab];
                 sequences are right-padded, and what padding gives is of no meaning
        encoder  (input_ids, attention_mask[, token_type_ids]) → embedding, float32 [batch, hidden]
        vision   (pixel_values) float32 → logits, float32 [batch, classes]

    Raises:
        RecipeError: the architecture is not supported or the weights do not match.
    """
    spec = spec_from_config(checkpoint.config)
    if isinstance(spec, DecoderSpec):
        return _decoder(checkpoint, spec)
    module, _ = load_hf(checkpoint)

    @torch.no_grad()
    def run(*inputs: Tensor) -> Tensor:
        if isinstance(module, Encoder):
            embedding: Tensor = module(*inputs[: len(module.input_names)])[1]
            return embedding
        assert isinstance(module, Classifier)
        logits: Tensor = module(*inputs)
        return logits

    return run


def _decoder(checkpoint: Checkpoint, spec: DecoderSpec) -> Reference:
    # Only eager attention applies the soft-cap of Gemma 2.
    attention = "eager" if spec.attention_softcap is not None else "sdpa"
    with quiet("transformers"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.folder, dtype=torch.float32, attn_implementation=attention, local_files_only=True
        ).eval()

    # Hugging Face chooses longrope's factors by the longest row of a batch; a sequence must not depend on the others.
    one_by_one = any(rope.type == "longrope" for rope in spec.ropes.values())

    @torch.no_grad()
    def run(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not one_by_one:
            logits: Tensor = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            return logits.float()
        rows = torch.zeros(*input_ids.shape, spec.vocab)
        for row, (ids, length) in enumerate(zip(input_ids, mask.sum(1).tolist(), strict=True)):
            rows[row, :length] = model(input_ids=ids[None, :length], use_cache=False).logits[0].float()
        return rows

    return run
