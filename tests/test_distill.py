"""Distil: losses and schedule against closed forms, the trainer's contracts (accumulation, resume, zeros, early stop), students,
and what cannot be trained, refused by name."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import cos, log, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openclaw_opt import interrupts
from openclaw_opt.data import Source
from openclaw_opt.errors import VerificationError
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.spec import DecoderSpec, LayerSpec
from openclaw_opt.models.student import put_fake_quantizers, student_of
from openclaw_opt.models.training import Pair, Samples, Setup, chosen, loss_of, optimizer_of, train
from openclaw_opt.numerics.distillation import divergence, hidden_difference, likelihood
from openclaw_opt.numerics.fake_quant import fake_quantized, rounded
from openclaw_opt.numerics.grid import grid_of
from openclaw_opt.numerics.schedule import learning_rate
from openclaw_opt.numerics.spacing import evenly, matched
from openclaw_opt.passes import View
from openclaw_opt.passes.distill import Distill, FakeQuantize, Student
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.passes.rotate import Rotate
from openclaw_opt.targets import TARGETS

CPU = replace(TARGETS["l4"], name="host", title="a CPU", compute=(0, 0), backend="onnxruntime")
TEXT = Source.model_construct(split="calibration", samples=8, length=64, seed=0)
LAYER = LayerSpec(q_heads=4, kv_heads=2, ffn=64, rope="default")
SETUP = Setup(
    steps=6, batch_size=2, accumulate=1, learning_rate=3e-3, warmup=2, weight_decay=0.01, clip=1.0, temperature=1.0,
    cross_entropy=0.0, hidden=0.0, every=2, patience=9, checkpoint_every=2, keep_zeros=True, seed=3,
)  # fmt: skip


def decoder_of(*layers: LayerSpec, seed: int = 0, std: float = 0.2, **changes: Any) -> Decoder:
    """A random decoder; hidden 32, head_dim 8."""
    spec = DecoderSpec(
        family="llama", vocab=64, hidden=32, head_dim=8, layers=layers, context=64, norm_eps=1e-6, activation="silu",
        attention_scale=0.35, ropes={"default": {"dim": 8}}, **changes,
    )  # fmt: skip
    torch.manual_seed(seed)
    decoder = Decoder(spec).eval().requires_grad_(False)
    for name, value in decoder.named_parameters():
        if "norm" not in name:
            value.copy_(torch.randn_like(value) * std)
    return decoder


def noisy(decoder: Decoder, seed: int = 1) -> Decoder:
    """A copy whose weights were disturbed: what training can mend."""
    made = student_of(decoder, range(len(decoder.layers)))
    torch.manual_seed(seed)
    for name, value in made.named_parameters():
        if "norm" not in name:
            value.add_(torch.randn_like(value) * 0.05)
    return made


def sequences(samples: int = 8, held: int = 4) -> Samples:
    ids = torch.randint(64, (samples + held, 12), generator=torch.Generator().manual_seed(7))
    return Samples(ids[:samples], ids[samples:])


def silent(part: float, text: str) -> None:
    assert 0 <= part <= 1
    assert "tokens/s" in text


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_and_its_gradient_are_the_closed_form(temperature: float) -> None:
    student = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]], dtype=torch.float32, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.5, -0.5], [0.0, 2.0, 0.1]])
    p, q = (teacher / temperature).softmax(-1), (student.detach() / temperature).softmax(-1)
    loss = divergence(student, teacher, temperature)
    assert loss.item() == pytest.approx(temperature**2 * float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    loss.backward()
    assert torch.allclose(student.grad, temperature * (q - p) / 2, atol=1e-6)  # T²·(1/T)·(q − p), two rows


def test_the_gradient_keeps_its_size_at_a_high_temperature() -> None:
    """Hinton's reason for T²: for large T the gradient tends to (student − teacher) / classes, whatever T is."""
    student, teacher = torch.zeros(1, 4, requires_grad=True), torch.tensor([[0.1, -0.1, 0.2, -0.2]])
    divergence(student, teacher, 100.0).backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 4, atol=1e-4)


def test_the_other_losses() -> None:
    logits = torch.zeros(1, 3, 5)
    assert likelihood(logits, torch.tensor([[0, 1, 2]])).item() == pytest.approx(log(5))
    a = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert hidden_difference([a, 2 * a], [a, a]).item() == pytest.approx(0.5)  # 0 and 1
    with pytest.raises(ValueError, match="no pair"):
        hidden_difference([], [])


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 10, 4, 2.0) for step in range(11)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[7] == pytest.approx(1 + cos(pi * 3 / 6))
    assert rates[10] == pytest.approx(0, abs=1e-12)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(0, 3, 0, 1.0) == 1.0


