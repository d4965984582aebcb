"""distill: train a smaller or rounded model to say what the untouched checkpoint says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from openclaw_opt.artifacts import MODEL_OF, Model
from openclaw_opt.errors import RecipeError
from openclaw_opt.formats import FORMATS
from openclaw_opt.numerics.spacing import evenly, matched
from openclaw_opt.passes import Complaint, Done, Kind, Pass, View, Work
from openclaw_opt.passes.quantize import DEFAULT_KEEP

if TYPE_CHECKING:
    from torch import nn

    from openclaw_opt.models.spec import DecoderSpec, HfSpec, ModelFacts
    from openclaw_opt.models.training import Samples, Setup, Trained
    from openclaw_opt.models.training_processes import Job
    from openclaw_opt.passes.quantize import Quantize

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PLAIN = {"int4": "rtn", "uint4": "rtn", "int8_weight_only": "max"}
"""Formats of weights alone, and the algorithm of `quantize` whose grid the fake-quantizers have."""
KINDS = {"int4": "int4", "uint4": "uint4", "int8_weight_only": "int8"}
"""The codes of each."""
OPTIONS = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Student(BaseModel):
    """A student made of the checkpoint's own layers."""

    model_config = OPTIONS

    layers: int | tuple[int, ...]
    """How many layers, taken evenly spaced with the first and the last among them; or which, counted from 0."""

    def chosen(self, of: int) -> tuple[int, ...]:
        """Indices of the teacher's layers."""
        return evenly(self.layers, of) if isinstance(self.layers, int) else self.layers


class FakeQuantize(BaseModel):
    """What the `quantize` after it will do to weights; training sees them so."""

    model_config = OPTIONS

    format: Literal["int4", "uint4", "int8_weight_only"]
    """As in `quantize`, one that rounds weights alone: int4, uint4 or int8_weight_only."""
    block: Count | None = None
    """As in `quantize`. Default: the format's."""
    keep: tuple[str, ...] | None = None
    """As in `quantize`, with its defaults."""

    def block_size(self) -> int | None:
        return self.block or FORMATS[self.format].block

    def kept(self, task: str) -> tuple[str, ...]:
        return DEFAULT_KEEP[task] if self.keep is None else self.keep


