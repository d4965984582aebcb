"""A checkpoint → a Model folder in the canonical layout."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from openclaw_opt.artifacts import Checkpoint, FloatType, Model
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.spec import DecoderSpec, ModelFacts
from openclaw_opt.models.store import DTYPES, save_model
from openclaw_opt.models.weights import decoder_from_checkpoint


def load_model(checkpoint: Checkpoint, folder: Path, dtype: FloatType = "float32") -> tuple[Model, int, int]:
    """The model, how many tensors it has and how many parameters.

    Raises:
        RecipeError: see `decoder_from_checkpoint`, `models.hf.load_hf` and `save_model`.
    """
    spec = spec_from_config(checkpoint.config)
    if isinstance(spec, DecoderSpec):
        facts = ModelFacts(task="decoder", family=spec.family, dtype=dtype, decoder=spec)
        module: nn.Module = decoder_from_checkpoint(checkpoint, DTYPES[dtype])
    else:
        from openclaw_opt.models.hf import load_hf

        module, spec = load_hf(checkpoint)
        facts = ModelFacts(task=spec.task, family=spec.family, dtype=dtype, hf=spec)
        module = module.to(DTYPES[dtype])
    model = save_model(module, facts, folder, checkpoint.folder)
    parameters = list(module.parameters())
    return model, len(parameters), sum(value.numel() for value in parameters)
