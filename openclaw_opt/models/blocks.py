"""What pruning sees of a layer, whoever wrote it: which rows and columns of which linears a channel or a head is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openclaw_opt.models.calibrate import Batch, Calibration, Progress, run_batches, watched
from openclaw_opt.models.decoder import Decoder, Layer
from openclaw_opt.models.hf import Encoder
from openclaw_opt.models.spec import LayerSpec


@dataclass(frozen=True)
class Rows:
    """Rows of the linear called `linear` within the layer, from `start` on."""

    linear: str
    start: int = 0


@dataclass(frozen=True)
class Block:
    """One layer: attention of heads of `head_dim`, then an MLP of `sizes.ffn` channels. Linears by their names within it."""

    name: str
    """In the whole model."""
    sizes: LayerSpec
    head_dim: int
    ffn: tuple[Rows, ...]
    """What computes the channels; two of them where a gate does."""
    down: str
    q: Rows
    k: Rows
    v: Rows
    o: str

    def linear(self, module: nn.Module, name: str) -> nn.Linear:
        """One of the layer's linears in `module`, the whole model."""
        found = module.get_submodule(f"{self.name}.{name}")
        assert isinstance(found, nn.Linear)
        return found


def blocks_of(module: nn.Module) -> list[Block]:
    """Of a Decoder or an Encoder, in the order of computation."""
    if isinstance(module, Decoder):
        return [_of_decoder(i, layer) for i, layer in enumerate(module.layers) if isinstance(layer, Layer)]
    assert isinstance(module, Encoder)
    return [_of_bert(i, layer) for i, layer in enumerate(module.layers)]


def _of_decoder(i: int, layer: Layer) -> Block:
    sizes, dim = layer.sizes, layer.spec.head_dim
    keys = sizes.q_heads * dim
    ffn = (Rows("gate_up"), Rows("gate_up", sizes.ffn)) if layer.spec.gated else (Rows("up"),)
    values = keys + sizes.kv_heads * dim
    return Block(f"layers.{i}", sizes, dim, ffn, "down", Rows("qkv"), Rows("qkv", keys), Rows("qkv", values), "o")


def _of_bert(i: int, layer: nn.Module) -> Block:
    attention = layer.get_submodule("attention.self")
    dim, query, down = attention.attention_head_size, attention.query, layer.get_submodule("output.dense")
    assert isinstance(dim, int)
    assert isinstance(query, nn.Linear)
    assert isinstance(down, nn.Linear)
    heads = query.out_features // dim
    return Block(
        f"model.encoder.layer.{i}",
        LayerSpec(q_heads=heads, kv_heads=heads, ffn=down.in_features),
        dim,
        (Rows("intermediate.dense"),),
        "output.dense",
        Rows("attention.self.query"),
        Rows("attention.self.key"),
        Rows("attention.self.value"),
        "attention.output.dense",
    )


def watched_rows(
    module: nn.Module,
    names: Sequence[str],
    calibration: Calibration,
    seen: Callable[[str, Tensor, Tensor], None],
    progress: Progress,
    text: str,
) -> None:
    """Run the calibration data; `seen` gets a module's name and the float64 vectors [tokens, channels] that go in and come out.

    Padding is left out: an encoder's batches have some.
    """
    real: list[Tensor | None] = [None]

    def rows(x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        return (flat if real[0] is None else flat[real[0]]).double()

    def call(name: str, x: Tensor, y: Tensor | tuple[Tensor, ...]) -> None:
        seen(name, rows(x), rows(y[0] if isinstance(y, tuple) else y))

    def next_batch(hooked: nn.Module, inputs: Batch) -> None:
        real[0] = inputs[1].flatten().bool() if isinstance(module, Encoder) else None

    handle = module.register_forward_pre_hook(next_batch)
    try:
        with watched(module, names, call):  # type: ignore[arg-type]
            run_batches(module, calibration, progress, text)
    finally:
        handle.remove()


def elements(heads: Tensor, head_dim: int) -> Tensor:
    """Indices of every element of `heads`, head-major."""
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()
