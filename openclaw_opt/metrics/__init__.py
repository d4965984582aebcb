"""What a metric is. One file a number, or a family of numbers measured together; the file's name is the recipe's word.

A metric is a frozen record whose fields are its options. `yields` says before any work which measurements it gives, so that a
budget on a name that nothing measures is a mistake in the recipe. `measure` gives one Measurement for every name it yields:
a value, or the reason why there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from openclaw_opt.artifacts import Artifact, Checkpoint, Measurement, Task
from openclaw_opt.targets import Target

if TYPE_CHECKING:
    from openclaw_opt.backends import DecoderSession, GenericSession
    from openclaw_opt.data.load import ImageSet, SentenceSet, TokenSet
    from openclaw_opt.models.spec import DecoderSpec, HfSpec

GRAPH_ON_CPU = "engine graph on ONNX Runtime CPU"


class Yield(NamedTuple):
    """One measurement a metric gives."""

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Subject:
    """What is measured: an engine, or an artifact before it.

    Attributes:
        artifact: Model, Graph or Engine; `artifact.folder` is what is on disk.
        label: becomes `Measurement.subject`: "engine", GRAPH_ON_CPU, "model in PyTorch".
        open: a fresh session to run it for accuracy.
        cannot_time: why its latency cannot be measured here; empty if `open` is the engine itself.
    """

    artifact: Artifact
    label: str
    open: Callable[[], DecoderSession | GenericSession]
    cannot_time: str = ""


@dataclass(frozen=True)
class Setting:
    """Everything a metric may use.

    Attributes:
        reference: outputs of the untouched checkpoint on `data`, run once and kept on disk (a memory map): log-probabilities
            float16 [samples, length, vocab] for decoders; embeddings float32 [samples, hidden]; class logits float32
            [samples, classes]. None where no metric of the recipe needs data.
        checkpoint: the untouched checkpoint, for a speed comparison with PyTorch.
        cache: folder for what a metric wants to keep.
    """

    spec: DecoderSpec | HfSpec
    target: Target
    checkpoint: Checkpoint
    data: TokenSet | SentenceSet | ImageSet | None
    reference: Any
    cache: Path
    seed: int = 0
    progress: Callable[[float, str], None] = lambda fraction, text: None


class Metric(BaseModel):
    """Options as fields; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    tasks: ClassVar[tuple[Task, ...]]
    needs_data: ClassVar[bool] = False
    is_accuracy: ClassVar[bool] = False
    """Measured after every lossy pass too: the waterfall."""
    yields: ClassVar[tuple[Yield, ...]]

    def measure(self, subject: Subject, setting: Setting) -> list[Measurement]:
        """One Measurement for every name in `yields`."""
        raise AssertionError(f"{type(self).__name__} measures nothing")

    def measurement_names(self) -> list[str]:
        """What budgets can name."""
        return [one.name for one in self.yields]

    def not_measured(self, why: str, label: str = "engine") -> list[Measurement]:
        """Every row of this metric, without a value and with the reason."""
        return [
            Measurement(name=y.name, value=None, unit=y.unit, better=y.better, subject=label, not_measured=why) for y in self.yields
        ]

    @property
    def word(self) -> str:
        """The recipe's word for this metric: the name of its file."""
        return type(self).__module__.rsplit(".", 1)[1].replace("_", "-")
