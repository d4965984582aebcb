"""Students: a decoder of some of the teacher's layers, and linear layers that see their weight as its low-bit codes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openclaw_opt.artifacts import Checkpoint
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.hf import load_hf
from openclaw_opt.models.linear import replace_layer
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.models.weights import decoder_from_checkpoint
from openclaw_opt.numerics.fake_quant import fake_quantized


def teacher_of(checkpoint: Checkpoint) -> nn.Module:
    """The untouched checkpoint in float32: a Decoder, or what `models.hf` wraps. Raises what loading raises."""
    if isinstance(spec_from_config(checkpoint.config), DecoderSpec):
        return decoder_from_checkpoint(checkpoint, torch.float32)
    return load_hf(checkpoint)[0]


def student_of(teacher: Decoder, layers: Sequence[int]) -> Decoder:
    """A decoder of the teacher's `layers`, in that order, with its embedding, norms and head. Weights are copies."""
    sizes = tuple(teacher.spec.layers[i] for i in layers)
    with torch.device("meta"):
        made = Decoder(teacher.spec.model_copy(update={"layers": sizes}))
    theirs = teacher.state_dict()
    state = {name: value.clone() for name, value in theirs.items() if not name.startswith("layers.")}
    for new, old in enumerate(layers):
        inner = {name.split(".", 2)[2]: value for name, value in theirs.items() if name.startswith(f"layers.{old}.")}
        state |= {f"layers.{new}.{name}": value.clone() for name, value in inner.items()}
    made.load_state_dict(state, assign=True)
    made.tie()
    return made.eval().requires_grad_(False)


class FakeQuantLinear(nn.Linear):
    """A linear whose weight stays float and is rounded to its grid each time it is used."""

    kind: str
    block: int | None

    @classmethod
    def of(cls, linear: nn.Linear, kind: str, block: int | None) -> FakeQuantLinear:
        """One that shares the parameters of `linear`."""
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device=torch.device("meta"))
        made.weight, made.bias = linear.weight, linear.bias
        made.kind, made.block = kind, block
        return made

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, fake_quantized(self.weight, self.kind, self.block), self.bias)


def put_fake_quantizers(module: nn.Module, kind: str, block: int | None, keep: Sequence[str]) -> list[str]:
    """Every linear layer but those that match `keep` becomes a FakeQuantLinear; their names.

    Raises:
        ValueError: `block` does not divide the inputs of a layer; the message begins with its name.
    """
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    chosen = {name: layer for name, layer in found.items() if not any(fnmatchcase(name, one) for one in keep)}
    for name, layer in chosen.items():
        if block is not None and layer.in_features % block:
            raise ValueError(f"{name}: blocks of {block} do not divide its {layer.in_features} inputs")
    for name, layer in chosen.items():
        replace_layer(module, name, FakeQuantLinear.of(layer, kind, block))
    return list(chosen)
