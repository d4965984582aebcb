"""The knee has a closed form, batches take turns, the parts of a request are those of one request."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openclaw_opt.backends import GenericSession
from openclaw_opt.errors import RecipeError
from openclaw_opt.metrics import batching
from openclaw_opt.metrics.anatomy import Anatomy, sample_text
from openclaw_opt.metrics.batching import Batching, knee
from openclaw_opt.metrics.subject import Opener
from openclaw_opt.recipe import load_recipe
from tests.test_metrics import FACTS, TABLE, Bigram, by_name, subject

SLEEP = 0.0004


class Saturating(Bigram):
    """Free up to four sequences: a step takes 1 ms, and 8 ms for eight. Its own clock, since machines are busy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(TABLE)
        self.batches: list[int] = []
        self.ms = 0.0
        monkeypatch.setattr(batching, "timed", lambda run: (run(), self.ms)[1])

    def prefill(self, ids: Any, lengths: Any = None) -> Any:
        self.batches.append(ids.shape[0])
        return super().prefill(ids)

    def decode(self, ids: Any) -> Any:
        self.ms = 8.0 if len(ids) == 8 else 1.0
        return super().decode(ids)


def rounds(latencies: dict[int, float], count: int = 9) -> dict[int, list[list[float]]]:
    return {batch: [[ms, ms] for _ in range(count)] for batch, ms in latencies.items()}


def test_the_knee_is_where_power_is_largest() -> None:
    found = knee(rounds({1: 1.0, 2: 1.2, 4: 1.5, 8: 4.0}))  # b / L²: 1, 1.39, 1.78, 0.5
    assert (found.value, found.low, found.high, found.samples) == (4.0, 4.0, 4.0, 9)
    assert knee(rounds({1: 1.0, 2: 2.0, 4: 4.0})).value == 1.0  # nothing is gained by a batch


def test_an_uncertain_knee_has_an_interval() -> None:
    random = np.random.default_rng(0)
    times = {
        1: [[2.0]] * 20,
        2: [[x] for x in 1.7 + random.normal(0, 0.1, 20)],
        4: [[x] for x in 2.4 + random.normal(0, 0.15, 20)],
    }
    found = knee(times)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.high


def test_batches_take_turns_and_are_stated_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Saturating(monkeypatch)
    rows = Batching(batches=(1, 2, 4, 8), new_tokens=4, prompt=8, time_box_s=60.0).measure(subject(tmp_path, session))
    by_batch = {(row.name, row.at["batch"]): row for row in rows if row.at}
    assert {batch for _, batch in by_batch} == {1, 2, 4, 8}
    assert by_name(rows)["batching.knee"].value == 4.0
    for batch, ms in {1: 1.0, 2: 1.0, 4: 1.0, 8: 8.0}.items():
        step, rate = by_batch["batching.decode_ms", batch], by_batch["batching.tokens_per_s", batch]
        assert (step.value, rate.value) == (ms, 1e3 * batch / ms)
        assert (step.samples, rate.samples) == (44 * 4, 44 * 4)
    assert session.batches[:4] == [1, 2, 4, 8]  # warm-up
    assert session.batches[4:12] == [1, 2, 4, 8, 2, 4, 8, 1]


def test_a_knee_beyond_the_largest_batch_is_not_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Batching(batches=(1, 2, 4), new_tokens=4, prompt=8, time_box_s=60.0).measure(
        subject(tmp_path, Saturating(monkeypatch))
    )
    row = by_name(rows)["batching.knee"]
    assert row.value is None
    assert "still largest at 4" in row.not_measured


def test_too_few_rounds_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Batching(batches=(1, 2), new_tokens=2, prompt=8, time_box_s=1e-6).measure(
        subject(tmp_path, Saturating(monkeypatch))
    )
    assert "needs 7 rounds" in by_name(rows)["batching.knee"].not_measured
    assert all(row.value is None and row.not_measured for row in rows)


