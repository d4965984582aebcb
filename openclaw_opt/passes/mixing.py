"""`quantize: {format: auto}`: every candidate of every layer, what each costs, the choice, and its measurement.

    1  Each candidate is made for all layers by the code that makes it alone, on the calibration samples that are not held back.
    2  Sensitivity: the loss of the outputs with one layer alone in one candidate, on the same samples (`models.sensitivity`).
    3  Losses are taken to add up; the cheapest choice within an allowance is solved exactly (`numerics.knapsack`).
    4  The choice is measured on the samples held back, against the untouched checkpoint, by the metrics that `within` names. The
       allowance is corrected until the cheapest choice whose whole interval keeps `within` is found (`numerics.correction`).

Evaluation data is not there to be looked at: `Work` has none.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import BudgetMissed
from openclaw_opt.metrics.roofline import ceilings, layer_seconds
from openclaw_opt.models.calibrate import Batch, Calibration, load_calibration
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.footprint import float_bytes, weight_bytes
from openclaw_opt.models.quantizing import Converted, Input, assemble, converted
from openclaw_opt.models.sensitivity import Journal, Losses, mixed_loss, replaced, sensitivities
from openclaw_opt.models.spec import read_facts
from openclaw_opt.models.store import WEIGHTS, open_model, save_model
from openclaw_opt.numerics.correction import Round, best, closest, correct
from openclaw_opt.numerics.knapsack import Choice, choose
from openclaw_opt.passes import Done, Work
from openclaw_opt.passes.candidates import FLOAT, Rule, expanded, fitted, rules_of
from openclaw_opt.passes.held_back import HeldBack, Reading, batches_of, parted
from openclaw_opt.store import sha256_file

if TYPE_CHECKING:
    from openclaw_opt.models.linear import QuantLayer
    from openclaw_opt.passes.quantize import Quantize

ROUNDS = 9
"""Choices that are measured at most."""
LOSS_TOKENS = 2048
"""Calibration tokens (or items, of images) that sensitivities are measured on at most."""
LOSSES = {"decoder": "mean KL, nat", "encoder": "mean 1 − cosine", "vision": "mean KL, nat"}


@dataclass(frozen=True)
class Layer:
    """One layer, what it can be, and what that costs."""

    name: str
    parameters: int
    made: Mapping[str, QuantLayer]
    bytes: Mapping[str, int]
    """Of each candidate, and of float under FLOAT."""
    costs: Mapping[str, float]
    """What is minimised, of the candidates that may be chosen."""


def choose_formats(options: Quantize, source: Model, work: Work) -> Done[Model]:
    """Do it. Raises BudgetMissed where no choice keeps `within`, with the closest that was reached."""
    began, facts = time.monotonic(), read_facts(source)
    assert work.calibration is not None, "`check` wants calibration data"
    assert options.within is not None, "`check` wants `within`"
    samples = fitted(work.calibration.samples, options.held_back)
    load_calibration(work.calibration, facts, source, work.data_cache, options.batch_size)  # refuses what does not fit
    fit, kept_back = parted(source, work, facts.task, samples)
    calibration = batches_of(fit, options.batch_size)
    unseen = batches_of(kept_back, options.batch_size)
    given = Input(source, facts, calibration)
    libraries = _made(options, given, _folder(work), _part(work, 0.0, 0.4))
    module = open_model(source)
    floats_allowed = any(item["format"] == FLOAT for item in options.candidates or ())
    layers = _layers(module, libraries, work, options, floats_allowed)
    losses = _losses(layers, module, given, work)
    rules = rules_of(options.within)
    with tempfile.TemporaryDirectory(prefix="held-back-", dir=_folder(work)) as scratch:
        held = HeldBack(source, work, rules, kept_back, Path(scratch))
        search = _Search(layers, losses, module, held, _part(work, 0.7, 0.95))
        rounds = search.run()
        taken = best(rounds)
        if taken is None:
            raise _missed(closest(rounds), search, rules, floats_allowed)
        chosen = search.layers_of(taken.choice)
        measured = mixed_loss(module, chosen, unseen)
    work.progress(0.95, "folding input factors")
    made, folded = assemble(given, chosen)
    told = _Told(options, layers, losses, rounds, taken, search, measured, work.backend)
    noted = facts.model_copy(update={"notes": (*facts.notes, told.sentence)})
    details = {
        "layers": told.rows(libraries),
        "calibration": _calibration_row(calibration, time.monotonic() - began),
        "kept": [layer.name for layer, label in zip(layers, taken.choice.picks, strict=True) if label == FLOAT],
        "unreached": sorted({name for one in libraries.values() for name in one.unreached}),
        "folded": folded,
        "largest_difference_from_fake_quantized": max(
            (x.proven for x in libraries.values() if x.proven is not None), default=None
        ),
        "mixed": told.facts(facts.task, unseen.sequences, samples, libraries, expanded(options, facts.task)),
    }
    model = save_model(made, noted, work.folder, source.assets)
    return Done(model, changed=told.sentence, count=len(chosen), details=details)


def _part(work: Work, start: float, end: float) -> Callable[[float, str], None]:
    return lambda part, text: work.progress(start + part * (end - start), text)


def _folder(work: Work) -> Path:
    work.folder.mkdir(parents=True, exist_ok=True)
    return work.folder


def _made(
    options: Quantize, given: Input, scratch: Path, progress: Callable[[float, str], None]
) -> dict[str, Converted]:
    """Every candidate, for all layers that it takes."""
    variants = expanded(options, given.facts.task)

    def told(i: int, label: str, part: float, text: str) -> None:
        progress((i + part) / len(variants), f"{label}: {text}")

    return {
        label: converted(
            given,
            one.job(given.facts.task),
            partial(one.chosen, done=tuple(given.facts.quant)),
            partial(told, i, label),
            scratch,
        )
        for i, (label, one) in enumerate(variants.items())
    }


def _layers(
    module: nn.Module, libraries: Mapping[str, Converted], work: Work, options: Quantize, floats: bool
) -> list[Layer]:
    """Layers in the model's order, each with the candidates that take it."""
    tied = isinstance(module, Decoder) and module.spec.tied
    target = work.target
    if options.minimise == "time":
        target, _ = ceilings(target, sum(value.nbytes for value in module.parameters()))
    found = []
    for name, plain in module.named_modules():
        made = {label: one.layers[name] for label, one in libraries.items() if name in one.layers}
        if not made:
            continue
        assert isinstance(plain.weight, Tensor)
        shape = tuple(plain.weight.shape)
        sizes = {label: weight_bytes(shape, layer.quant, work.backend) for label, layer in made.items()}
        sizes[FLOAT] = weight_bytes(shape, None, work.backend, tied=tied and name == "head")
        formats = {label: layer.quant.format for label, layer in made.items()} | {FLOAT: ""}
        legal = [label for label in sizes if label != FLOAT or floats]
        if options.minimise == "time":
            read = sizes | {FLOAT: plain.weight.numel() * float_bytes(work.backend)}  # a tied head is read too
            costs = {x: layer_seconds(target, read[x], plain.weight.numel(), formats[x]) for x in legal}
        else:
            costs = {label: float(sizes[label]) for label in legal}
        found.append(Layer(name, plain.weight.numel(), made, sizes, costs))
    return found


