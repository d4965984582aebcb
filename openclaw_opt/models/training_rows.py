"""What a training runs on, by task: samples as rows of one tensor, batches of them, and the loss of a batch.

    decoder  int64 [samples, length]: token ids without padding
    encoder  int64 [samples, 2, length]: token ids and attention mask, padded on the right
    vision   float32 [samples, channels, height, width]

A decoder learns its teacher's distribution of the next token, a classifier that of the classes, an encoder the sentence's embedding
(relative squared error; for embeddings of length 1 that is 2 − 2·cosine: https://arxiv.org/abs/2004.09813).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openclaw_opt.models.calibrate import Batch, Calibration, decoder_batch
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.hf import Encoder
from openclaw_opt.numerics.distillation import divergence, hidden_difference, likelihood
from openclaw_opt.numerics.spacing import evenly

LOSSES = {"decoder": "nats", "encoder": "relative squared differences", "vision": "nats"}
UNITS = {"decoder": "tokens", "encoder": "tokens", "vision": "images"}


def rows_of(calibration: Calibration, task: str) -> Tensor:
    """All samples of the data."""
    if task != "encoder":
        return torch.cat([batch[0] for batch in calibration.batches])
    longest = max(batch[0].shape[1] for batch in calibration.batches)
    parts = [torch.stack((ids, mask), 1) for ids, mask, *_ in calibration.batches]
    return torch.cat([F.pad(part, (0, longest - part.shape[-1])) for part in parts])


def parted(rows: Tensor, held: int, task: str) -> tuple[Tensor, Tensor]:
    """Rows to train on, and `held` of them held back: a text's last ones, or (sentences come by length) some of every kind."""
    if task == "decoder":
        return rows[:-held], rows[-held:]
    kept = torch.zeros(len(rows), dtype=torch.bool)
    kept[list(evenly(held, len(rows)))] = True
    return rows[~kept], rows[kept]


def amount(rows: Tensor, task: str) -> float:
    """Mean tokens of a row without padding; 1 for an image."""
    if task == "vision":
        return 1.0
    return float(rows.shape[1]) if task == "decoder" else float(rows[:, 1].sum()) / len(rows)


def batch_of(module: nn.Module, rows: Tensor) -> Batch:
    """Rows as the module's inputs; sentences are cut to the longest of them."""
    if isinstance(module, Decoder):
        return decoder_batch(rows)
    if not isinstance(module, Encoder):
        return (rows,)
    ids, mask = rows.unbind(1)
    longest = int(mask.sum(1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]
    return (ids, mask, torch.zeros_like(ids))[: len(module.input_names)]


def decoder_loss(
    ours: tuple[Tensor, Sequence[Tensor]],
    theirs: tuple[Tensor, Sequence[Tensor]],
    ids: Tensor,
    temperature: float,
    cross_entropy: float,
    hidden: float,
) -> Tensor:
    """Of logits and hidden states of student and teacher, pair by pair; states are looked at where `hidden` is not 0."""
    loss = (1 - cross_entropy) * divergence(ours[0], theirs[0], temperature)
    if cross_entropy:
        loss = loss + cross_entropy * likelihood(ours[0], ids)
    return loss + hidden * hidden_difference(ours[1], theirs[1]) if hidden else loss


def encoder_loss(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], mask: Tensor, hidden: float) -> Tensor:
    """Of last hidden states [batch, length, hidden] and embeddings [batch, hidden]; of the former real tokens alone."""
    loss = hidden_difference([ours[1]], [theirs[1]])
    real = mask != 0
    return loss + hidden * hidden_difference([ours[0][real]], [theirs[0][real]]) if hidden else loss