def test_no_budget_names_a_row_under_a_condition(write_recipe: Any) -> None:
    metrics = ("metrics: [perplexity, size]", "metrics: [batching, size]")
    budget = 'perplexity.recovery: ">= 0.5"'
    assert load_recipe(write_recipe(metrics, (budget, 'batching.knee: ">= 2"'))).budgets[0].metric == "batching.knee"
    with pytest.raises(RecipeError, match=r"batching\.decode_ms"):
        load_recipe(write_recipe(metrics, (budget, 'batching.decode_ms: "<= 2"')))


def opening(code: str) -> tuple[str, ...]:
    return ("-c", code)


def test_the_parts_of_a_request(tmp_path: Path, tiny_llama: Path) -> None:
    here = replace(
        subject(tmp_path, Bigram(TABLE, seconds=SLEEP)),
        tokenizer=tiny_llama / "tokenizer.json",
        load_command=opening("print('{\"open_ms\": 12.5}')"),
    )
    rows = by_name(Anatomy(prompt=8, new_tokens=4, time_box_s=60.0).measure(here))
    assert set(rows) == set(Anatomy.measurement_names("decoder"))
    assert (rows["anatomy.load_ms"].value, rows["anatomy.load_ms"].samples) == (12.5, 7)
    values = {name: row.value or 0.0 for name, row in rows.items()}
    assert values["anatomy.decode_ms"] >= 4 * SLEEP * 1e3
    assert values["anatomy.prefill_ms"] >= SLEEP * 1e3
    assert min(values["anatomy.tokenize_ms"], values["anatomy.detokenize_ms"]) > 0
    samples = {rows[f"anatomy.{part}_ms"].samples for part in ("tokenize", "prefill", "decode", "detokenize")}
    assert len(samples) == 1  # of the same requests


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    session = Bigram(TABLE)
    rows = by_name(Anatomy(prompt=8, new_tokens=2, time_box_s=60.0).measure(subject(tmp_path, session)))
    assert rows["anatomy.tokenize_ms"].not_measured == "the checkpoint has no tokenizer.json"
    assert rows["anatomy.load_ms"].not_measured == "no engine"
    broken = replace(subject(tmp_path / "b", session), load_command=opening("raise SystemExit('no such file')"))
    rows = by_name(Anatomy(prompt=8, new_tokens=2, time_box_s=60.0).measure(broken))
    assert rows["anatomy.load_ms"].not_measured == "opening ended with exit code 1: no such file"
    few = replace(broken, load_command=opening("print('{\"open_ms\": 1.0}')"))
    rows = by_name(Anatomy(prompt=8, new_tokens=2, time_box_s=60.0, loads=2).measure(few))
    assert rows["anatomy.load_ms"].not_measured == "p50 needs 7 samples, 2 were taken"


class Still(GenericSession):
    def infer(self, feed: Any) -> Any:
        time.sleep(SLEEP)
        return {"logits": np.zeros((next(iter(feed.values())).shape[0], 2), np.float32)}


def test_models_without_a_cache(tmp_path: Path) -> None:
    facts = FACTS.model_copy(
        update={"task": "vision", "kv": (), "batch_first_shapes": {"pixel_values": ["batch", 1, 4, 4]}}
    )
    here = replace(subject(tmp_path, Still()), facts=facts, speed=Opener(Still))
    rows = by_name(Anatomy(time_box_s=60.0).measure(here))
    assert set(rows) == {"anatomy.load_ms", "anatomy.infer_ms"}
    assert rows["anatomy.infer_ms"].value is not None
    batches = Batching(batches=(1, 2), time_box_s=60.0).measure(here)
    assert {row.name for row in batches} == set(Batching.measurement_names("vision"))
    assert next(row for row in batches if row.name == "batching.knee").not_measured  # two cost as much as one: beyond


def test_text_without_data_comes_from_the_vocabulary(tiny_llama: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    assert sample_text(tokenizer, None, 5)
