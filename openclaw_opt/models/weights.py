"""A decoder checkpoint's tensors into the canonical decoder, one module at a time.

q/k/v and gate/up are merged, transposed weights (GPT-2) turned, norm offsets (Gemma's 1 + w) folded in float32. Every
tensor of the checkpoint is used, or known to be none of the weights, or an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from openclaw_opt.artifacts import Checkpoint
from openclaw_opt.checkpoint import Checkpoint as Readable
from openclaw_opt.checkpoint import expect, readable
from openclaw_opt.errors import RecipeError
from openclaw_opt.models.config import DecoderFamily
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.families import decoder_family, spec_from_config
from openclaw_opt.models.spec import DecoderSpec

NO_WEIGHTS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")
"""Buffers that older checkpoints carry; the decoder computes them itself."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the checkpoint and the shape it must have, in checkpoint orientation."""

    name: str
    shape: tuple[int, ...]


class CheckpointDecoder:
    """A checkpoint's tensors as those of the canonical decoder, each made when it is asked for. `empty` has no numbers."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        """Raises what `decoder_from_checkpoint` raises."""
        spec = spec_from_config(checkpoint.config)
        if not isinstance(spec, DecoderSpec):
            raise RecipeError(f"{spec.architecture} is no decoder", where=str(checkpoint.folder))
        self.spec, self.dtype = spec, dtype
        self._source, self._family = readable(checkpoint), decoder_family(spec)
        with torch.device("meta"):
            self.empty = Decoder(spec).to(dtype)
        wanted = _wanted(self.empty, self._family, frozenset(self._source.tensors))
        self._pieces = {name: tuple(pieces) for name, pieces in wanted}
        shapes = {piece.name: piece.shape for pieces in self._pieces.values() for piece in pieces}
        spare = expect(self._source, shapes)
        _refuse_spare(self._source, spec, spare, self._pieces["embed.weight"][0].name)

    @property
    def names(self) -> list[str]:
        """Of the decoder's tensors; a tied head is not among them."""
        return list(self._pieces)

    def read(self, name: str) -> Tensor:
        """One of the decoder's tensors, in its type."""
        return _assemble(self._source, self._family, name, self._pieces[name], self.dtype)


def decoder_from_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype) -> Decoder:
    """The checkpoint's decoder in `dtype`.

    Raises:
        RecipeError: the architecture is not a supported decoder, or a tensor is missing, unknown or wrongly shaped.
    """
    source = CheckpointDecoder(checkpoint, dtype)
    decoder = source.empty
    decoder.load_state_dict({name: source.read(name) for name in source.names}, strict=False, assign=True)
    decoder.tie()
    return decoder.eval().requires_grad_(False)


def _wanted(decoder: Decoder, family: DecoderFamily, names: frozenset[str]) -> Iterator[tuple[str, list[Piece]]]:
    prefix = family.prefix if any(name.startswith(family.prefix) for name in names) else ""
    for parameter, value in decoder.named_parameters():
        module, kind = parameter.rsplit(".", 1)
        layer = re.match(r"layers\.(\d+)\.", module)
        if module == "head":
            yield parameter, [Piece("lm_head.weight", tuple(value.shape))]
            continue
        template = family.tensors[re.sub(r"^layers\.\d+", "layers.{i}", module)]
        modules = (template,) if isinstance(template, str) else template
        paths = [prefix + path.format(i=layer.group(1) if layer else "") for path in modules]
        sizes = _outputs(decoder, module, value, len(paths))
        yield (
            parameter,
            [
                Piece(f"{path}.{kind}", _stored(family, module, (size, *value.shape[1:])))
                for path, size in zip(paths, sizes, strict=True)
            ],
        )


def _outputs(decoder: Decoder, module: str, value: Tensor, parts: int) -> list[int]:
    """Rows of each part of a merged weight."""
    if parts == 1:
        return [value.shape[0]]
    sizes = decoder.spec.layers[int(module.split(".")[1])]
    if module.endswith(".gate_up"):
        return [sizes.ffn, sizes.ffn]
    return [heads * decoder.spec.head_dim for heads in (sizes.q_heads, sizes.kv_heads, sizes.kv_heads)]


def _is_linear(module: str) -> bool:
    return module.rsplit(".", 1)[-1] in ("qkv", "o", "gate_up", "up", "down")


def _stored(family: DecoderFamily, module: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if family.transposed and len(shape) == 2 and _is_linear(module) else shape


def _refuse_spare(source: Readable, spec: DecoderSpec, spare: frozenset[str], embedding: str) -> None:
    """Every tensor beyond those wanted must be a known buffer, or a tied head that equals the embedding."""
    unknown = {name for name in spare if not NO_WEIGHTS.search(name)}
    head = "lm_head.weight"
    if spec.tied and head in unknown and torch.equal(source.read_tensor(head), source.read_tensor(embedding)):
        unknown.remove(head)
    mistakes = [
        RecipeError(
            f"tensor {name!r} has no place in a {spec.family} model",
            where=str(source.folder),
            fix="config.json and the weights must be of one model",
        )
        for name in sorted(unknown)
    ]
    if mistakes:
        raise RecipeError(f"{len(mistakes)} tensors have no place", where=str(source.folder), mistakes=mistakes)


def _assemble(
    source: Readable, family: DecoderFamily, name: str, pieces: tuple[Piece, ...], dtype: torch.dtype
) -> Tensor:
    module, kind = name.rsplit(".", 1)
    parts = [source.read_tensor(piece.name) for piece in pieces]
    if family.transposed and kind == "weight" and _is_linear(module):
        parts = [part.T for part in parts]
    if "norm" in module.rsplit(".", 1)[-1] and kind == "weight" and family.norm_offset:
        parts = [part.float() + family.norm_offset for part in parts]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype).contiguous()