class Distill(Pass):
    """Train the model so far, or a student of fewer layers, on what the untouched checkpoint says.

    loss = (1 − cross_entropy) · T² · KL(teacher ‖ student at temperature T) + cross_entropy · CE + hidden · ‖hidden states‖

    of a decoder's next token, or of a classifier's classes (KL alone); of an encoder ‖embeddings‖ + hidden · ‖last hidden states‖.
    A difference ‖ ‖ is squared and relative to the teacher's.

    A part of the calibration data is held back: the weights with the least loss on it are the result, and training ends early
    when it no longer falls. A killed build goes on from the last checkpoint, on the CPU bit for bit. Sources: arXiv:1503.02531
    (distillation), arXiv:2407.14679 (after pruning), arXiv:2004.09813 (embeddings), nvidia-modelopt's QAD (with `fake_quantize`).
    """

    kind: ClassVar[Kind] = "lossy"
    summary: ClassVar[str] = "train a pruned, shallower or rounded model on what the untouched checkpoint says"
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    reads: ClassVar[tuple[str, ...]] = ("calibration", "training", "checkpoint")
    essential: ClassVar[tuple[str, ...]] = ("steps",)

    student: Student | None = None
    """Decoders: `{layers: 3}` or `{layers: [0, 2, 5]}` starts from these layers of the checkpoint. Default: the model so far."""
    fake_quantize: FakeQuantize | None = None
    """Round the weights while training, as the `quantize` after it does: `{format: int4, block: 32}` (quantization-aware
    distillation). That pass must have the same format, block and keep, and round to nearest: `algorithm: rtn`, or `max`."""
    steps: Count = 200
    """Optimizer steps at most; the learning rate reaches 0 there."""
    batch_size: Count = 8
    """Sequences or images that run at once; memory grows with it, and with a decoder's vocabulary."""
    accumulate: Count = 1
    """Batches a step."""
    processes: Count = 1
    """Processes that share the batches of a step, a GPU each; on a CPU they share its cores. Must divide `accumulate`: a step is
    the same with one process or several."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Of AdamW, the highest; then half a cosine."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of matrices; norms and biases have none."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of all gradients together."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """T of the softened distributions; above 1 what the teacher deems unlikely counts more. Encoders have none."""
    cross_entropy: Share = 0.0
    """Decoders: share of the next token's cross-entropy in the loss, 0 to 1; the rest is the divergence from the teacher."""
    hidden: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the difference of hidden states, relative to the teacher's, added to the loss: after every layer of a decoder, after
    an encoder's last; classifiers have none."""
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the calibration samples that is held back to choose the weights and to stop early."""
    every: Count = 20
    """Steps between looks at the held-back data."""
    patience: Count = 5
    """Looks without an improvement after which training ends."""
    checkpoint_every: Count = 50
    """Steps between checkpoints that a killed build goes on from."""
    keep_zeros: bool = True
    """Weights that are exactly zero stay so: a sparse model stays sparse."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training; weights and moments are float32. `auto`: bfloat16 on a GPU, float32 on a CPU."""

    def check(self, view: View) -> list[Complaint]:
        if any(earlier.word == "quantize" for earlier in view.earlier):
            return [Complaint("quantized weights cannot be trained", fix="put distill before quantize")]
        return [
            *self._options(),
            *self._of_task(view.spec.task),
            *self._data(view),
            *self._start(view),
            *self._student(view.spec),
            *self._rounding(view),
        ]

    def _options(self) -> list[Complaint]:
        return [*self._together(), *self._warmth()]

    def _of_task(self, task: str) -> list[Complaint]:
        """Options that this kind of model has no place for."""
        if task == "decoder":
            return []
        given = {
            "student": (self.student is not None, "prune: {layers: …} takes layers out"),
            "cross_entropy": (self.cross_entropy > 0, "leave it out"),
            "temperature": (self.temperature != 1 and task == "encoder", "leave it out"),
            "hidden": (self.hidden > 0 and task == "vision", "leave it out"),
        }
        return [
            Complaint(f"{MODEL_OF[task]} has no {name}", name, fix) for name, (wrong, fix) in given.items() if wrong
        ]

    def _together(self) -> list[Complaint]:
        """What keeps several processes from sharing a step."""
        if self.processes == 1:
            return []
        if self.accumulate % self.processes:
            what = f"{self.processes} processes cannot share {self.accumulate} batches a step evenly"
            return [Complaint(what, "processes", f"accumulate: {self.processes}, or another multiple of it")]
        return []

    def _warmth(self) -> list[Complaint]:
        if self.cross_entropy < 1 or self.temperature == 1:
            return []
        what = "temperature has no effect: cross_entropy 1 leaves no share of the loss to the teacher's distributions"
        return [Complaint(what, "temperature", "leave it out, or lower cross_entropy")]

    def _data(self, view: View) -> list[Complaint]:
        if view.calibration is None:
            what = "distill holds a part of the calibration data back, and there is none"
            return [Complaint(what, fix="add `calibration` to `data`")]
        samples = view.calibration.samples
        if 0 < self._held(samples) < samples or view.training is not None:
            return []
        what = f"{self.held_back:g} of {samples} calibration sequences leaves none to train on"
        return [Complaint(what, "held_back", "raise data.calibration.samples, or add `training` to `data`")]

    def _start(self, view: View) -> list[Complaint]:
        """Is there anything to learn, and does what was done before count?"""
        before = [earlier.word for earlier in view.earlier if earlier.word != "load"]
        if self.student is not None and before:
            what = f"a student starts from the checkpoint's layers: what {before[-1]} did before has no effect"
            return [Complaint(what, "student", f"leave out student, or {before[-1]}")]
        if self.hidden and "rotate" in before:
            what = "rotated hidden states cannot be compared with the checkpoint's"
            return [Complaint(what, "hidden", "put rotate after distill")]
        changed = any(earlier.kind == "lossy" for earlier in view.earlier)
        if not (changed or self.student or self.fake_quantize or self.cross_entropy):
            fix = f"put it after prune, or give {'student or ' if view.spec.task == 'decoder' else ''}fake_quantize"
            return [Complaint("the student is the checkpoint itself: there is nothing to learn", fix=fix)]
        return []

    def _student(self, spec: DecoderSpec | HfSpec) -> list[Complaint]:
        if self.student is None or spec.task != "decoder":
            return []
        count, asked = len(spec.layers), self.student.layers
        if isinstance(asked, int):
            if 0 < asked < count:
                return []
            what = f"a student of {asked} layers does not fit a teacher of {count}"
            return [Complaint(what, "student", f"layers: 1 to {count - 1}")]
        if 0 < len(asked) < count and all(0 <= i < count for i in asked) and list(asked) == sorted(set(asked)):
            return []
        what = f"layers {list(asked)} are no rising choice of some of the teacher's 0 to {count - 1}"
        return [Complaint(what, "student", f"layers: {list(evenly(max(1, count // 2), count))}")]

    def _rounding(self, view: View) -> list[Complaint]:
        """The fake-quantizers against the `quantize` that must follow."""
        from openclaw_opt.passes.quantize import Quantize

        fake = self.fake_quantize
        if fake is None:
            return []
        if fake.block is not None and FORMATS[fake.format].block is None:
            return [Complaint(f"block has no effect with {fake.format}", "fake_quantize", "leave it out")]
        after = next((one for one in view.later if isinstance(one, Quantize)), None)
        if after is None:
            wanted = f"quantize: {{format: {fake.format}, algorithm: {PLAIN[fake.format]}}}"
            return [Complaint("fake_quantize without a quantize after it", "fake_quantize", f"add {wanted}")]
        # Whether a runtime has such blocks and they divide the layers is what quantize's own check says.
        return [
            Complaint(f"fake_quantize has {name} {ours}, the quantize after it {theirs}", "fake_quantize", fix)
            for name, ours, theirs, fix in _differences(fake, after, view.spec.task)
        ]

    def _held(self, samples: int) -> int:
        return max(1, round(samples * self.held_back))

    def run(self, source: Model, work: Work) -> Done[Model]:
        from openclaw_opt.models.pruning import parameters_of
        from openclaw_opt.models.spec import read_facts
        from openclaw_opt.models.store import save_model
        from openclaw_opt.models.training import Pair, train
        from openclaw_opt.models.training_processes import train_apart

        facts = read_facts(source)
        teacher, student = self._models(source, facts, work)
        before, layers = parameters_of(teacher), self._pairs(student, teacher)
        data, setup = self._samples(source, facts, work), self._setup(work)
        rounded = self._put_quantizers(student, facts.task)
        pair = Pair(student, teacher, layers)
        if self.processes == 1:
            made = train(pair, data, setup, work.kept, work.progress)
        else:
            job = self._job(work, setup, layers, facts.task)
            made = train_apart(pair, data, job, facts, source.assets, work.progress)
        after = parameters_of(student)
        said = _sentence(made, setup, data)
        noted = facts.model_copy(update={"notes": (*facts.notes, said)})
        details = _details(made, setup, data) | {
            "parameters": after,
            "parameters_before": before,
            "student_layers": list(layers) if self.student else None,
            "matched_layers": list(layers) if self.hidden and layers else None,
            "fake_quantized": rounded,
            "processes": self.processes,
        }
        model = save_model(student, noted, work.folder, source.assets)
        return Done(model, changed=said, count=made.progress.step, details=details)

    def _job(self, work: Work, setup: Setup, layers: tuple[int, ...], task: str) -> Job:
        from openclaw_opt.models.training_processes import Job

        fake = self.fake_quantize
        rounding = None if fake is None else (KINDS[fake.format], fake.block_size(), fake.kept(task))
        work.folder.mkdir(parents=True, exist_ok=True)
        return Job(work.folder, work.checkpoint, setup, layers, rounding, work.kept, self.processes, task)

    def _models(self, source: Model, facts: ModelFacts, work: Work) -> tuple[nn.Module, nn.Module]:
        """The teacher and the student before training."""
        from openclaw_opt.models.decoder import Decoder
        from openclaw_opt.models.store import open_model
        from openclaw_opt.models.student import student_of, teacher_of

        if facts.quant:
            name = next(iter(facts.quant))
            raise RecipeError("quantized weights cannot be trained", where=name, fix="put distill before quantize")
        teacher = teacher_of(work.checkpoint)
        if self.student is not None:
            assert isinstance(teacher, Decoder), "check refuses a student of any other"
            return teacher, student_of(teacher, self.student.chosen(len(teacher.layers)))
        student = open_model(source)
        if not (isinstance(student, Decoder) and isinstance(teacher, Decoder)):
            return teacher, student
        if student.spec.vocab != teacher.spec.vocab:
            raise RecipeError(
                f"the student has {student.spec.vocab} tokens, the teacher {teacher.spec.vocab}: logits cannot be compared",
                where="distill",
                fix="put distill before what changes the vocabulary",
            )
        return teacher, student

    def _pairs(self, student: nn.Module, teacher: nn.Module) -> tuple[int, ...]:
        """For each layer of the student the teacher's that it is compared with; of decoders. RecipeError where sizes differ."""
        from openclaw_opt.models.decoder import Decoder

        if not (isinstance(student, Decoder) and isinstance(teacher, Decoder)):
            return ()
        if self.hidden and student.spec.hidden != teacher.spec.hidden:
            raise RecipeError(
                f"hidden states of {student.spec.hidden} and {teacher.spec.hidden} elements cannot be compared",
                where="distill.hidden",
                fix="leave it out",
            )
        if self.student is not None:
            return self.student.chosen(len(teacher.layers))
        return matched(len(student.layers), len(teacher.layers))

    def _put_quantizers(self, student: nn.Module, task: str) -> list[str]:
        from openclaw_opt.models.student import put_fake_quantizers

        fake = self.fake_quantize
        if fake is None:
            return []
        try:
            return put_fake_quantizers(student, KINDS[fake.format], fake.block_size(), fake.kept(task))
        except ValueError as error:
            raise RecipeError(str(error), where="distill.fake_quantize", fix="a smaller block, or keep") from error

    def _samples(self, source: Model, facts: ModelFacts, work: Work) -> Samples:
        from openclaw_opt.models.calibrate import load_calibration
        from openclaw_opt.models.training import Samples
        from openclaw_opt.models.training_rows import parted, rows_of

        assert work.calibration is not None, "check refuses a recipe without"
        calibration = load_calibration(work.calibration, facts, source, work.data_cache, self.batch_size)
        known = rows_of(calibration, facts.task)
        rest, held = parted(known, self._held(len(known)), facts.task)
        if work.training is None:
            return Samples(rest, held, facts.task)
        training = load_calibration(work.training, facts, source, work.data_cache, self.batch_size)
        return Samples(rows_of(training, facts.task), held, facts.task)

    def _setup(self, work: Work) -> Setup:
        import torch

        from openclaw_opt.models.training import Setup

        shared = {name: getattr(self, name) for name in Setup.__dataclass_fields__ if name in type(self).model_fields}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        auto = "bfloat16" if device == "cuda" else "float32"
        precision = auto if self.precision == "auto" else self.precision
        changes = {"warmup": int(self.warmup * self.steps), "precision": precision, "device": device, "seed": work.seed}
        return Setup(**shared | changes)


