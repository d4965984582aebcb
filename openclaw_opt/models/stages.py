"""A decoder in a folder, one decoder layer in memory at a time.

A stage is a decoder layer, or the last norm with the head, under the names it has in the whole decoder; it maps hidden states to
hidden states (the head: to logits before the cap). The hidden states before a stage lie on disk, and one batch of them is read at
a time. Weights are mapped from the model's file when a stage is opened and unmapped when it is dropped: mapped pages that were
read count as resident memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from openclaw_opt.artifacts import Model
from openclaw_opt.models.calibrate import Batch, Calibration
from openclaw_opt.models.decoder import Decoder, Layer, Norm
from openclaw_opt.models.linear import QuantLayer
from openclaw_opt.models.spec import DecoderSpec, LayerQuant
from openclaw_opt.models.store import WEIGHTS, empty_decoder, empty_layer, refuse_damage
from openclaw_opt.models.tensor_file import raw

PIECE = 1 << 24
"""Elements that are copied at once."""


class Stage(nn.Module):
    """A part of a decoder, its layers under the names they have there."""

    def __init__(self, name: str, spec: DecoderSpec) -> None:
        super().__init__()
        self.name, self.spec = name, spec


class LayerStage(Stage):
    """hidden [batch, length, hidden], rotation, mask → what the decoder layer gives."""

    def __init__(self, name: str, layer: Layer) -> None:
        super().__init__(name, layer.spec)
        self.layers = nn.ModuleDict({name.rpartition(".")[2]: layer})

    @property
    def layer(self) -> Layer:
        layer = next(iter(self.layers.values()))
        assert isinstance(layer, Layer)
        return layer

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        y: Tensor = self.layer(x, *context)[0]
        return y


class HeadStage(Stage):
    """hidden [batch, length, hidden] → [batch, length, vocab], before the soft-cap; what else comes in is not looked at."""

    def __init__(self, spec: DecoderSpec, norm: Norm, head: nn.Module) -> None:
        super().__init__("head", spec)
        self.norm_out, self.head = norm, head

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        y: Tensor = self.head(self.norm_out(x))
        return y


class StagedDecoder:
    """A decoder's Model folder, to be gone through stage by stage."""

    def __init__(self, model: Model, spec: DecoderSpec, quant: dict[str, LayerQuant]) -> None:
        """Raises RecipeError where the folder's tensors are not those of the decoder."""
        self.spec, self.file = spec, model.folder / WEIGHTS
        self.skeleton = empty_decoder(spec, quant)
        """On the meta device: shapes and names."""
        with safe_open(self.file, framework="pt") as opened:
            self.stored = {name: opened.get_tensor(name).to("meta") for name in opened.keys()}  # noqa: SIM118 - no mapping
            """Type and shape of each tensor in the file."""
        self.tied = spec.tied and type(self.skeleton.head) is nn.Linear
        wanted = set(self.skeleton.state_dict()) - ({"head.weight"} if self.tied else set())
        refuse_damage(sorted(wanted - set(self.stored)), sorted(set(self.stored) - wanted), self.file)

    def _bare(self) -> Decoder:
        """Embedding, last norm and head alone, on the meta device."""
        return empty_decoder(self.spec.model_copy(update={"layers": ()}), {})

    @property
    def names(self) -> list[str]:
        """Of all stages, in the order of computation."""
        return [*(f"layers.{i}" for i in range(len(self.spec.layers))), "head"]

    def read(self, name: str) -> Tensor:
        """A tensor, mapped from the file."""
        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor("embed.weight" if self.tied and name == "head.weight" else name)
            return tensor

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor of the file in pieces along its first axis, none mapped beside another."""
        known = self.stored[name]
        rows = max(1, PIECE // max(1, known[:1].numel())) if known.ndim else 1
        for start in range(0, len(known) if known.ndim else 1, rows):
            with safe_open(self.file, framework="pt") as opened:
                yield opened.get_slice(name)[start : start + rows] if known.ndim else opened.get_tensor(name)

    def open(self, name: str) -> Stage:
        """The stage's module, its weights mapped anew, in eval mode, without gradients."""
        again = self._bare()
        stage: Stage
        if name == "head":
            stage = HeadStage(self.spec, again.norm_out, self._empty("head", again.head))
        else:
            with torch.device("meta"):
                layer = Layer(self.spec, self.spec.layers[int(name.rpartition(".")[2])])
            for leaf, linear in list(layer.named_children()):
                setattr(layer, leaf, self._empty(f"{name}.{leaf}", linear))
            stage = LayerStage(name, layer)
        stage.load_state_dict({tensor: self.read(tensor) for tensor in stage.state_dict()}, assign=True)
        return stage.eval().requires_grad_(False)

    def _empty(self, name: str, layer: nn.Module) -> nn.Module:
        known = self.skeleton.get_submodule(name)
        if not isinstance(known, QuantLayer):
            return layer
        return empty_layer(layer, known.quant)

    def enter(self, batch: Batch) -> Tensor:
        """The hidden states before the first layer; of the embedding only the rows that the batch names are read."""
        decoder = self._bare()
        state = {name: self.read(name) for name in ("embed.weight", "positions.weight") if name in self.stored}
        decoder.load_state_dict(state, strict=False, assign=True)
        return decoder.entered(*batch)[0].detach()

    def contexts(self, batch: Batch) -> list[Any]:
        """What each layer needs besides the hidden states."""
        return list(self.skeleton.contexts(*batch[1:]))