def _losses(layers: Sequence[Layer], module: nn.Module, given: Input, work: Work) -> Losses:
    """Each layer alone in each candidate; float loses nothing."""
    calibration = _first(given.calibration)
    weights = sha256_file(given.model.folder / WEIGHTS)
    context = f"{weights} {calibration.fingerprint} {len(calibration.batches)}"
    journal = Journal(work.data_cache / "sensitivity.jsonl", context)
    progress = _part(work, 0.4, 0.7)
    found = sensitivities(module, {layer.name: layer.made for layer in layers}, calibration, journal, progress)
    return {name: {**row, FLOAT: 0.0} for name, row in found.items()}


def _first(calibration: Calibration | None) -> Calibration:
    """The first batches, up to LOSS_TOKENS and one at least."""
    assert calibration is not None
    kept: list[Batch] = []
    count = 0
    for batch in calibration.batches:
        if kept and count >= LOSS_TOKENS:
            break
        kept.append(batch)
        count += batch[0].numel() if batch[0].ndim == 2 else len(batch[0])
    return Calibration(tuple(kept), calibration.sequences, count, calibration.fingerprint)


class _Search:
    """Solve, measure, correct; keeps what each measured choice read."""

    def __init__(
        self,
        layers: Sequence[Layer],
        losses: Losses,
        module: nn.Module,
        held: HeldBack,
        progress: Callable[[float, str], None],
    ) -> None:
        self.layers, self._module, self._held, self._progress = layers, module, held, progress
        # Rounding can leave a loss a little below nothing, which would buy another layer room.
        self._losses = [{label: max(0.0, losses[layer.name][label]) for label in layer.costs} for layer in layers]
        self.readings: list[list[Reading]] = []
        self._units: list[float] = []

    def run(self) -> list[Round]:
        lowest = sum(min(row.values()) for row in self._losses)
        highest = sum(max(row.values()) for row in self._losses)
        costs = [layer.costs for layer in self.layers]
        return correct(lambda allowed: choose(self._losses, costs, allowed), self._measure, lowest, highest, ROUNDS)

    def layers_of(self, choice: Choice) -> dict[str, QuantLayer]:
        """The quantized layers of a choice; the others stay float."""
        pairs = zip(self.layers, choice.picks, strict=True)
        return {layer.name: layer.made[label] for layer, label in pairs if label != FLOAT}

    def _measure(self, choice: Choice) -> float:
        self._progress(len(self.readings) / ROUNDS, f"measuring choice {len(self.readings) + 1} on held-back data")
        with replaced(self._module, self.layers_of(choice)):
            readings = self._held.read(self._module)
        self.readings.append(readings)
        margins = [one.margin for one in readings]
        if not self._units:
            # Margins of several rules are compared as shares of what the safest choice leaves.
            self._units = [abs(margin) or 1.0 for margin in margins]
        return min(margin / unit for margin, unit in zip(margins, self._units, strict=True))


