"""A layer of a decoder or of a BERT-family encoder as pruning sees it: the linears that make heads and channels, and those that take them back.

Layers of encoders are Hugging Face's own. Their sizes stand in `HfSpec.layers`, since a config.json has one width and one head
count for all of them: `fit` makes a module of these sizes, into which the weights are loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor, nn

from openclaw_opt.models.decoder import Decoder, Layer
from openclaw_opt.models.linear import replace_layer
from openclaw_opt.models.sizes import ENCODER_DOWN, ENCODER_HEADS, ENCODER_LAYERS, ENCODER_O, ENCODER_WIDE
from openclaw_opt.models.spec import HfSpec, LayerSpec, Sized

if TYPE_CHECKING:
    from openclaw_opt.models.hf import Encoder

Prunable = Union[Decoder, "Encoder"]
"""What has blocks; an Encoder's spec must have `layers`."""


@dataclass(frozen=True)
class Block:
    """One layer: names of its linears, inside `module`, and its sizes."""

    name: str
    module: nn.Module
    sizes: LayerSpec
    head_dim: int
    heads: tuple[str, ...]
    """Those whose outputs are heads: one for queries, keys and values together, or one each, in that order."""
    o: str
    """The one that takes heads back."""
    wide: str
    """The one whose outputs are FFN channels."""
    down: str
    """The one that takes channels back."""
    branches: int = 1
    """How often `wide` has each channel: 2 with a gate."""

    def linear(self, part: str) -> nn.Linear:
        found = self.module.get_submodule(part)
        assert isinstance(found, nn.Linear), "quantized layers are refused before"
        return found

    def rows(self, q: Tensor, kv: Tensor, ffn: Tensor) -> Mapping[str, Tensor]:
        """Linear → rows of its weight that stay, for heads `q` and `kv` and channels `ffn` that stay (sorted indices)."""
        sizes = self.sizes
        wide = torch.cat([ffn + i * sizes.ffn for i in range(self.branches)])
        if len(self.heads) == 1:
            joined = torch.cat((q, sizes.q_heads + kv, sizes.q_heads + sizes.kv_heads + kv))
            return {self.heads[0]: self.elements(joined), self.wide: wide}
        of_heads = zip(self.heads, (q, kv, kv), strict=True)
        return {**{name: self.elements(heads) for name, heads in of_heads}, self.wide: wide}

    def columns(self, q: Tensor, ffn: Tensor) -> Mapping[str, Tensor]:
        """Linear → columns of its weight that stay."""
        return {self.o: self.elements(q), self.down: ffn}

    def elements(self, heads: Tensor) -> Tensor:
        """Indices of every element of `heads`, head-major."""
        return (heads[:, None] * self.head_dim + torch.arange(self.head_dim)).flatten()


def stack_of(model: Prunable) -> str:
    """Name of the list of layers."""
    return "layers" if isinstance(model, Decoder) else ENCODER_LAYERS


def blocks_of(model: Prunable) -> list[Block]:
    """Every layer, in order."""
    if isinstance(model, Decoder):
        return [_of_decoder(f"layers.{i}", layer) for i, layer in enumerate(model.layers)]  # type: ignore[arg-type]
    spec, names = model.spec, layer_names(model)
    assert spec.head_dim is not None
    return [
        Block(name, model.get_submodule(name), sizes, spec.head_dim, ENCODER_HEADS, ENCODER_O, ENCODER_WIDE, ENCODER_DOWN)
        for name, sizes in zip(names, spec.layers, strict=True)
    ]  # fmt: skip


def _of_decoder(name: str, layer: Layer) -> Block:
    gated = layer.spec.gated
    wide, branches = ("gate_up", 2) if gated else ("up", 1)
    return Block(name, layer, layer.sizes, layer.spec.head_dim, ("qkv",), "o", wide, "down", branches)


def layer_names(model: Prunable) -> list[str]:
    """Names of the layers, in order."""
    return [f"{stack_of(model)}.{i}" for i in range(len(model.spec.layers))]


def stream(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states [batch, length, hidden] of what a layer gives: a decoder's comes with its keys and values."""
    return output if isinstance(output, Tensor) else output[0]


def empty_like(model: Prunable, spec: Sized) -> Prunable:
    """A module of the sizes in `spec`, of which every weight is still to be loaded."""
    if not isinstance(spec, HfSpec):
        with torch.device("meta"):
            return Decoder(spec)
    assert not isinstance(model, Decoder)
    made = copy.deepcopy(model)
    made.spec = spec
    fit(made, spec)
    return made


def fit(encoder: nn.Module, spec: HfSpec) -> None:
    """Give a wrapped encoder the layers of `spec`, in place; linears of another size become empty ones."""
    if not spec.layers or spec.head_dim is None or spec.hidden is None:
        return  # a model folder from before sizes were stated
    layers = encoder.get_submodule(ENCODER_LAYERS)
    assert isinstance(layers, nn.ModuleList)
    del layers[len(spec.layers) :]
    for layer, sizes in zip(layers, spec.layers, strict=True):
        width = sizes.q_heads * spec.head_dim
        attention: nn.Module = layer.get_submodule(ENCODER_HEADS[0].rpartition(".")[0])
        attention.num_attention_heads, attention.all_head_size = sizes.q_heads, width  # type: ignore[assignment]
        shapes = dict.fromkeys(ENCODER_HEADS, (width, spec.hidden))
        shapes |= {ENCODER_O: (spec.hidden, width), ENCODER_WIDE: (sizes.ffn, spec.hidden)}
        shapes |= {ENCODER_DOWN: (spec.hidden, sizes.ffn)}
        for name, (n, k) in shapes.items():
            old = layer.get_submodule(name)
            assert isinstance(old, nn.Linear)
            if old.weight.shape != (n, k):
                replace_layer(layer, name, _empty(k, n, bias=old.bias is not None))


def _empty(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    made: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    return made


class Passed(nn.Module):
    """In the place of an encoder's layer that is taken out: hidden states go through as they are."""

    def forward(self, hidden_states: Tensor, *rest: object, **more: object) -> Tensor:
        return hidden_states
