"""How far a model's outputs move when one layer alone is quantized, and when a whole mix is.

The loss of an item is, by task:

    decoder   KL(float ‖ changed) of a position's distribution, in nats; the mean over positions
    vision    the same of an image's classes
    encoder   1 − cos(float embedding, changed embedding) of a text

A decoder streams: the float hidden states of all batches stand before one layer, and only the layers from there on run with
each of that layer's linears in each of its candidates. Float outputs are made again from the last hidden states as they are
needed, so that no distribution over a vocabulary is kept. Other models run whole.

Each number is written down as it is found, under the digest of the layer's numbers and of all that it was found with: what was
interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openclaw_opt.errors import RecipeError
from openclaw_opt.models.calibrate import Batch, Calibration, Progress
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.hf import Classifier, Encoder
from openclaw_opt.models.linear import QuantLayer, replace_layer

VERSION = 1
"""Of what a number means; a change makes every journal stale."""
WHOLE = re.compile(r'\{"[0-9a-f]{64}": [-+.0-9a-zA-Z]+\}')
Candidates = Mapping[str, Mapping[str, QuantLayer]]
"""Layer → candidate → the layer in it."""
Losses = dict[str, dict[str, float]]


class Journal:
    """Losses found so far, a line each, in a file that only grows."""

    def __init__(self, file: Path, context: str) -> None:
        self._file, self._context = file, context
        self._known: dict[str, float] = {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
            if WHOLE.fullmatch(line):  # what a killed process left unfinished is found again
                self._known.update(json.loads(line))

    def key(self, name: str, layer: QuantLayer) -> str:
        known = hashlib.sha256(f"{VERSION}\0{self._context}\0{name}\0{layer.quant!r}".encode())
        for part, value in layer.state_dict().items():
            known.update(part.encode())
            known.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
        return known.hexdigest()

    def find(self, key: str) -> float | None:
        return self._known.get(key)

    def add(self, key: str, loss: float) -> None:
        self._known[key] = loss
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({key: loss}) + "\n")  # behind a half line too


@torch.no_grad()
def sensitivities(
    module: nn.Module, candidates: Candidates, calibration: Calibration, journal: Journal, progress: Progress
) -> Losses:
    """The loss with each layer alone in each of its candidates; the module is left as it was.

    Raises:
        RecipeError: the outputs hold NaN or infinity; the layer and candidate are named.
    """
    found: Losses = {name: {} for name in candidates}
    trials = [(name, label) for name, row in candidates.items() for label in row]
    keys = {(name, label): journal.key(name, candidates[name][label]) for name, label in trials}
    for name, label in trials:
        known = journal.find(keys[name, label])
        if known is not None:
            found[name][label] = known
    left = [(name, label) for name, label in trials if label not in found[name]]
    done = len(trials) - len(left)
    for name, label, loss in _each(module, candidates, left, calibration):
        if not torch.isfinite(torch.tensor(loss)):
            raise RecipeError(f"the outputs hold NaN or infinity with this layer alone as {label}", where=name)
        found[name][label] = loss
        journal.add(keys[name, label], loss)
        done += 1
        progress(done / len(trials), f"sensitivity of {name} as {label}, {done} of {len(trials)}")
    return {name: {label: found[name][label] for label in row} for name, row in candidates.items()}


def _each(
    module: nn.Module, candidates: Candidates, trials: list[tuple[str, str]], calibration: Calibration
) -> Iterator[tuple[str, str, float]]:
    if not trials:
        return
    if not isinstance(module, Decoder):
        references = [outputs(module, batch) for batch in calibration.batches]
        for name, label in trials:
            with replaced(module, {name: candidates[name][label]}):
                changed = [outputs(module, batch) for batch in calibration.batches]
            yield name, label, _mean(module, zip(references, changed, strict=True))
        return
    last = [_through(module, 0, batch) for batch in calibration.batches]
    states = [module.entered(*batch)[0] for batch in calibration.batches]
    for i in range(len(module.layers) + 1):
        prefix = f"layers.{i}." if i < len(module.layers) else "head"
        for name, label in trials:
            if name.startswith(prefix):
                # The reference's logits are made one batch at a time, with the float head.
                pairs = _pairs(module, candidates[name][label], name, i, (states, last), calibration)
                yield name, label, _mean(module, pairs)
        if i < len(module.layers):
            for at, batch in enumerate(calibration.batches):
                states[at] = module.layers[i](states[at], *module.contexts(*batch[1:])[i])[0]


def _pairs(
    decoder: Decoder,
    layer: QuantLayer,
    name: str,
    i: int,
    hidden: tuple[list[Tensor], list[Tensor]],
    calibration: Calibration,
) -> Iterator[tuple[Tensor, Tensor]]:
    for x, end, batch in zip(*hidden, calibration.batches, strict=True):
        reference = decoder.logits(end)
        with replaced(decoder, {name: layer}):
            changed = decoder.logits(_through(decoder, i, batch, x))
        yield reference, changed


def _through(decoder: Decoder, start: int, batch: Batch, x: Tensor | None = None) -> Tensor:
    """The hidden states after the last layer; `x` are those before layer `start`."""
    entered, contexts = decoder.entered(*batch)
    x = entered if x is None else x
    for layer, context in list(zip(decoder.layers, contexts, strict=True))[start:]:
        x = layer(x, *context)[0]
    return x


class replaced:
    """While open, the layers stand in the module's places."""

    def __init__(self, module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._module, self._layers = module, layers
        self._before = {name: module.get_submodule(name) for name in layers}

    def __enter__(self) -> nn.Module:
        for name, layer in self._layers.items():
            replace_layer(self._module, name, layer)
        return self._module

    def __exit__(self, *_: object) -> None:
        for name, layer in self._before.items():
            replace_layer(self._module, name, layer)


def outputs(module: nn.Module, batch: Batch) -> Tensor:
    """Logits of a decoder or classifier, embeddings of an encoder."""
    made = module(*batch[: len(module.input_names)]) if isinstance(module, Encoder) else module(*batch)
    if isinstance(module, Classifier):
        return made if isinstance(made, Tensor) else made[0]  # type: ignore[no-any-return]
    return made[1] if isinstance(module, Encoder) else made[0]  # type: ignore[no-any-return]


@torch.no_grad()
def mixed_loss(module: nn.Module, layers: Mapping[str, QuantLayer], calibration: Calibration) -> float:
    """The loss with all of these layers in place."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in calibration.batches:
            reference = outputs(module, batch)
            with replaced(module, layers):
                changed = outputs(module, batch)
            yield reference, changed

    return _mean(module, pairs())


def _mean(module: nn.Module, pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
    total, count = 0.0, 0
    for reference, changed in pairs:
        each = losses(module, reference, changed)
        total, count = total + float(each.sum()), count + each.numel()
    return total / count


def losses(module: nn.Module, reference: Tensor, changed: Tensor) -> Tensor:
    """One number for each position, image or text, float64."""
    if isinstance(module, Encoder):
        return 1 - F.cosine_similarity(reference.double(), changed.double(), dim=-1)
    p, q = reference.float().log_softmax(-1), changed.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1, dtype=torch.float64)
