"""Distill of encoders and vision models: the losses' closed forms, padding that does not matter, what has no place, whole passes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openclaw_opt.artifacts import Model
from openclaw_opt.data import Source
from openclaw_opt.models import calibrate
from openclaw_opt.models.calibrate import Calibration, sentence_batches
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.store import open_model
from openclaw_opt.models.student import teacher_of
from openclaw_opt.models.training import Pair, Samples, train
from openclaw_opt.models.training_rows import amount, batch_of, encoder_loss, parted, rows_of
from openclaw_opt.passes import View, Work
from openclaw_opt.passes.distill import Distill, FakeQuantize, Student
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.report import read_report
from tests.passes_alone import CPU, Alone, silent
from tests.test_distill import SETUP

ROOT = Path(__file__).parent.parent
TEXT = Source.model_construct(split="calibration", samples=24, length=24, seed=0)


def sentences(samples: int = 24, longest: int = 24) -> Calibration:
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 256, (samples, longest), generator=chance)
    mask = (torch.arange(longest) < torch.randint(4, longest, (samples, 1), generator=chance)).long()
    return Calibration(sentence_batches(ids, mask, 4), samples, int(mask.sum()))


def images(samples: int = 120, size: int = 16) -> Calibration:
    pixels = torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(2))
    return Calibration(tuple((part,) for part in torch.split(pixels, 4)), samples, 0)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def pruned(bert: Alone) -> Model:
    return bert(Prune(ffn=0.5, heads=0.5), batches=sentences()).artifact


def drift(bert: Alone, model: Model) -> float:
    """Mean of 1 − cosine against the untouched checkpoint."""
    with torch.no_grad():
        pairs = [
            (teacher_of(bert.checkpoint)(*batch)[1], open_model(model)(*batch)[1]) for batch in sentences().batches
        ]
    return float(torch.cat([1 - torch.cosine_similarity(a, b) for a, b in pairs]).mean())


# The losses and the rows.


def test_of_embeddings_of_length_one_the_loss_is_a_cosine() -> None:
    chance = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.functional.normalize(torch.randn(5, 8, generator=chance), dim=-1) for _ in range(2))
    states = torch.zeros(5, 3, 8)
    loss = encoder_loss((states, ours), (states, theirs), torch.ones(5, 3), 0.0)
    assert float(loss) == pytest.approx(float((2 - 2 * (ours * theirs).sum(-1)).mean()), rel=1e-5)


def test_hidden_states_of_padding_do_not_count() -> None:
    chance = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 4, 8, generator=chance), torch.randn(2, 4, 8, generator=chance)
    embedding, mask = torch.ones(2, 8), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    loss = encoder_loss((ours, embedding), (theirs, embedding), mask, 2.0)
    gaps = ((ours - theirs).square().sum(-1) / theirs.square().sum(-1))[mask != 0]
    assert float(loss) == pytest.approx(2 * float(gaps.mean()), rel=1e-5)
    ours[mask == 0] = 1e6
    assert float(encoder_loss((ours, embedding), (theirs, embedding), mask, 2.0)) == pytest.approx(float(loss))


def test_rows_hold_the_sentences_and_batches_are_cut_to_the_longest(bert: Alone) -> None:
    data = sentences()
    rows = rows_of(data, "encoder")
    assert rows.shape[:2] == (24, 2)
    assert int(rows[:, 1].sum()) == data.tokens == round(24 * amount(rows, "encoder"))
    ids, mask, *_ = batch_of(open_model(bert.model), rows[:4])
    assert ids.shape[1] == int(mask.sum(1).max()) == data.batches[0][0].shape[1]
    assert torch.equal(ids, data.batches[0][0])


def test_sentences_held_back_are_of_every_length() -> None:
    rows = rows_of(sentences(), "encoder")
    rest, held = parted(rows, 6, "encoder")
    assert (len(rest), len(held)) == (18, 6)
    lengths = held[:, 1].sum(1)
    assert int(lengths.min()) == int(rows[:, 1].sum(1).min())
    assert int(lengths.max()) == int(rows[:, 1].sum(1).max())


# What has no place.


BERT, VIT = (
    {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
     "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 64, "type_vocab_size": 2},
    {"architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 64, "num_hidden_layers": 2,
     "num_attention_heads": 4, "intermediate_size": 128, "image_size": 32, "patch_size": 8, "num_channels": 3},
)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "config", "wanted"),
    [
        (
            {"student": {"layers": 1}},
            BERT,
            ("an encoder has no student", "student", "prune: {layers: …} takes layers out"),
        ),
        ({"cross_entropy": 0.5}, BERT, ("an encoder has no cross_entropy", "cross_entropy", "leave it out")),
        ({"temperature": 2.0}, BERT, ("an encoder has no temperature", "temperature", "leave it out")),
        ({"hidden": 1.0}, VIT, ("a vision model has no hidden", "hidden", "leave it out")),
        ({"cross_entropy": 0.5}, VIT, ("a vision model has no cross_entropy", "cross_entropy", "leave it out")),
    ],
)
def test_options_without_a_place_are_refused(options: Any, config: Any, wanted: tuple[str, str, str]) -> None:
    earlier = () if "student" in options else (Prune(ffn=0.4),)
    part = Distill(**{**options, **({"student": Student(layers=1)} if "student" in options else {})})
    found = part.check(View(spec_from_config(config), CPU, "onnxruntime", TEXT, earlier))
    assert wanted in [(one.what, one.option, one.fix) for one in found]


def test_an_encoder_and_a_vision_model_can_be_trained() -> None:
    assert Distill(hidden=1.0).check(View(spec_from_config(BERT), CPU, "onnxruntime", TEXT, (Prune(ffn=0.4),))) == []
    fake = Distill(fake_quantize=FakeQuantize(format="int8_weight_only"))
    later = (Quantize(format="int8_weight_only"),)
    assert fake.check(View(spec_from_config(VIT), CPU, "onnxruntime", TEXT, (), later=later)) == []


# Whole passes on random models.


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_a_pruned_encoder_comes_nearer_to_its_teacher(bert: Alone, pruned: Model, hidden: float) -> None:
    part = Distill(steps=30, batch_size=6, learning_rate=1e-3, every=5, hidden=hidden)
    done = bert(part, pruned, sentences())
    curve = done.details["curve"]
    assert curve[-1]["held_back"] < 0.5 * curve[0]["held_back"]
    assert drift(bert, done.artifact) < 0.5 * drift(bert, pruned)
    assert "tokens): loss on held-back data" in done.changed
    assert done.details["sequences"] == {"training": 18, "held_back": 6}
    assert done.details["parameters"] < done.details["parameters_before"]


def test_a_vision_model_is_trained_through_the_rounding_that_quantize_does(tmp_path: Path) -> None:
    vit = Alone(tmp_path, "vit")
    fake = FakeQuantize(format="int4", block=32)
    part = Distill(steps=30, batch_size=16, learning_rate=3e-4, every=5, fake_quantize=fake)
    done = vit(part, batches=images())
    assert done.details["images"] > 0
    assert done.details["fake_quantized"]
    assert not any("classifier" in name for name in done.details["fake_quantized"])
    rounded = [vit(Quantize(format="int4", block=32, algorithm="rtn"), model) for model in (vit.model, done.artifact)]
    with torch.no_grad():
        batch = images().batches[0]
        wanted = open_model(vit.model)(*batch)
        before, after = (float((open_model(one.artifact)(*batch) - wanted).norm()) for one in rounded)
    assert after < before


def test_a_killed_training_of_an_encoder_ends_as_one_that_was_not(bert: Alone, pruned: Model, tmp_path: Path) -> None:
    rows = rows_of(sentences(), "encoder")
    data, setup = Samples(*parted(rows, 6, "encoder"), "encoder"), replace(SETUP, steps=8, learning_rate=1e-3)

    class Killed(Exception):
        pass

    def kill(part: float, text: str) -> None:
        if text.startswith("step 5"):
            raise Killed

    whole, again, fresh = (open_model(pruned) for _ in range(3))
    train(Pair(whole, teacher_of(bert.checkpoint)), data, setup, None, silent)
    with pytest.raises(Killed):
        train(Pair(again, teacher_of(bert.checkpoint)), data, setup, tmp_path, kill)
    made = train(Pair(fresh, teacher_of(bert.checkpoint)), data, setup, tmp_path, silent)
    assert made.progress.resumed == [4]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), fresh.state_dict().values(), strict=True))


@pytest.mark.slow
def test_two_processes_train_an_encoder_as_one_does(
    bert: Alone, pruned: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for processes in (1, 2):
        monkeypatch.setattr(calibrate, "load_calibration", lambda *_: sentences())
        out = bert.folder / f"of{processes}"
        work = Work(out, bert.checkpoint, CPU, "onnxruntime", TEXT, bert.folder / "cache", progress=silent)
        part = Distill(steps=4, batch_size=4, accumulate=2, processes=processes, learning_rate=1e-3, every=2)
        made.append(open_model(part.run(pruned, work).artifact).state_dict())
    assert all(torch.allclose(made[0][name], made[1][name], atol=1e-5) for name in made[0])


@pytest.mark.slow  # the real checkpoint
def test_minilm_pruned_and_distilled_keeps_more_than_pruned_alone(tmp_path: Path) -> None:
    """By the command line, to an engine; evaluation data is of another split than both that training sees."""
    cosines = []
    for between in ("", "{distill: {steps: 40, batch_size: 8, every: 10}}, "):
        settings = [
            f"passes=[{{prune: {{ffn: 0.4}}}}, {between}{{quantize: {{format: int8_weight_only}}}}, export, fuse, build]"
        ]
        for split in ("calibration", "evaluation"):
            settings.append(
                f"data.{split}={json.dumps({'source': 'python-docstrings', 'split': split, 'samples': 64, 'length': 48})}"
            )
        settings += ["metrics=[embedding]", "budgets={}"]
        command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", "recipes/minilm-int8-cpu.yaml"]
        command += [part for value in settings for part in ("--set", value)]
        command += ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / f"out{len(cosines)}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        report = read_report(tmp_path / f"out{len(cosines)}")
        cosines.append(next(row.value for row in report.measurements if row.name == "embedding.cosine.mean"))
    assert cosines[1] > cosines[0] + 0.01, cosines
