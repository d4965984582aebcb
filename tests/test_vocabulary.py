"""Trimming a vocabulary: text of what stays encodes as before, any other text still encodes, and numbers stay comparable."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from openclaw_opt.artifacts import Model
from openclaw_opt.backends import DecoderSession
from openclaw_opt.data import Source, parse_source
from openclaw_opt.data.load import OwnTokens, TokenSet, in_own_tokens, load_tokens, token_counts
from openclaw_opt.errors import MachineError, RecipeError, VerificationError
from openclaw_opt.metrics.agreement import Agreement
from openclaw_opt.metrics.perplexity import Perplexity
from openclaw_opt.metrics.reference import store_tokens
from openclaw_opt.metrics.scores import score_own_tokens, score_tokens
from openclaw_opt.metrics.subject import OTHER_TOKENS, Opener, Subject
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.export import graph_facts
from openclaw_opt.models.load import load_model
from openclaw_opt.models.spec import read_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.models.trimming import prove_rows, prove_text, with_rows
from openclaw_opt.models.vocabulary import Trimmed, byte_symbols, named_ids, renumbered, trim, why_not
from openclaw_opt.passes import Done, Work
from openclaw_opt.passes.prune import Prune
from openclaw_opt.targets import TARGETS
from tests.test_prune import CPU, SPEC, complaints, silent
from tests.tiny import open_tiny, write_checkpoint

ROOT = Path(__file__).parent.parent
FILE = ROOT / "examples" / "tiny-llama" / "tokenizer.json"
WHOLE: dict[str, Any] = json.loads(FILE.read_text())
THEIRS = Tokenizer.from_str(json.dumps(WHOLE))
TEXT = "class Parser:\n    def parse(self, text):\n        return [word for word in text.split() if word]\n" * 3


def counts_of(text: str) -> dict[int, int]:
    ids, counts = np.unique(THEIRS.encode(text, add_special_tokens=False).ids, return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


SMALL = trim(WHOLE, counts_of(TEXT), ())
OURS = Tokenizer.from_str(json.dumps(SMALL.tokenizer))


# The tokenizer.


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = OURS.encode(text, add_special_tokens=False).ids
    assert OURS.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abdefinrst _()[]:\n", min_size=1, max_size=200), st.integers(0, 3))
def test_a_text_of_used_tokens_is_the_same_tokens(text: str, multiple: int) -> None:
    made = trim(WHOLE, counts_of(text), (), multiple=2**multiple)
    before = THEIRS.encode(text, add_special_tokens=False).ids
    after = Tokenizer.from_str(json.dumps(made.tokenizer)).encode(text, add_special_tokens=False).ids
    assert [made.new[i] for i in before] == after
    assert len(made.kept) % 2**multiple == 0


def test_what_stays_keeps_its_words_order_and_merges() -> None:
    words = SMALL.tokenizer["model"]["vocab"]
    assert SMALL.kept == tuple(sorted(SMALL.kept))
    assert sorted(words.values()) == list(range(len(SMALL.kept)))
    assert all(words[word] == SMALL.new[i] for word, i in WHOLE["model"]["vocab"].items() if i in SMALL.new)
    assert set(byte_symbols()) <= set(words)
    assert 256 < len(SMALL.kept) < 400
    for left, right in SMALL.tokenizer["model"]["merges"]:
        assert {left, right, left + right} <= set(words)
    old = [pair for pair in WHOLE["model"]["merges"] if pair in SMALL.tokenizer["model"]["merges"]]
    assert SMALL.tokenizer["model"]["merges"] == old, "ranks stay in order"
    assert SMALL.tokenizer["added_tokens"] == WHOLE["added_tokens"]


def test_a_number_of_tokens_takes_the_most_frequent() -> None:
    counts = counts_of(TEXT)
    made = trim(WHOLE, counts, (), rows=300, multiple=32)
    assert len(made.kept) == 320
    gone = [counts.get(i, 0) for i in range(2048) if i not in made.new]
    assert max(gone) <= 3
    assert len(trim(WHOLE, counts, (2047,), rows=10).kept) >= 257, "bytes, special tokens and those named stay"
    assert 2047 in trim(WHOLE, counts, (2047,), rows=300).new


def test_special_tokens_get_their_new_ids_everywhere() -> None:
    end = {
        "id": 2048,
        "content": "<end>",
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<end>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<end>": {"id": "<end>", "ids": [2048], "tokens": ["<end>"]}},
    }
    whole = {**WHOLE, "added_tokens": [*WHOLE["added_tokens"], end], "post_processor": template}
    whole["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2048,
        "pad_type_id": 0,
        "pad_token": "<end>",
    }
    made = trim(whole, counts_of(TEXT), ())
    last = len(made.kept) - 1
    assert made.new[2048] == last
    tokenizer = Tokenizer.from_str(json.dumps(made.tokenizer))
    assert tokenizer.encode("def").ids[0] == last
    assert tokenizer.padding["pad_id"] == last  # type: ignore[index]
    roberta = {
        "type": "RobertaProcessing",
        "sep": ["<end>", 2048],
        "cls": ["<end>", 2048],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    for part in (roberta, {"type": "Sequence", "processors": [roberta]}):
        again = trim({**whole, "post_processor": part}, counts_of(TEXT), ())
        assert Tokenizer.from_str(json.dumps(again.tokenizer)).encode("def").ids[0] == last


def test_configs_get_their_new_ids() -> None:
    config = {
        "eos_token_id": [7, 300],
        "bos_token_id": 5,
        "pad_token_id": None,
        "vocab_size": 400,
        "text": {"eos_token_id": 7},
        "hidden_size": 5,
    }
    assert named_ids(config) == {5, 7, 300}
    made = renumbered(config, {5: 0, 7: 1})
    assert made == {
        "eos_token_id": [1],
        "bos_token_id": 0,
        "pad_token_id": None,
        "vocab_size": 2,
        "text": {"eos_token_id": 1},
        "hidden_size": 5,
    }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": {**WHOLE["model"], "type": "Unigram"}}, "its model is Unigram, not BPE"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "its tokens are not made of bytes"),
        ({"pre_tokenizer": None}, "its tokens are not made of bytes"),
        ({"model": {**WHOLE["model"], "end_of_word_suffix": "</w>"}}, "its tokens carry prefixes or suffixes"),
        ({"model": {**WHOLE["model"], "dropout": 0.1}}, "it drops merges at random"),
        ({"model": {**WHOLE["model"], "vocab": {"a": 0}}}, "255 of 256 byte symbols are not in its vocabulary"),
    ],
)
def test_tokenizers_that_cannot_be_trimmed(change: dict[str, Any], why: str) -> None:
    assert why_not({**WHOLE, **change}).startswith(why)


def test_a_byte_level_tokenizer_in_a_sequence_can_be() -> None:
    assert why_not(WHOLE) == ""
    inside = {"type": "Sequence", "pretokenizers": [{"type": "Split"}, WHOLE["pre_tokenizer"]]}
    assert why_not({**WHOLE, "pre_tokenizer": inside}) == ""


def test_a_tokenizer_that_loses_text_is_caught() -> None:
    model = SMALL.tokenizer["model"]
    lost = {word: i for word, i in model["vocab"].items() if word != "q"}
    broken = {
        **SMALL.tokenizer,
        "model": {**model, "vocab": lost, "merges": [m for m in model["merges"] if "q" not in "".join(m)]},
    }
    with pytest.raises(VerificationError, match="does not give back"):
        prove_text(WHOLE, Trimmed(broken, SMALL.kept), ["quick"])
    shuffled = {**SMALL.tokenizer, "model": {**model, "merges": model["merges"][::-1]}}
    with pytest.raises(VerificationError, match=r"splits .* in another way"):
        prove_text(WHOLE, Trimmed(shuffled, SMALL.kept), [TEXT])


# The pass.


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the demo decoder's tokenizer."""
    folder = write_checkpoint(tmp_path_factory.mktemp("bytes") / "checkpoint", "llama", vocab_size=2048, eos_token_id=0)
    shutil.copy(FILE, folder / "tokenizer.json")
    return folder


