"""The calibration samples that nothing was made on, and what a mix keeps of the checkpoint's accuracy there.

The metrics are those of the report; the reference is the untouched checkpoint, run once. A reading is decided by the end of its
interval: a bootstrap over the sequences, the same ones drawn for both where the number is a ratio to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from openclaw_opt.artifacts import Measurement, Model
from openclaw_opt.backends.engines import open_session
from openclaw_opt.backends.torch_sessions import session_of
from openclaw_opt.data.load import ImageSet, SentenceSet, TokenSet, load_images, load_sentences, load_tokens
from openclaw_opt.errors import RecipeError
from openclaw_opt.metrics import Metric
from openclaw_opt.metrics.reference import ArrayReference, TokenReference, store_arrays, store_tokens
from openclaw_opt.metrics.scores import array_outputs
from openclaw_opt.metrics.subject import Opener, Subject
from openclaw_opt.models.calibrate import Calibration, decoder_calibration, sentence_batches
from openclaw_opt.models.export import graph_facts
from openclaw_opt.models.spec import DecoderSpec, read_facts
from openclaw_opt.numerics import paired
from openclaw_opt.passes import Work
from openclaw_opt.passes.candidates import Rule, accuracy_numbers

if TYPE_CHECKING:
    from openclaw_opt.backends import DecoderSession

Data = TokenSet | SentenceSet | ImageSet
FEWEST_RIGHT = 8
"""Items that count, of a share of them, below which draws without any have no ratio."""
NOT_RUN = "a choice is no engine"


@dataclass(frozen=True)
class Reading:
    """One rule, and what was measured for it."""

    rule: Rule
    value: float
    low: float | None
    high: float | None

    @property
    def margin(self) -> float:
        """Of the end of the interval that is nearer to the bound; of the value, where there is no interval."""
        end = self.low if self.rule.op.startswith(">") else self.high
        return self.rule.margin(self.value if end is None else end)

    def __str__(self) -> str:
        ends = "" if self.low is None or self.high is None else f" ({self.low:.5g} – {self.high:.5g})"
        return f"{self.rule.metric} {self.value:.5g}{ends}"


class HeldBack:
    """Samples that nothing was made on, and the checkpoint's outputs on them in `folder`."""

    def __init__(self, source: Model, work: Work, rules: Sequence[Rule], data: Data, folder: Path) -> None:
        self._rules, self._facts, self._work, self.data = rules, read_facts(source), work, data
        self._reference = self._referred(folder)
        legal = accuracy_numbers(self._facts.task)
        # Which metrics: each once, with its defaults, in the order of the rules.
        self._metrics: list[Metric] = [cls() for cls in dict.fromkeys(legal[rule.metric][0] for rule in rules)]

    def read(self, module: nn.Module) -> list[Reading]:
        """What the module keeps, a reading for each rule. Raises RecipeError where a number has no interval at its confidence."""
        subject = self._subject(Opener(lambda: session_of(module)), self._reference)
        rows = [row for metric in self._metrics for row in metric.measure(subject) if row.subject != "reference"]
        return [_reading(rule, next(row for row in rows if row.name == rule.metric)) for rule in self._rules]

    def _referred(self, folder: Path) -> TokenReference | ArrayReference:
        with open_session(self._work.checkpoint) as session:
            if isinstance(self.data, TokenSet):
                decoder: DecoderSession = session  # type: ignore[assignment]
                spec = self._facts.spec
                assert isinstance(spec, DecoderSpec)
                return store_tokens(decoder.logits, self.data.sequences, spec.vocab, folder)
        facts = graph_facts(self._facts, "float32", None)
        opener = Opener(lambda: open_session(self._work.checkpoint), "reference")
        return store_arrays(array_outputs(opener, self.data, facts), folder)

    def _subject(self, opener: Opener, reference: TokenReference | ArrayReference) -> Subject:
        return Subject(
            facts=graph_facts(self._facts, "float32", None),
            target=self._work.target,
            accuracy=opener,
            speed=Opener(None, "engine", NOT_RUN),
            eager=Opener(None, "reference", NOT_RUN),
            data=self.data,
            reference=reference,
        )


def parted(source: Model, work: Work, task: str, first: int) -> tuple[Data, Data]:
    """The calibration samples: the first, and those held back."""
    assert work.calibration is not None
    tokenizer = source.assets / "tokenizer.json"
    if task == "vision":
        images = load_images(work.calibration)
        parts: list[Data] = [
            replace(images, images=images.images[rows], labels=images.labels[rows])
            for rows in (slice(first), slice(first, None))
        ]
    elif task == "encoder":
        texts = load_sentences(work.calibration, tokenizer, work.data_cache)
        parts = [
            replace(texts, texts=texts.texts[rows], ids=texts.ids[rows], mask=texts.mask[rows])
            for rows in (slice(first), slice(first, None))
        ]
    else:
        tokens = load_tokens(work.calibration, tokenizer, work.data_cache)
        assert tokens.bytes_each is not None, "tokens that were read from a source know their bytes"
        parts = [
            replace(tokens, sequences=tokens.sequences[rows], bytes=int(tokens.bytes_each[rows].sum()))
            for rows in (slice(first), slice(first, None))
        ]
    return parts[0], parts[1]


def batches_of(data: Data, batch_size: int) -> Calibration:
    """The samples as batches of the model's inputs; the fingerprint is of the set they are a part of, and of how many they are."""
    import torch

    if isinstance(data, TokenSet):
        mark = f"{data.fingerprint}:{len(data.sequences)}"
        return decoder_calibration(torch.from_numpy(np.ascontiguousarray(data.sequences)), batch_size, mark)
    if isinstance(data, SentenceSet):
        ids, mask = torch.from_numpy(data.ids), torch.from_numpy(data.mask)
        made = sentence_batches(ids, mask, batch_size)
        return Calibration(made, len(ids), int(mask.sum()), f"{data.fingerprint}:{len(ids)}")
    count = len(data.images)
    split = torch.split(torch.from_numpy(data.images), batch_size)
    return Calibration(tuple((part,) for part in split), count, 0, f"{data.fingerprint}:{count}")


def _reading(rule: Rule, row: Measurement) -> Reading:
    if row.value is None:
        raise RecipeError(f"{rule.metric} was not measured: {row.not_measured}", where="quantize.within")
    ends = _ends(row, rule.confidence)
    if ends is None and (row.low is not None or row.items):
        what = f"{rule.metric} has no interval at {rule.confidence:g} on {row.samples} held-back samples"
        raise RecipeError(what, where="quantize.within", fix="raise data.calibration.samples, or a lower confidence")
    low, high = ends or (None, None)
    return Reading(rule, row.value, low, high)


def _ends(row: Measurement, confidence: float) -> tuple[float, float] | None:
    """The interval of what the row is made of; else the one it states, for as much confidence as that has."""
    items, weights = np.asarray(row.items), np.asarray(row.weights)
    if len(items) and paired.is_binary(weights) and weights.sum() < FEWEST_RIGHT:
        return None
    if len(items):
        # Cosines that are 1 to all digits that are kept are no share of right answers.
        if paired.is_binary(items) and (weights == 1).all() and not row.name.startswith("embedding.cosine"):
            return paired.wilson_interval(int(items.sum()), len(items), confidence)
        return paired.bootstrap(lambda rows: items[rows].sum(1) / weights[rows].sum(1), len(items), confidence)
    if row.low is None or row.high is None or confidence > 0.95:
        return None
    return row.low, row.high