def let_go(*modules: nn.Module) -> None:
    """Free the weights of modules that are done with. They are in reference cycles, which may lie about until the next ones are open."""
    for value in (value for module in modules for value in (*module.parameters(), *module.buffers())):
        value.data = value.data.new_empty(0)


class States:
    """Hidden states of every batch, a file each."""

    def __init__(self, folder: Path, word: str) -> None:
        self._folder, self._word = folder, word
        self._shapes: dict[int, tuple[torch.dtype, torch.Size]] = {}

    def put(self, at: int, x: Tensor) -> None:
        self._shapes[at] = (x.dtype, x.shape)
        raw(x).numpy().tofile(self._file(at))

    def get(self, at: int) -> Tensor:
        dtype, shape = self._shapes[at]
        return torch.from_numpy(np.fromfile(self._file(at), np.uint8)).view(dtype).reshape(shape)

    def _file(self, at: int) -> Path:
        return self._folder / f"{self._word}.{at}"


class StageBatches(Sequence[Batch]):
    """Inputs of one stage for every batch of calibration data, each made when it is asked for."""

    def __init__(self, states: States, batches: Sequence[Batch], context: Callable[[Batch], tuple[Any, ...]]) -> None:
        self._states, self._batches, self._context = states, batches, context

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, at: Any) -> Any:
        if not 0 <= at < len(self):
            raise IndexError(at)
        return (self._states.get(at), *self._context(self._batches[at]))


class Flow:
    """Hidden states that go through a decoder, stage by stage."""

    def __init__(self, decoder: StagedDecoder, calibration: Calibration, folder: Path, word: str) -> None:
        self._decoder, self._calibration = decoder, calibration
        self._states = States(folder, word)
        for at, batch in enumerate(calibration.batches):
            self._states.put(at, decoder.enter(batch))

    def before(self, name: str) -> Calibration:
        """The calibration data as inputs of the stage `name`, which is the next one."""
        place = None if name == "head" else int(name.rpartition(".")[2])

        def context(batch: Batch) -> tuple[Any, ...]:
            return () if place is None else tuple(self._decoder.contexts(batch)[place])

        known = self._calibration
        batches = StageBatches(self._states, known.batches, context)
        return Calibration(batches, known.sequences, known.tokens, known.fingerprint)

    def keep(self, at: int, y: Tensor) -> None:
        """What the stage gave for a batch whose inputs are no longer needed."""
        self._states.put(at, y)

    @torch.no_grad()
    def advance(self, stage: Stage) -> None:
        """Run the states through the stage."""
        for at, inputs in enumerate(self.before(stage.name).batches):
            self.keep(at, stage(*inputs))


def in_stage(names: Collection[str], stage: str) -> list[str]:
    """Those of `names` that are linears of the stage."""
    return [name for name in names if name == stage or name.startswith(f"{stage}.")]


def stages_until(decoder: StagedDecoder, names: Collection[str]) -> Iterator[str]:
    """Stages up to the last that has one of `names`."""
    last = max(i for i, stage in enumerate(decoder.names) if in_stage(names, stage))
    yield from decoder.names[: last + 1]