def source_of(folder: Path, text: str = TEXT * 40) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text)
    return parse_source(
        {"source": "text", "path": str(folder / "text.txt"), "split": "all", "samples": 8, "length": 32}
    )


def run(prune: Prune, checkpoint: Path, folder: Path, text: str = TEXT * 40) -> tuple[Model, Done[Model]]:
    opened = open_tiny(checkpoint)
    model, _, _ = load_model(opened, folder / "model")
    work = Work(folder / "out", opened, CPU, "onnxruntime", source_of(folder, text), folder / "cache", progress=silent)
    return model, prune.run(model, work)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_go_and_the_rest_is_as_it_was(tied: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "checkpoint", "llama", vocab_size=2048, eos_token_id=5, tie_word_embeddings=tied
    )
    shutil.copy(FILE, folder / "tokenizer.json")
    (folder / "merges.txt").write_text("stale")
    model, done = run(Prune(vocabulary="used"), folder, tmp_path)
    facts, assets = read_facts(done.artifact), done.artifact.assets
    assert facts.decoder is not None
    told = done.details["vocabulary"]
    assert facts.decoder.vocab == told["after"] < told["before"] == 2048
    assert facts.decoder.vocab % 32 == 0
    assert told["largest_difference"] < 1e-5
    assert f"vocabulary 2048 → {facts.decoder.vocab}" in done.changed
    before, after = open_model(model), open_model(done.artifact)
    assert isinstance(after, Decoder)
    tokenizer = json.loads((assets / "tokenizer.json").read_text())
    kept = [
        WHOLE["model"]["vocab"][word] for word, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda one: one[1])
    ]
    assert torch.equal(after.embed.weight, before.get_submodule("embed").weight[kept])  # type: ignore[index]
    assert torch.equal(after.head.weight, before.get_submodule("head").weight[kept])  # type: ignore[index]
    config = json.loads((assets / "config.json").read_text())
    assert (config["vocab_size"], kept[config["eos_token_id"]]) == (facts.decoder.vocab, 5)
    assert not (assets / "merges.txt").exists()
    assert json.loads((model.assets / "tokenizer.json").read_text()) == WHOLE, "the source is left as it was"


