"""Logits of whole sequences with one decoder layer in memory at a time: what a checkpoint or a Model is compared by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openclaw_opt.artifacts import Checkpoint, Model
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.reference import open_reference
from openclaw_opt.models.spec import DecoderSpec, ModelFacts, read_facts
from openclaw_opt.models.stages import StagedDecoder, let_go


@torch.inference_mode()
def logits_of_prefixes(
    artifact: Checkpoint | Model, rows: Sequence[Tensor], lengths: Sequence[Sequence[int]]
) -> list[list[Tensor]]:
    """What a decoder says of sequences cut to some lengths, one pass over its layers for all of them.

    A prefix says what the whole sequence says at its positions, unless the rotation depends on the length (longrope): then
    each prefix is run by itself.

    Args:
        rows: token ids, int64 [length] each.
        lengths: of each row, the lengths that are asked for.

    Returns:
        Of each row, logits of each prefix, float32 [length, vocab].

    Raises:
        RecipeError: the checkpoint is not supported, or its weights or the Model's do not match.
    """
    spec = _spec(artifact)
    if all(rope.type != "longrope" for rope in spec.ropes.values()):
        return [[x[:n] for n in some] for x, some in zip(_logits(artifact, rows), lengths, strict=True)]
    prefixes = iter(_logits(artifact, [row[:n] for row, some in zip(rows, lengths, strict=True) for n in some]))
    return [[next(prefixes) for _ in some] for some in lengths]


def _spec(artifact: Checkpoint | Model) -> DecoderSpec:
    spec = spec_from_config(artifact.config) if isinstance(artifact, Checkpoint) else read_facts(artifact).spec
    assert isinstance(spec, DecoderSpec)
    return spec


def _logits(artifact: Checkpoint | Model, rows: Sequence[Tensor]) -> list[Tensor]:
    """float32 [length, vocab] of each row."""
    if isinstance(artifact, Checkpoint):
        return _of_checkpoint(artifact, rows)
    return _of_model(artifact, read_facts(artifact), rows)


def _of_checkpoint(checkpoint: Checkpoint, rows: Sequence[Tensor]) -> list[Tensor]:
    """Rows are padded on the right into one batch: a layer is read once for all of them."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    logits = open_reference(checkpoint, streaming=True)(ids, mask)
    return [logits[row, :length] for row, length in enumerate(lengths.tolist())]


def _of_model(model: Model, facts: ModelFacts, rows: Sequence[Tensor]) -> list[Tensor]:
    """Row by row through each layer: no padding, so a range found per tensor is the sequence's own."""
    assert facts.decoder is not None
    decoder = StagedDecoder(model, facts.decoder, facts.quant)
    batches = [(row[None], torch.ones_like(row[None]), torch.arange(len(row))[None]) for row in rows]
    states = [decoder.enter(batch) for batch in batches]
    contexts = [decoder.contexts(batch) for batch in batches]
    for i, name in enumerate(decoder.names):
        stage = decoder.open(name)
        for at, x in enumerate(states):
            states[at] = stage(x, *(contexts[at][i] if i < len(contexts[at]) else ()))
        let_go(stage)
    logits = [x[0].float() for x in states]
    cap = facts.decoder.logit_softcap
    return logits if cap is None else [torch.tanh(x / cap) * cap for x in logits]
