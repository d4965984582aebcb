"""A checkpoint → a Model folder in the canonical layout; a decoder's tensors one at a time."""

from __future__ import annotations

from pathlib import Path

from openclaw_opt.artifacts import Checkpoint, FloatType, Model
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.spec import DecoderSpec, ModelFacts
from openclaw_opt.models.store import DTYPES, save_model, write_decoder
from openclaw_opt.models.weights import CheckpointDecoder


def load_model(checkpoint: Checkpoint, folder: Path, dtype: FloatType = "float32") -> tuple[Model, int, int]:
    """The model, how many tensors it has and how many parameters.

    Raises:
        RecipeError: see `decoder_from_checkpoint`, `models.hf.load_hf` and `save_model`.
    """
    spec = spec_from_config(checkpoint.config)
    if isinstance(spec, DecoderSpec):
        source = CheckpointDecoder(checkpoint, DTYPES[dtype])
        facts = ModelFacts(task="decoder", family=spec.family, dtype=dtype, decoder=spec)
        entries = {name: value for name, value in source.empty.named_parameters() if name in source.names}
        model = write_decoder(facts, entries, lambda name: [source.read(name)], folder, checkpoint.folder)
        return model, len(entries), sum(value.numel() for value in entries.values())
    from openclaw_opt.models.hf import load_hf

    module, spec = load_hf(checkpoint)
    facts = ModelFacts(task=spec.task, family=spec.family, dtype=dtype, hf=spec)
    module = module.to(DTYPES[dtype])
    model = save_model(module, facts, folder, checkpoint.folder)
    parameters = list(module.parameters())
    return model, len(parameters), sum(value.numel() for value in parameters)
