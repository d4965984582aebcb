"""Distillation in several processes: the same step as in one, and every way it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from openclaw_opt.errors import MachineError, VerificationError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.load import load_model
from openclaw_opt.models.spec import read_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.models.student import put_fake_quantizers
from openclaw_opt.models.training import Pair, Trained, train
from openclaw_opt.models.training_processes import Job, train_apart
from openclaw_opt.models.weights import decoder_from_checkpoint
from openclaw_opt.passes import View
from openclaw_opt.passes.distill import Distill
from tests.test_distill import CPU, SETUP, TEXT, sequences
from tests.tiny import open_tiny, write_checkpoint

STEP = replace(SETUP, accumulate=2, hidden=0.3)
ROUNDING = ("int4", 16, ("head",))


class Ready:
    """A checkpoint, and as often as asked its disturbed copy to train."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = open_tiny(write_checkpoint(folder / "checkpoint", "llama", tie_word_embeddings=True))
        self.model, _, _ = load_model(self.checkpoint, folder / "model")
        self.facts = read_facts(self.model)

    def pair(self, rounded: bool = False) -> Pair:
        student = open_model(self.model)
        assert isinstance(student, Decoder)
        generator = torch.Generator().manual_seed(1)
        for name, value in student.named_parameters():
            value.data = value.data.clone()
            if "norm" not in name:
                value.data += torch.randn(value.shape, generator=generator) * 0.02
        student.layers[0].down.weight[:, ::2] = 0
        if rounded:
            put_fake_quantizers(student, *ROUNDING)
        return Pair(student, decoder_from_checkpoint(self.checkpoint, torch.float32), (0, 1))

    def apart(self, pair: Pair, count: int, **changes: Any) -> Trained:
        report = changes.pop("report", lambda part, text: None)
        kept = changes.pop("kept", None)
        rounding = ROUNDING if changes.pop("rounded", False) else None
        job = Job(self.folder, self.checkpoint, replace(STEP, **changes), (0, 1), rounding, kept, count)
        return train_apart(pair, sequences(), job, self.facts, self.model.assets, report)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return Ready(tmp_path_factory.mktemp("processes"))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "accumulate", "rounded"), [(2, 2, False), (3, 3, True)])
def test_several_processes_take_the_steps_of_one(ready: Ready, count: int, accumulate: int, rounded: bool) -> None:
    alone, together = ready.pair(rounded), ready.pair(rounded)
    said: list[str] = []
    whole = train(alone, sequences(), replace(STEP, accumulate=accumulate), None, lambda part, text: None)
    made = ready.apart(
        together, count, accumulate=accumulate, rounded=rounded, report=lambda _, text: said.append(text)
    )
    for one, other in zip(whole.progress.curve, made.progress.curve, strict=True):
        for key in ("step", "held_back", "learning_rate"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)
        assert (one["train"] or 0) == pytest.approx(other["train"] or 0, rel=1e-5)
    assert made.progress.best_step == whole.progress.best_step > 0
    assert made.zeros == whole.zeros > 0
    assert made.stopped == whole.stopped
    for (name, ours), (_, theirs) in zip(
        alone.student.named_parameters(), together.student.named_parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5), name
    assert together.student.head.weight is together.student.embed.weight, "tied as before"
    assert len(said) == STEP.steps
    assert said[0].startswith("step 1 of 6, loss ")


@pytest.mark.slow
def test_what_ends_a_training_ends_every_process(ready: Ready, tmp_path: Path) -> None:
    broken = ready.pair()
    broken.student.layers[1].down.weight[0, 1] = float("nan")
    with pytest.raises(VerificationError, match="the loss on held-back data is nan after step 0"):
        ready.apart(broken, 2, every=100)
    assert not children()

    def kill_one(part: float, text: str) -> None:
        if text.startswith("step 3 "):
            children()[0].kill()

    with pytest.raises(MachineError, match=r"training process \d ended with SIGKILL"):
        ready.apart(ready.pair(), 2, steps=400, checkpoint_every=2, kept=tmp_path, report=kill_one)
    assert not children()
    again = ready.pair()
    resumed = ready.apart(again, 2, checkpoint_every=2, kept=tmp_path)
    assert resumed.progress.resumed[0] >= 2


def children() -> list[psutil.Process]:
    """Training processes of this one; multiprocessing's resource tracker stays."""
    own = psutil.Process().children()
    return [one for one in own if "spawn_main" in " ".join(one.cmdline())]


def test_uneven_shares_are_refused_before_any_work(ready: Ready) -> None:
    made = Distill.model_validate_json(json.dumps({"processes": 2, "accumulate": 3}))
    view = View(ready.facts.spec, CPU, "onnxruntime", TEXT, (), training=TEXT)
    (found,) = [one for one in made.check(view) if one.option == "processes"]
    assert found.what == "2 processes cannot share 3 batches a step evenly"
    assert found.fix == "accumulate: 2, or another multiple of it"


def test_more_processes_than_gpus_are_refused(ready: Ready) -> None:
    there = torch.cuda.device_count()
    with pytest.raises(MachineError, match=f"{there + 1} processes want a GPU each, and there are {there}"):
        ready.apart(ready.pair(), there + 1, device="cuda")