def test_which_layers() -> None:
    assert evenly(3, 6) == (0, 3, 5)
    assert evenly(2, 6) == (0, 5)
    assert evenly(1, 6) == (0,)
    for of in range(1, 30):
        for count in range(2, of + 1):
            made = evenly(count, of)
            assert (made[0], made[-1]) == (0, of - 1)
            assert len(set(made)) == count
            gaps = {b - a for a, b in pairwise(made)}
            assert max(gaps) - min(gaps) <= 1
            assert matched(count, of)[-1] == of - 1
    assert matched(3, 6) == (1, 3, 5)
    with pytest.raises(ValueError, match="7 of 6"):
        evenly(7, 6)


@pytest.mark.parametrize(("kind", "block"), [("int4", 16), ("uint4", 16), ("int8", None)])
def test_fake_quantizers_round_to_the_grid_and_pass_the_gradient(kind: str, block: int | None) -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    made = fake_quantized(weight, kind, block)
    if block is not None:
        assert torch.allclose(made, grid_of(weight.detach(), kind, block).rounded(weight.detach()), atol=1e-6)
    else:
        step = weight.detach().abs().amax(1, keepdim=True) / 127
        assert torch.allclose(made, (weight.detach() / step).round() * step, atol=1e-6)
    assert not torch.equal(made, weight)
    assert torch.allclose(rounded(made.detach(), kind, block), made.detach(), atol=1e-6)
    out = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    (made * out).sum().backward()
    assert torch.equal(weight.grad, out)


def test_students_have_the_teachers_layers() -> None:
    teacher = decoder_of(*[LAYER] * 4, tied=True)
    made = student_of(teacher, (0, 3))
    assert len(made.spec.layers) == 2
    assert torch.equal(made.layers[1].down.weight, teacher.layers[3].down.weight)
    assert made.head.weight is made.embed.weight
    made.embed.weight.zero_()
    assert teacher.embed.weight.abs().max() > 0


def test_a_step_of_several_batches_is_one_big_batch() -> None:
    teacher = decoder_of(LAYER, LAYER)
    made = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        student = noisy(teacher)
        setup = replace(SETUP, batch_size=batch_size, accumulate=accumulate, hidden=0.5, cross_entropy=0.3)
        train(Pair(student, teacher, (0, 1)), sequences(16), setup, None, silent)
        made.append(weights(student))
    for name, value in made[0].items():
        assert torch.allclose(value, made[1][name], atol=2e-5), name
    assert not same(made[0], weights(noisy(teacher)))


def test_every_sequence_comes_once_before_any_comes_again() -> None:
    setup = replace(SETUP, batch_size=3, accumulate=2)
    drawn = torch.cat([chosen(step, part, setup, 12) for step in range(4) for part in range(2)])
    assert sorted(drawn[:12].tolist()) == sorted(drawn[12:].tolist()) == list(range(12))
    assert drawn[:12].tolist() != drawn[12:].tolist()


class Killed(interrupts.Interrupted):
    pass


@pytest.mark.parametrize("tied", [False, True])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    teacher = decoder_of(LAYER, LAYER, tied=tied)
    whole, again = noisy(teacher), noisy(teacher)
    for student in (whole, again):
        student.layers[0].down.weight[:, ::2] = 0
    straight = train(Pair(whole, teacher, ()), sequences(), SETUP, None, silent)

    def kill(part: float, text: str) -> None:
        if text.startswith("step 5 "):
            raise Killed(15)

    with pytest.raises(Killed):
        train(Pair(again, teacher, ()), sequences(), SETUP, tmp_path, kill)
    assert [file.name for file in tmp_path.iterdir()] == ["training.safetensors"]
    fresh = noisy(teacher)
    fresh.layers[0].down.weight[:, ::2] = 0
    resumed = train(Pair(fresh, teacher, ()), sequences(), SETUP, tmp_path, silent)
    assert resumed.progress.resumed == [4]
    assert resumed.progress.curve == straight.progress.curve
    assert same(weights(fresh), weights(whole))


