"""A decoder quantized stage by stage: convert a decoder layer, fold it, put it on disk, go on.

Two sets of hidden states lie on disk (`models.stages`): those of the float decoder, which ranges are found on and errors metered,
and, where weights are rounded with what their inputs are, those that the layers rounded so far leave. In memory is one decoder
layer two times, what its algorithm adds up of its inputs, and one batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from openclaw_opt.artifacts import Model
from openclaw_opt.models.calibrate import Batch, Calibration, Progress
from openclaw_opt.models.converting import Feed, Piece, convert, part
from openclaw_opt.models.folding import compare, fold_stage, inputs_unquantized
from openclaw_opt.models.linear import QuantLayer, QuantLinear, quantized_layers, replace_layer
from openclaw_opt.models.schemes import Job
from openclaw_opt.models.spec import ModelFacts
from openclaw_opt.models.stages import Flow, StagedDecoder, in_stage, stages_until
from openclaw_opt.models.store import write_decoder
from openclaw_opt.models.tensor_file import raw


def streamed(
    decoder: StagedDecoder,
    names: Sequence[str],
    job: Job,
    calibration: Calibration | None,
    sparse: Collection[str],
    scratch: Path,
    progress: Progress,
) -> Iterator[tuple[str, Piece]]:
    """Every stage up to the last that has layers in `names`, with those layers converted. Raises what `convert` raises.

    Args:
        scratch: an existing folder for hidden states.
    """
    floats = None if calibration is None else Flow(decoder, calibration, scratch, "float")
    changed = Flow(decoder, calibration, scratch, "changed") if calibration and job.scheme.uses_inputs else None
    flows = [flow for flow in (floats, changed) if flow is not None]
    stages = list(stages_until(decoder, names))
    for i, stage in enumerate(stages):
        own, last = in_stage(names, stage), i == len(stages) - 1
        told = _titled(part(progress, i / len(stages), (i + 1) / len(stages)), f"{stage}: ")
        if not own:
            told(0.0, "running the calibration data")
            module = decoder.open(stage)
            for flow in flows:
                flow.advance(module)
            yield stage, Piece({}, {}, (), None)
            continue
        before = None if floats is None else floats.before(stage)
        feed = Feed(
            before,
            before if changed is None else changed.before(stage),
            None if last or floats is None else floats.keep,
            None if last or changed is None else changed.advance,
        )
        yield stage, convert(partial(decoder.open, stage), own, job, feed, sparse, told)


def _titled(progress: Progress, title: str) -> Progress:
    return lambda done, text: progress(done, title + text)


class Rewriter:
    """Writes the decoder anew from stages as they are done, each folded, proven and put on disk before the next."""

    def __init__(self, decoder: StagedDecoder, scratch: Path, probe: Batch | None) -> None:
        """`probe`: inputs to prove folding on; None where no layer takes factors on its input."""
        self._decoder, self._scratch, self._probe = decoder, scratch, probe
        self._before = self._after = None if probe is None else decoder.enter(probe)
        self._entries: dict[str, Tensor] = {}
        self.folded: list[str] = []
        """Layers that lost their input factors."""

    def put(self, stage: str, layers: Mapping[str, QuantLayer]) -> None:
        """The next stage, with `layers` in the place of its float ones. Raises VerificationError where folding changes it."""
        if not layers and self._probe is None:
            return
        module = self._decoder.open(stage)
        for name, layer in layers.items():
            replace_layer(module, name, layer)
        module.requires_grad_(False)
        folded = [] if self._probe is None else self._fold(stage, module)
        self.folded += folded
        for name, layer in layers.items():
            self._place(name, layer)
        if layers or folded:
            for name, tensor in module.state_dict().items():
                raw(tensor).numpy().tofile(self._scratch / name)
                self._entries[name] = tensor.to("meta")

    @torch.no_grad()
    def _fold(self, stage: str, module: nn.Module) -> list[str]:
        assert self._probe is not None
        place = None if stage == "head" else int(stage.rpartition(".")[2])
        context = () if place is None else self._decoder.contexts(self._probe)[place]
        with inputs_unquantized(module):
            self._before = module(self._before, *context)
            folded = fold_stage(module)
            self._after = module(self._after, *context)
        if folded or self.folded:
            compare([(stage, self._before)], [(stage, self._after)])
        return folded

    def _place(self, name: str, layer: QuantLayer) -> None:
        """Nothing but the layer's shape is kept in memory."""
        known = self._decoder.skeleton.get_submodule(name)
        assert isinstance(known, nn.Linear)
        replace_layer(self._decoder.skeleton, name, QuantLinear.like(known, layer.quant))

    def save(self, facts: ModelFacts, folder: Path, assets_from: Path) -> Model:
        """Write the model: finished stages, and what they did not touch as it was."""
        skeleton, decoder = self._decoder.skeleton, self._decoder
        names = set(skeleton.state_dict())
        if decoder.spec.tied and type(skeleton.head) is nn.Linear:
            names.remove("head.weight")
        entries = {name: self._entries[name] if name in self._entries else decoder.stored[name] for name in names}

        def read(name: str) -> Iterator[Tensor]:
            if name not in self._entries:
                return decoder.pieces(name)
            entry = entries[name]
            flat = torch.from_numpy(np.fromfile(self._scratch / name, np.uint8))
            return iter([flat.view(entry.dtype).reshape(entry.shape)])

        changes = {"quant": quantized_layers(skeleton)}
        return write_decoder(facts.model_copy(update=changes), entries, read, folder, assets_from)
