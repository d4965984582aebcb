"""A student trained to say what its teacher says: loss, steps, looks at held-back data, early stop, resume.

One step is `accumulate` batches of `batch_size` sequences, each equally weighted, so that it equals one step on all of them
at once; several processes share these batches, and take one step with the sum of their gradients. Which sequences a step sees
is a function of the seed and the step alone. AdamW (https://arxiv.org/abs/1711.05101) with decay on matrices only; the learning
rate is that of `numerics.schedule`; gradients are clipped by their common norm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openclaw_opt.errors import VerificationError
from openclaw_opt.models.calibrate import Batch
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.hf import Encoder
from openclaw_opt.models.training_group import ALONE, Group
from openclaw_opt.models.training_rows import UNITS, amount, batch_of, decoder_loss, encoder_loss
from openclaw_opt.models.training_state import Progress, read_state, write_state
from openclaw_opt.numerics.distillation import divergence
from openclaw_opt.numerics.schedule import learning_rate

Report = Callable[[float, str], None]
SLOWER = "lower learning_rate, or raise warmup"


@dataclass(frozen=True)
class Setup:
    """The options of a training, every default filled in."""

    steps: int
    batch_size: int
    accumulate: int
    learning_rate: float
    warmup: int
    """Steps."""
    weight_decay: float
    clip: float
    temperature: float
    cross_entropy: float
    """Share of the next token's cross-entropy in the loss; the rest is the divergence."""
    hidden: float
    """Weight of the hidden states' difference, added to the rest."""
    every: int
    patience: int
    checkpoint_every: int
    keep_zeros: bool
    seed: int
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Samples:
    """Samples as `models.training_rows` lays them out for the task."""

    training: Tensor
    held_back: Tensor
    task: str = "decoder"

    def amount(self, rows: int) -> int:
        """Tokens (without padding) or images in so many rows to train on, about."""
        return round(rows * amount(self.training, self.task))


@dataclass(frozen=True)
class Pair:
    """A student, its teacher, and which of the teacher's layers each of the student's is compared with."""

    student: nn.Module
    teacher: nn.Module
    layers: Sequence[int] = ()


@dataclass(frozen=True)
class Trained:
    """What came of it; the student holds the best weights."""

    progress: Progress
    stopped: Literal["steps", "patience"]
    zeros: int
    """Weights that were zero and stayed so."""


def train(pair: Pair, data: Samples, setup: Setup, kept: Path | None, report: Report, group: Group = ALONE) -> Trained:
    """Train `pair.student` in place, on `setup.device`; it ends on the CPU with its best weights, without gradients.

    Args:
        kept: folder of the state that a killed run left and this one goes on from; None to keep none.
        group: the processes that call this with the same arguments, each with models of its own.

    Raises:
        VerificationError: a loss or gradient is not finite (the step is named), or no look was better than the first.
    """
    student, teacher = pair.student.to(setup.device), pair.teacher.to(setup.device).requires_grad_(False)
    own(student)
    optimizer = optimizer_of(student, setup)
    run = Run(Pair(student, teacher, pair.layers), data, setup, optimizer, report, group)
    found = read_state(kept, student, optimizer) if kept is not None else None
    group.wait()  # nobody writes a new state while another still reads the old one
    if found is None:
        run.look()
    else:
        run.progress, run.best = found
        run.progress.resumed.append(run.progress.step)
    while not run.over:
        run.step()
        if kept is not None and group.is_first and run.progress.step % setup.checkpoint_every == 0 and not run.over:
            write_state(kept, run.progress, student, optimizer, run.best)
    run.refuse_worse()
    with torch.no_grad():
        for name, value in student.named_parameters():
            value.copy_(run.best[name])
    student.to("cpu").requires_grad_(False)
    zeros = sum(int((~mask).sum()) for mask in run.masks.values())
    return Trained(run.progress, "steps" if run.progress.step == setup.steps else "patience", zeros)


def own(module: nn.Module) -> None:
    """Give every parameter memory of its own (a file may be mapped there) and gradients; shared ones stay shared."""
    with torch.no_grad():
        for value in module.parameters():
            value.data = value.data.clone()
            value.requires_grad_(True)


