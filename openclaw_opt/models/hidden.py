"""Narrower hidden states: the least important channels taken out of everything that reads or writes them.

Importance, as in Minitron (https://arxiv.org/abs/2407.14679): the energy of each channel in the outputs of all norms, on
calibration data; with magnitude, the energy of all weights that read or write the channel.

Exact but for what the channels held: an RMS norm of n channels of which some are zero is sqrt(n / n') times the norm of the n'
others, with eps · n / n' in place of eps. So weights of norms grow by that factor, and the narrowed decoder equals the one whose
removed channels are set to zero: columns of the embedding, rows and biases of `o` and `down`. Norms of queries and keys share
eps and see it grown too, which the proof's tolerance covers. A layer norm also subtracts the mean over all channels, which no
factor gives back: such families are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor, nn

from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.models.decoder import Decoder, Layer, Norm
from openclaw_opt.models.importance import Importance

ROWS, COLUMNS = ("o", "down"), ("qkv", "gate_up", "up", "head", "embed")
"""Modules whose outputs, and whose inputs, are the hidden states (an embedding's columns are)."""


def hidden_scores(
    decoder: Decoder, importance: Importance, calibration: Calibration | None, progress: Progress
) -> Tensor:
    """Importance of every channel, float64 [hidden]."""
    if importance == "magnitude":
        return _magnitude(decoder)
    assert calibration is not None, "check refuses ranking on data without any"
    total = torch.zeros(decoder.spec.hidden, dtype=torch.float64)

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        total.add_(y.double().square().flatten(0, -2).sum(0))

    with watched(decoder, [name for name, _ in _norms(decoder)], seen):
        run_batches(decoder, calibration, progress, "ranking channels of the hidden states")
    return total


def _norms(decoder: Decoder) -> Iterator[tuple[str, Norm]]:
    """Every norm of the hidden states by its name; those of queries and keys are of heads."""
    for name, module in decoder.named_modules():
        if isinstance(module, Norm) and name.rsplit(".", 1)[-1] not in ("q_norm", "k_norm"):
            yield name, module


def _magnitude(decoder: Decoder) -> Tensor:
    total = decoder.embed.weight.double().square().sum(0)
    for layer in decoder.layers:
        for name, linear in layer.named_children():
            if isinstance(linear, nn.Linear):
                total = total + linear.weight.double().square().sum(1 if name in ROWS else 0)
    return total


def narrowed(decoder: Decoder, kept: Tensor) -> Decoder:
    """A decoder of the channels in `kept` (sorted indices) alone; weights are copies."""
    old = decoder.spec
    growth = old.hidden / len(kept)
    with torch.device("meta"):
        made = Decoder(old.model_copy(update={"hidden": len(kept), "norm_eps": old.norm_eps * growth}))
    norms = {f"{name}.weight" for name, _ in _norms(decoder)}
    state = {}
    for name, value in decoder.state_dict().items():
        path, _, kind = name.rpartition(".")
        leaf = path.rsplit(".", 1)[-1]
        if name in norms:
            value = value[kept] * sqrt(growth)
        elif leaf in ROWS:
            value = value[kept]
        elif leaf in COLUMNS and kind == "weight":
            value = value[:, kept]
        state[name] = value.contiguous()
    made.load_state_dict(state, assign=True)
    made.tie()
    return made.eval().requires_grad_(False)


def mask_hidden(decoder: Decoder, kept: Tensor) -> None:
    """Set the channels that are not in `kept` to zero, in place, without changing a shape."""
    held = torch.zeros(decoder.spec.hidden)
    held[kept] = 1.0
    decoder.embed.weight = nn.Parameter(decoder.embed.weight * held, requires_grad=False)
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        for linear in (layer.o, layer.down):
            linear.weight = nn.Parameter(linear.weight * held[:, None], requires_grad=False)
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias * held, requires_grad=False)