def test_it_goes_with_other_cuts_and_counts_for_a_goal(byte_level: Path, tmp_path: Path) -> None:
    from openclaw_opt.passes._goal import Goal

    _, alone = run(Prune(vocabulary=0.5), byte_level, tmp_path / "a")
    _, both = run(
        Prune(vocabulary=0.5, to=Goal(parameters=alone.details["parameters"] - 20_000.0)), byte_level, tmp_path / "b"
    )
    assert both.details["parameters"] <= alone.details["parameters"] - 20_000
    assert both.details["widths"][0]["ffn"][1] < both.details["widths"][0]["ffn"][0]
    assert alone.details["vocabulary"]["after"] == 1024


def test_what_cannot_be_trimmed_is_refused(byte_level: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"prune\.vocabulary: the tokenizer cannot be trimmed: its model is WordLevel, not BPE"
    ):
        run(
            Prune(vocabulary="used"),
            write_checkpoint(tmp_path / "words", "llama"),
            tmp_path / "a",
            "<3> <4> <5>\n" * 200,
        )
    assert complaints(Prune(vocabulary="used"), SPEC, TARGETS["l4"], calibration=None) == [
        ("which tokens are used is seen on calibration data", "vocabulary", "add `calibration` to `data`")
    ]


def test_a_text_that_uses_every_token_leaves_none_to_go(
    byte_level: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openclaw_opt.models import trimming

    monkeypatch.setattr(trimming, "token_counts", lambda *_: dict.fromkeys(range(2048), 1))
    with pytest.raises(
        RecipeError, match=r"prune\.vocabulary: 2048 of 2048 tokens occur in the calibration text"
    ) as caught:
        run(Prune(vocabulary="used"), byte_level, tmp_path)
    assert caught.value.fix == "vocabulary: 0.1, a share to remove, or leave it out"


def test_tokens_are_counted_over_the_whole_text(tmp_path: Path) -> None:
    counted = token_counts(source_of(tmp_path), FILE, tmp_path / "cache")
    assert counted == counts_of(TEXT * 40 + "\n\n")
    assert counted == token_counts(source_of(tmp_path), FILE, tmp_path / "cache"), "from the cache"


def test_rows_in_a_wrong_order_are_caught(byte_level: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(open_tiny(byte_level), tmp_path / "model")
    whole = open_model(model)
    assert isinstance(whole, Decoder)
    kept = torch.tensor(SMALL.kept)
    ids = torch.arange(24)[None]
    probe = (ids, torch.ones_like(ids), torch.arange(24)[None])
    assert prove_rows(whole, with_rows(whole, kept), kept, probe) < 1e-6
    with pytest.raises(VerificationError, match="logits with the trimmed vocabulary differ"):
        prove_rows(whole, with_rows(whole, kept.flip(0)), kept, probe)


# Evaluation.


class Fixed(DecoderSession):
    """Logits that depend on the token before alone."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def logits(self, ids: Any) -> Any:
        return self.table[ids]

    def prefill(self, ids: Any, lengths: Any = None) -> Any:
        raise NotImplementedError

    def decode(self, ids: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    folder = tmp_path_factory.mktemp("tokens")
    return load_tokens(source_of(folder), FILE, folder / "cache")


def table(vocab: int) -> Any:
    return np.random.default_rng(0).standard_normal((vocab, vocab)).astype(np.float32)


def test_own_tokens_are_the_same_text(tokens: TokenSet, tmp_path: Path) -> None:
    few = trim(WHOLE, {}, ())  # bytes alone
    file = tmp_path / "few.json"
    file.write_text(json.dumps(few.tokenizer))
    ours, own = Tokenizer.from_file(str(file)), in_own_tokens(tokens, FILE, file)
    for row, ids, predicted in zip(tokens.sequences, own.sequences, own.predicted, strict=True):
        assert ours.decode(ids.tolist()) == THEIRS.decode(row.tolist())
        assert ours.decode(ids[-predicted:].tolist()) == THEIRS.decode(row[1:].tolist())
    assert sum(own.predicted) == tokens.bytes, "a token a byte"


def test_scores_of_own_tokens_are_those_of_the_same_tokens(tokens: TokenSet, tmp_path: Path) -> None:
    """Where both tokenizers agree, so do both ways to score."""
    own = in_own_tokens(tokens, FILE, FILE)
    session = Fixed(table(2048))
    reference = store_tokens(session.logits, tokens.sequences, 2048, tmp_path)
    opener = Opener(lambda: nullcontext(session))  # type: ignore[arg-type, return-value]
    same = [row.tolist() == ids.tolist() for row, ids in zip(tokens.sequences, own.sequences, strict=True)]
    assert any(same)
    both = zip(
        score_tokens(opener, tokens, reference), score_own_tokens(opener, own, reference, None), same, strict=True
    )
    for whole, mine, equal in both:
        assert mine.tokens == whole.tokens
        assert mine.reference_nll == whole.reference_nll
        assert np.isnan(mine.kl)
        if equal:
            assert mine.nll == pytest.approx(whole.nll, rel=1e-6)
    with pytest.raises(MachineError, match="of its own tokens, and its context is 8"):
        score_own_tokens(opener, own, reference, 8)


def test_bits_per_byte_is_measured_and_numbers_by_the_token_are_not(tokens: TokenSet, tmp_path: Path) -> None:
    few = trim(WHOLE, {}, ())
    file = tmp_path / "few.json"
    file.write_text(json.dumps(few.tokenizer))
    own: OwnTokens = in_own_tokens(tokens, FILE, file)
    session = Fixed(np.zeros((len(few.kept), len(few.kept)), np.float32))
    reference = store_tokens(Fixed(table(2048)).logits, tokens.sequences, 2048, tmp_path / "reference")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama", max_position_embeddings=512)
    facts = graph_facts(read_facts(load_model(open_tiny(checkpoint), tmp_path / "model")[0]), "float32", None)
    subject = Subject(
        facts, CPU, Opener(lambda: nullcontext(session)), Opener(None), Opener(None), tokens, reference, own=own
    )  # type: ignore[arg-type, return-value]
    rows = {(row.name, row.subject): row for row in Perplexity().measure(subject)}
    assert rows["bits_per_byte", "engine"].value == pytest.approx(np.log2(len(few.kept)), rel=1e-6), (
        "evenly likely, a token a byte"
    )
    assert rows["bits_per_byte.recovery", "engine"].value is not None
    assert rows["perplexity", "reference"].value is not None
    for name in ("perplexity", "perplexity.recovery"):
        assert rows[name, "engine"].not_measured == OTHER_TOKENS
    assert {row.not_measured for row in Agreement().measure(subject)} == {OTHER_TOKENS}


@pytest.mark.slow
def test_a_whole_build(tmp_path: Path) -> None:
    """Prune, quantize, export, build, evaluate: every pass after it lives with the smaller vocabulary."""
    from typer.testing import CliRunner

    from openclaw_opt.cli import app
    from openclaw_opt.report import read_report

    settings = ("passes=[{prune: {vocabulary: 0.25}}, {quantize: {format: int8_weight_only, algorithm: max}}, export, fuse, build]",
                "metrics=[perplexity, agreement]", "budgets={bits_per_byte.recovery: '>= 0.5'}",
                "data.calibration.samples=8", "data.evaluation.samples=8", "data.evaluation.length=128")  # fmt: skip
    more = [part for one in settings for part in ("--set", one)]
    recipe = str(ROOT / "recipes" / "int4-cpu.yaml")
    done = CliRunner().invoke(
        app, ["build", "--recipe", recipe, "-o", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *more]
    )
    assert done.exit_code == 0, done.output
    report = read_report(tmp_path / "out")
    kept = next(m for m in report.measurements if m.name == "bits_per_byte.recovery")
    assert kept.value is not None
    assert kept.value < 1
    genai = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert genai["model"]["vocab_size"] == 1536