def _differences(fake: FakeQuantize, after: Quantize, task: str) -> list[tuple[str, Any, Any, str]]:
    """(what, in fake_quantize, in quantize, fix) wherever the two would not round to the same values."""
    plain = PLAIN[fake.format]
    pairs = [
        ("format", fake.format, after.format, f"quantize: {{format: {fake.format}}}"),
        ("block", fake.block_size(), after.block_size(), f"quantize: {{block: {fake.block_size()}}}"),
        ("algorithm", plain, after.algorithm_for(task), f"quantize: {{algorithm: {plain}}}"),
        ("calibration", "max", after.calibration, "quantize: {calibration: max}"),
        ("keep", list(fake.kept(task)), list(after.patterns(task)), "the same keep in both"),
    ]
    return [one for one in pairs if one[1] != one[2]][:1]


def _sentence(made: Trained, setup: Setup, data: Samples) -> str:
    from openclaw_opt.models.training_rows import UNITS

    known = made.progress
    first, seen = known.curve[0]["held_back"], data.amount(known.step * setup.batch_size * setup.accumulate)
    ended = f", stopped early at {known.step}" if made.stopped == "patience" else ""
    return (
        f"trained {known.step} steps ({seen:,} {UNITS[data.task]}): loss on held-back data {first:.4g} → {known.best_loss:.4g} "
        f"at step {known.best_step}{ended}"
    )


def _details(made: Trained, setup: Setup, data: Samples) -> dict[str, Any]:
    from openclaw_opt.models.training_rows import LOSSES, UNITS

    known = made.progress
    seen, unit = data.amount(known.step * setup.batch_size * setup.accumulate), UNITS[data.task]
    return {
        "curve": known.curve,
        "loss": LOSSES[data.task],
        "best_step": known.best_step,
        "stopped": made.stopped,
        "resumed_at": known.resumed,
        unit: seen,
        f"{unit}_per_second": round(seen / known.seconds, 1) if known.seconds else None,
        "sequences": {"training": len(data.training), "held_back": len(data.held_back)},
        "zeros_kept": made.zeros,
        "precision": setup.precision,
        "device": setup.device,
    }