def optimizer_of(student: nn.Module, setup: Setup) -> torch.optim.AdamW:
    """AdamW; norms, biases and other vectors are not decayed."""
    values = list(student.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [value for value in values if value.ndim > 1], "weight_decay": setup.weight_decay},
        {"params": [value for value in values if value.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=setup.learning_rate, foreach=False)


def chosen(step: int, part: int, setup: Setup, samples: int) -> Tensor:
    """Indices of the sequences in batch `part` of a step: every sequence once before any comes again."""
    first = (step * setup.accumulate + part) * setup.batch_size
    places = range(first, first + setup.batch_size)
    orders = {epoch: _order(setup.seed, epoch, samples) for epoch in {place // samples for place in places}}
    return torch.stack([orders[place // samples][place % samples] for place in places])


def _order(seed: int, epoch: int, samples: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def loss_of(pair: Pair, batch: Batch, setup: Setup) -> Tensor:
    """The loss of one batch, a scalar."""
    student, teacher = pair.student, pair.teacher
    if isinstance(student, Decoder) and isinstance(teacher, Decoder):
        with torch.no_grad():
            logits, states = outputs(teacher, batch, keep=setup.hidden > 0)
        theirs = logits, [states[i] for i in pair.layers] if states else []
        ours = outputs(student, batch, keep=setup.hidden > 0)
        return decoder_loss(ours, theirs, batch[0], setup.temperature, setup.cross_entropy, setup.hidden)
    with torch.no_grad():
        wanted = teacher(*batch)
    if isinstance(student, Encoder):
        return encoder_loss(student(*batch), wanted, batch[1], setup.hidden)
    return divergence(student(*batch), wanted, setup.temperature)


def outputs(decoder: Decoder, batch: Batch, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits [batch, length, vocab], and if they are kept the hidden states after every layer."""
    x, contexts = decoder.entered(*batch)
    states = []
    for layer, context in zip(decoder.layers, contexts, strict=True):
        x = layer(x, *context)[0]
        if keep:
            states.append(x)
    return decoder.logits(x), states


class Run:
    """A training under way: what changes from step to step."""

    def __init__(
        self,
        pair: Pair,
        data: Samples,
        setup: Setup,
        optimizer: torch.optim.AdamW,
        report: Report,
        group: Group = ALONE,
    ) -> None:
        self.pair, self.data, self.setup, self.optimizer, self.report = pair, data, setup, optimizer, report
        self.group = group
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        named = dict(pair.student.named_parameters()) if setup.keep_zeros else {}
        matrices = {name: value.detach() != 0 for name, value in named.items() if value.ndim > 1}
        self.masks = {name: mask for name, mask in matrices.items() if not bool(mask.all())}
        """Of matrices that hold zeros: where they do not."""

    @property
    def over(self) -> bool:
        return self.progress.step >= self.setup.steps or self.progress.stale >= self.setup.patience

    def step(self) -> None:
        """One optimizer step, and a look at the held-back data where it is time for one."""
        began, setup, step = time.monotonic(), self.setup, self.progress.step
        rate = learning_rate(step, setup.steps, setup.warmup, setup.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.group.total(sum(self._backward(step, part) for part in self.group.share(setup.accumulate)))
        if not isfinite(loss):
            raise VerificationError(f"the loss is {loss} at step {step + 1}", fix=SLOWER)
        self._finish_gradients(step)
        self.optimizer.step()
        self.progress.step += 1
        self.progress.losses.append(loss)
        self.progress.seconds += time.monotonic() - began
        if self.progress.step % setup.every == 0 or self.progress.step == setup.steps:
            self.look(rate)
        self._say(loss)

    def _backward(self, step: int, part: int) -> float:
        rows = self.data.training[chosen(step, part, self.setup, len(self.data.training))]
        loss = self._loss(rows) / self.setup.accumulate
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _finish_gradients(self, step: int) -> None:
        """Those of all processes together; zeros get none; then the common norm is clipped."""
        for name, value in self.pair.student.named_parameters():
            if value.grad is not None:
                self.group.add_up(value.grad)
            if name in self.masks and value.grad is not None:
                value.grad.mul_(self.masks[name])
        norm = float(nn.utils.clip_grad_norm_(self.pair.student.parameters(), self.setup.clip))
        if not isfinite(norm):
            raise VerificationError(f"the gradient's norm is {norm} at step {step + 1}", fix=SLOWER)

    def _loss(self, rows: Tensor) -> Tensor:
        wide = self.setup.precision == "float32"
        with torch.autocast(self.setup.device.split(":")[0], torch.bfloat16, enabled=not wide):
            return loss_of(self.pair, batch_of(self.pair.student, rows.to(self.setup.device)), self.setup)

    @torch.no_grad()
    def look(self, rate: float = 0.0) -> None:
        """The loss on the held-back data; the weights are kept if it is the least so far."""
        parts = torch.split(self.data.held_back, self.setup.batch_size)
        own = [parts[i] for i in self.group.share(len(parts))]
        total = self.group.total(sum(float(self._loss(part)) * len(part) for part in own))
        now, known = total / len(self.data.held_back), self.progress
        if not isfinite(now):
            raise VerificationError(f"the loss on held-back data is {now} after step {known.step}", fix=SLOWER)
        mean = sum(known.losses) / len(known.losses) if known.losses else None
        known.curve.append({"step": known.step, "train": mean, "held_back": now, "learning_rate": rate})
        known.losses = []
        if now < known.best_loss:
            known.best_loss, known.best_step, known.stale = now, known.step, 0
            self.best = {name: value.detach().clone() for name, value in self.pair.student.named_parameters()}
        else:
            known.stale += 1

    def refuse_worse(self) -> None:
        """Raises VerificationError where no look was better than the first."""
        known = self.progress
        if known.best_step == 0:
            first, last = known.curve[0], known.curve[-1]
            raise VerificationError(
                f"training made the held-back loss no better: {first['held_back']:.4g} at step 0, "
                f"{last['held_back']:.4g} at step {last['step']}",
                fix="lower learning_rate, or give more data.training",
            )

    def _say(self, loss: float) -> None:
        known, setup = self.progress, self.setup
        done = self.data.amount(known.step * setup.accumulate * setup.batch_size)
        speed = f"{done / max(known.seconds, 1e-9):,.0f} {UNITS[self.data.task]}/s"
        self.report(known.step / setup.steps, f"step {known.step} of {setup.steps}, loss {loss:.4f}, {speed}")
