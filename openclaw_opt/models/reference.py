"""The untouched checkpoint, run in float32 by Hugging Face's own code: what every later stage is compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from openclaw_opt.artifacts import Checkpoint
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.hf import Classifier, Encoder, load_hf
from openclaw_opt.models.quiet import quiet
from openclaw_opt.models.spec import DecoderSpec

Reference = Callable[..., Tensor]


def open_reference(checkpoint: Checkpoint, *, streaming: bool = False) -> Reference:
    """A function of the task's inputs.

        decoder  (input_ids, attention_mask=None) int64 [batch, length] → logits, float32 [batch, length, vocab];
                 sequences are right-padded, and what padding gives is of no meaning
        encoder  (input_ids, attention_mask[, token_type_ids]) → embedding, float32 [batch, hidden]
        vision   (pixel_values) float32 → logits, float32 [batch, classes]

    Args:
        streaming: read a decoder's weights from disk at every call, a layer at a time, instead of holding them.

    Raises:
        RecipeError: the architecture is not supported or the weights do not match.
    """
    spec = spec_from_config(checkpoint.config)
    if isinstance(spec, DecoderSpec):
        return _decoder(checkpoint, spec, streaming=streaming)
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


def _decoder(checkpoint: Checkpoint, spec: DecoderSpec, *, streaming: bool) -> Reference:
    # Only eager attention applies the soft-cap of Gemma 2.
    attention = "eager" if spec.attention_softcap is not None else "sdpa"
    # accelerate maps safetensors where they lie; weights of another kind it would write anew.
    mapped = streaming and all(file.endswith(".safetensors") for file in checkpoint.files)
    with quiet("transformers", "accelerate"), tempfile.TemporaryDirectory(prefix="offload-") as scratch:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            attn_implementation=attention,
            local_files_only=True,
            **({"device_map": _on_disk(checkpoint.folder), "offload_folder": scratch} if mapped else {}),
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


def _on_disk(folder: Path) -> dict[str, str]:
    """accelerate's device map: each layer and each other matrix stays on disk until it is called, norms are held."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    prefix = model.base_model_prefix
    body = getattr(model, prefix)
    parts = [(name, part) for name, part in model.named_children() if part is not body]
    for name, part in body.named_children():
        of_many = part.named_children() if isinstance(part, nn.ModuleList) else [("", part)]
        parts += [(".".join(filter(None, (prefix, name, leaf))), one) for leaf, one in of_many]
    return {name: "disk" if any(p.ndim > 1 for p in part.parameters()) else "cpu" for name, part in parts}
