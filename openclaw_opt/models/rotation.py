"""A decoder with RMS norms, rotated: the same function, its hidden states in another basis where no channel sticks out.

With Q orthogonal, RMS(h·Q) = RMS(h), so a norm without weights commutes with Q. So

    norms before linears    their weights go into the columns of what reads them (qkv, gate_up or up, head) and become 1
    embed, positions        E·Q
    qkv, gate_up, up, head  W·Q                 they read h·Q
    o, down                 Qᵀ·W and Qᵀ·b       they write into h·Q
    values of each head     V-rows and the columns of o that read them turn by a Q of the head's size

Nothing is added to the graph. Done in float64, stored in the model's type. A head tied to the embedding is not tied any more:
it takes the last norm's weights, the embedding does not.

Source: Ashkboos et al., "QuaRot", https://arxiv.org/abs/2404.00456 (its fused rotations; none is done at run time).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openclaw_opt.models.decoder import Decoder, Layer, Norm
from openclaw_opt.numerics.hadamard import random_hadamard


@torch.no_grad()
def rotate(decoder: Decoder, seed: int, *, heads: bool = True) -> int:
    """Rotate in place. Returns how many matrices were changed.

    Args:
        heads: turn the values of each head too.
    """
    turn = random_hadamard(decoder.spec.hidden, seed)
    inner = random_hadamard(decoder.spec.head_dim, seed + 1) if heads else None
    if decoder.head.weight is decoder.embed.weight:
        decoder.head.weight = nn.Parameter(decoder.head.weight.clone(), requires_grad=False)
    decoder.spec = decoder.spec.model_copy(update={"tied": False})
    _reads(decoder.head, decoder.norm_out, turn)
    count = 2
    for table in (decoder.embed, decoder.positions):
        if table is not None:
            _set(table, table.weight.double() @ turn)
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        _reads(layer.qkv, layer.norm_in, turn)
        _reads(layer.get_submodule("gate_up" if layer.spec.gated else "up"), layer.norm_mlp, turn)
        for linear in (layer.o, layer.down):
            _writes(linear, turn)
        if inner is not None:
            _turn_values(layer, inner)
        count += 4
    return count


def _reads(linear: nn.Module, norm: Norm, turn: Tensor) -> None:
    assert isinstance(linear, nn.Linear)
    _set(linear, (linear.weight.double() * norm.weight.double()) @ turn)
    norm.weight = nn.Parameter(torch.ones_like(norm.weight), requires_grad=False)


def _writes(linear: nn.Linear, turn: Tensor) -> None:
    _set(linear, turn.T @ linear.weight.double())
    if linear.bias is not None:
        _set_bias(linear, turn.T @ linear.bias.double())


def _turn_values(layer: Layer, inner: Tensor) -> None:
    """v·Q for every value head, and Qᵀ before o: attention's weights sum over tokens, not over channels."""
    dim, sizes = layer.spec.head_dim, layer.sizes
    start = (sizes.q_heads + sizes.kv_heads) * dim
    weight = layer.qkv.weight.double()
    values = weight[start:].reshape(sizes.kv_heads, dim, -1)
    _set(layer.qkv, torch.cat([weight[:start], torch.einsum("hdk,de->hek", values, inner).flatten(0, 1)]))
    if layer.qkv.bias is not None:
        bias = layer.qkv.bias.double()
        _set_bias(layer.qkv, torch.cat([bias[:start], (bias[start:].reshape(-1, dim) @ inner).flatten()]))
    reading = layer.o.weight.double().reshape(-1, sizes.q_heads, dim)
    _set(layer.o, (reading @ inner).flatten(1))


def _set(module: nn.Linear | nn.Embedding, value: Tensor) -> None:
    module.weight = nn.Parameter(value.to(module.weight.dtype).contiguous(), requires_grad=False)


def _set_bias(linear: nn.Linear, value: Tensor) -> None:
    linear.bias = nn.Parameter(value.to(linear.bias.dtype), requires_grad=False)