def test_a_damaged_state_is_not_gone_on_from(tmp_path: Path) -> None:
    teacher = decoder_of(LAYER)
    (tmp_path / "training.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken!")
    made = train(Pair(noisy(teacher), teacher, ()), sequences(), SETUP, tmp_path, silent)
    assert made.progress.resumed == []


@pytest.mark.parametrize("keep", [True, False])
def test_zeros_stay_zero(keep: bool) -> None:
    teacher = decoder_of(LAYER, LAYER)
    student = noisy(teacher)
    mask = torch.rand(student.layers[1].gate_up.weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    student.layers[1].gate_up.weight[mask] = 0
    made = train(Pair(student, teacher, ()), sequences(), replace(SETUP, keep_zeros=keep), None, silent)
    left = int((student.layers[1].gate_up.weight == 0).sum())
    assert left == (int(mask.sum()) if keep else 0)
    assert made.zeros == left


def test_tied_heads_stay_tied_and_widths_may_differ() -> None:
    teacher = decoder_of(LAYER, LAYER, tied=True)
    narrow = LAYER.model_copy(update={"ffn": 32, "q_heads": 2, "kv_heads": 1})
    student = decoder_of(narrow, LAYER, tied=True, seed=0)
    train(Pair(student, teacher, (0, 1)), sequences(), replace(SETUP, hidden=1.0), None, silent)
    assert student.head.weight is student.embed.weight
    assert not any(value.requires_grad for value in student.parameters())


def test_norms_are_not_decayed() -> None:
    groups = optimizer_of(decoder_of(LAYER, qkv_bias=True), SETUP).param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert {value.ndim for value in groups[0]["params"]} == {2}
    assert {value.ndim for value in groups[1]["params"]} == {1}


def test_the_best_weights_are_returned_and_training_stops_early() -> None:
    teacher = decoder_of(LAYER, LAYER)
    student, data = noisy(teacher), sequences()
    setup = replace(SETUP, steps=60, learning_rate=1e-2, every=1, patience=3, batch_size=4)
    made = train(Pair(student, teacher, ()), data, setup, None, silent)
    held = [row["held_back"] for row in made.progress.curve]
    assert made.progress.best_loss == min(held)
    assert made.stopped == "patience"
    assert made.progress.step == made.progress.best_step + 3 < 60
    ids = data.held_back
    now = loss_of(Pair(student, teacher, ()), (ids, torch.ones_like(ids), torch.arange(12).expand_as(ids)), setup)
    assert float(now) == pytest.approx(min(held), rel=1e-4)


def test_training_that_mends_nothing_is_an_error() -> None:
    teacher = decoder_of(LAYER, LAYER)
    with pytest.raises(
        VerificationError, match=r"training made the held-back loss no better: .* at step 0, .* at step 6"
    ):
        train(Pair(noisy(teacher), teacher, ()), sequences(), replace(SETUP, learning_rate=10.0), None, silent)


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    teacher, data = decoder_of(LAYER), sequences()
    student = noisy(teacher)
    student.embed.weight[data.training[chosen(1, 0, SETUP, 8)][0, 5]] = float("inf")
    held = torch.full_like(data.held_back, int(data.training[chosen(0, 0, SETUP, 8)][0, 0]))
    with pytest.raises(VerificationError, match=r"the loss is nan at step 2\n") as caught:
        train(Pair(student, teacher, ()), Samples(data.training, held), SETUP, None, silent)
    assert caught.value.fix == "lower learning_rate, or raise warmup"


def test_training_for_the_rounding_beats_rounding() -> None:
    teacher, data = decoder_of(LAYER, LAYER), sequences(64, 16)
    student = student_of(teacher, (0, 1))
    names = put_fake_quantizers(student, "int4", 16, ("head",))
    assert len(names) == 8
    setup = replace(SETUP, steps=60, batch_size=8, every=10, learning_rate=1e-3)
    made = train(Pair(student, teacher, ()), data, setup, None, silent)
    first = made.progress.curve[0]["held_back"]
    assert made.progress.best_loss < 0.8 * first
    with pytest.raises(ValueError, match=r"layers\.0\.qkv: blocks of 24 do not divide its 32 inputs"):
        put_fake_quantizers(student_of(teacher, (0, 1)), "int4", 24, ())


def view(*earlier: Any, later: Any = (), spec: Any = None, **changes: Any) -> View:
    spec = spec or decoder_of(*[LAYER] * 6).spec
    return View(spec, CPU, "onnxruntime", **{"calibration": TEXT, "earlier": earlier, "later": tuple(later), **changes})


INT4 = FakeQuantize(format="int4", block=32)
RTN = Quantize(format="int4", algorithm="rtn", block=32)
CHECKS = [
    (Distill(), view(),
     "", "the student is the checkpoint itself: there is nothing to learn",
     "put it after prune, or give student or fake_quantize"),
    (Distill(), view(Quantize(format="int8")),
     "", "quantized weights cannot be trained",
     "put distill before quantize"),
    (Distill(), view(Prune(ffn=0.5), calibration=None),
     "", "distill holds a part of the calibration data back, and there is none",
     "add `calibration` to `data`"),
    (Distill(cross_entropy=1.0, temperature=2.0), view(Prune(ffn=0.5)),
     "temperature", "temperature has no effect: cross_entropy 1 leaves no share of the loss to the teacher's distributions",
     "leave it out, or lower cross_entropy"),
    (Distill(fake_quantize=INT4), view(later=[Quantize(format="int4", block=64, algorithm="rtn")]),
     "fake_quantize", "fake_quantize has block 32, the quantize after it 64",
     "quantize: {block: 32}"),
    (Distill(held_back=0.95), view(Prune(ffn=0.5)),
     "held_back", "0.95 of 8 calibration sequences leaves none to train on",
     "raise data.calibration.samples, or add `training` to `data`"),
    (Distill(student=Student(layers=6)), view(),
     "student", "a student of 6 layers does not fit a teacher of 6",
     "layers: 1 to 5"),
    (Distill(student=Student(layers=0)), view(),
     "student", "a student of 0 layers does not fit a teacher of 6",
     "layers: 1 to 5"),
    (Distill(student=Student(layers=(0, 6))), view(),
     "student", "layers [0, 6] are no rising choice of some of the teacher's 0 to 5",
     "layers: [0, 3, 5]"),
    (Distill(student=Student(layers=(2, 0))), view(),
     "student", "layers [2, 0] are no rising choice of some of the teacher's 0 to 5",
     "layers: [0, 3, 5]"),
    (Distill(student=Student(layers=3)), view(Prune(ffn=0.5)),
     "student", "a student starts from the checkpoint's layers: what prune did before has no effect",
     "leave out student, or prune"),
    (Distill(hidden=1.0), view(Prune(ffn=0.5), Rotate()),
     "hidden", "rotated hidden states cannot be compared with the checkpoint's",
     "put rotate after distill"),
    (Distill(fake_quantize=INT4), view(),
     "fake_quantize", "fake_quantize without a quantize after it",
     "add quantize: {format: int4, algorithm: rtn}"),
    (Distill(fake_quantize=INT4), view(later=[Quantize(format="int4", block=32)]),
     "fake_quantize", "fake_quantize has algorithm rtn, the quantize after it gptq",
     "quantize: {algorithm: rtn}"),
    (Distill(fake_quantize=INT4), view(later=[Quantize(format="int8")]),
     "fake_quantize", "fake_quantize has format int4, the quantize after it int8",
     "quantize: {format: int4}"),
    (Distill(fake_quantize=FakeQuantize(format="int4", block=64)), view(later=[RTN]),
     "fake_quantize", "fake_quantize has block 64, the quantize after it 32",
     "quantize: {block: 64}"),
    (Distill(fake_quantize=FakeQuantize(format="int4", block=32, keep=())), view(later=[RTN]),
     "fake_quantize", "fake_quantize has keep [], the quantize after it ['head']",
     "the same keep in both"),
    (Distill(fake_quantize=FakeQuantize(format="int8_weight_only", block=32)), view(later=[RTN]),
     "fake_quantize", "block has no effect with int8_weight_only",
     "leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "seen", "option", "what", "fix"), CHECKS)
def test_what_cannot_be_trained_is_said_before_work(
    part: Distill, seen: View, option: str, what: str, fix: str
) -> None:
    (found,) = part.check(seen)
    assert (found.option, found.what, found.fix) == (option, what, fix)


@pytest.mark.parametrize(
    ("part", "seen"),
    [
        (Distill(), view(Prune(ffn=0.5))),
        (Distill(student=Student(layers=3)), view()),
        (Distill(student=Student(layers=(0, 2, 5))), view()),
        (Distill(fake_quantize=INT4), view(later=[RTN])),
        (Distill(cross_entropy=1.0), view()),
    ],
)
def test_what_can_be_trained(part: Distill, seen: View) -> None:
    assert part.check(seen) == []