def _missed(nearest: Round, search: _Search, rules: Sequence[Rule], floats: bool) -> BudgetMissed:
    said = "; ".join(str(one) for one in search.readings[0])
    asked = ", ".join(str(rule) for rule in rules)
    fix = "a looser rule in `within`, more calibration samples" + (
        "" if floats else f", or {FLOAT} among the candidates"
    )
    what = f"no choice keeps within ({asked}) on held-back calibration data; the closest, of predicted loss {nearest.choice.loss:.2g}, reaches {said}"
    return BudgetMissed(what, where="quantize.within", fix=fix)


def _calibration_row(calibration: Calibration, seconds: float) -> dict[str, Any]:
    return {
        "tokens": calibration.tokens,
        "sequences": calibration.sequences,
        "fingerprint": calibration.fingerprint,
        "algorithm": "auto",
        "alpha": None,
        "block": None,
        "ranges": None,
        "percentile": None,
        "seconds": round(seconds, 3),
    }


@dataclass(frozen=True)
class _Told:
    """The result in words and as JSON."""

    options: Quantize
    layers: Sequence[Layer]
    losses: Losses
    rounds: Sequence[Round]
    taken: Round
    search: _Search
    measured: float
    backend: str

    @property
    def _picked(self) -> Iterator[tuple[Layer, str]]:
        return zip(self.layers, self.taken.choice.picks, strict=True)

    @property
    def bits(self) -> float:
        """Bits a weight of the layers that were chosen for, scales and zero points counted."""
        return self._bits(self.taken.choice)

    def _bits(self, choice: Choice) -> float:
        pairs = list(zip(self.layers, choice.picks, strict=True))
        # A tied head that stays float is the embedding's, and neither its bytes nor its weights are the layers'.
        counted = [(layer.bytes[label], layer.parameters) for layer, label in pairs if layer.bytes[label]]
        return 8 * sum(size for size, _ in counted) / sum(count for _, count in counted)

    @property
    def sentence(self) -> str:
        counts: dict[str, int] = {}
        for _, label in self._picked:
            counts[label] = counts.get(label, 0) + 1
        kinds = ", ".join(f"{count} {self._word(label)}" for label, count in counts.items())
        kept = "; ".join(str(one) for one in self.search.readings[self._at])
        return f"{len(self.layers)} linear layers: {kinds}; {self.bits:.2f} bits a weight; {kept} on held-back data"

    def _word(self, label: str) -> str:
        return label if label != FLOAT else f"in float{8 * float_bytes(self.backend)}"

    @property
    def _at(self) -> int:
        return next(i for i, one in enumerate(self.rounds) if one is self.taken)

    def rows(self, libraries: Mapping[str, Converted]) -> list[dict[str, Any]]:
        """The report's layer table: each layer as it was chosen."""
        return [libraries[label].rows[layer.name] for layer, label in self._picked if label != FLOAT]

    def facts(
        self, task: str, held: int, samples: int, libraries: Mapping[str, Converted], variants: Mapping[str, Quantize]
    ) -> dict[str, Any]:
        return {
            "within": self.options.within,
            "minimise": self.options.minimise or "size",
            "loss": LOSSES[task],
            "fitted": samples,
            "held_back": held,
            "float": f"float{8 * float_bytes(self.backend)}",
            "candidates": {
                label: {"title": one.job(task).title, **self._uniform(label)} for label, one in variants.items()
            },
            "sensitivity": {
                layer.name: {label: self.losses[layer.name][label] for label in layer.made} for layer in self.layers
            },
            "choice": [
                {
                    "layer": layer.name,
                    "format": label,
                    "parameters": layer.parameters,
                    "bytes": layer.bytes[label],
                    "bits": 8 * layer.bytes[label] / layer.parameters,
                    "predicted": self.losses[layer.name][label],
                }
                for layer, label in self._picked
            ],
            "bytes": sum(layer.bytes[label] for layer, label in self._picked),
            "bits_per_weight": self.bits,
            "predicted": self.taken.choice.loss,
            "measured": self.measured,
            "solver_gap": self.taken.choice.gap,
            "rounds": [
                self._round(one, readings) for one, readings in zip(self.rounds, self.search.readings, strict=True)
            ],
        }

    def _uniform(self, label: str) -> dict[str, Any]:
        """What all layers in one candidate would take, where it takes all."""
        if not all(label in layer.made for layer in self.layers):
            return {"bytes": None, "bits_per_weight": None}
        total = sum(layer.bytes[label] for layer in self.layers)
        return {"bytes": total, "bits_per_weight": 8 * total / sum(layer.parameters for layer in self.layers)}

    def _round(self, one: Round, readings: Sequence[Reading]) -> dict[str, Any]:
        return {
            "allowance": one.allowance,
            "predicted": one.choice.loss,
            "cost": one.choice.cost,
            "bits_per_weight": self._bits(one.choice),
            "solver_gap": one.choice.gap,
            "holds": one.holds,
            "taken": one is self.taken,
            "readings": [asdict(reading) | {"rule": str(reading.rule), "text": str(reading)} for reading in readings],
        }
