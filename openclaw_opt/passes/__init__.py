"""What a pass is. One file a pass; its class is a frozen record whose fields are its options in the recipe.

The annotations of `run` are the contract: `run(self, source: Model, work: Work) -> Done[Graph]` says that the pass takes a
Model and gives a Graph, and a recipe in a wrong order fails when it is loaded. Options are checked when the recipe is read,
`check` says before any work what cannot be done for this model on this target, and `run` does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict

from openclaw_opt.artifacts import Artifact, Checkpoint, Engine, Graph
from openclaw_opt.targets import Target

if TYPE_CHECKING:
    from openclaw_opt.data import Source
    from openclaw_opt.models.spec import DecoderSpec, HfSpec

Made = TypeVar("Made", bound=Artifact, covariant=True)
Kind = Literal["exact", "lossy"]
PROOF = "proof"
"""Subfolder of a pass's work folder for `Done.proof`; dropped after the comparison."""
ROUNDING = {"float32": 0.0, "float16": 2e-2, "bfloat16": 1e-1}
"""What the element type alone may change outputs by: some ten roundings of 2^-11 or 2^-8 add up through the layers."""


@dataclass(frozen=True)
class View:
    """What is known before any work: enough to refuse what cannot be done."""

    spec: DecoderSpec | HfSpec
    target: Target
    backend: str
    """Name of the backend that will build: `onnxruntime` or `tensorrt`."""
    calibration: Source | None
    earlier: tuple[Pass, ...]
    """Passes before this one."""
    others: tuple[Target, ...] = ()
    """Further targets of the same job; each is checked as `target` in turn."""
    training: Source | None = None
    """What the recipe's `data.training` names; where it names nothing, passes train on the calibration data."""
    later: tuple[Pass, ...] = ()
    """Passes after this one."""


@dataclass(frozen=True)
class Complaint:
    """Why a pass cannot be done here. `option` is the field of the recipe to point at; empty for the pass itself."""

    what: str
    option: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Work:
    """What a pass may use besides its input: a fresh folder of its own, and read-only facts."""

    folder: Path
    checkpoint: Checkpoint
    target: Target
    backend: str
    calibration: Source | None
    data_cache: Path
    seed: int = 0
    require_realised: bool = True
    timeout_s: float | None = None
    others: tuple[Target, ...] = ()
    """Further targets of the same job."""
    training: Source | None = None
    """As in `View`."""
    kept: Path | None = None
    """A folder that outlives a killed run of this very pass, for what the next run goes on from; removed once the pass is done."""
    progress: Callable[[float, str], None] = lambda fraction, text: None
    """Called with the part done (0 to 1) and what is being done."""


@dataclass(frozen=True)
class Done(Generic[Made]):
    """What a pass made, and what it changed; `count` zero means that it changed nothing, which is an error."""

    artifact: Made
    changed: str
    count: int
    proof: Artifact | None = None
    """The same rewrite without a step that is known to round (float32 for half precision, float activations for a kernel that
    takes int8): it is what must agree exactly, and the result's deviation from it is measured."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON for the report: `layers` is a table of per-layer errors, the rest is named in docs/design.md."""


class Pass(BaseModel):
    """Options as fields; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    kind: ClassVar[Kind]
    """`exact`: outputs agree with those before within `tolerance`. `lossy`: the loss is measured."""
    tolerance: ClassVar[float] = 1e-3
    """Exact passes: largest difference of the outputs relative to the largest output before the pass."""
    summary: ClassVar[str]
    """One line for `openclaw-opt list passes`."""
    tools: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version is part of the cache key."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Which of `target`, `calibration`, `training`, `checkpoint` decides the result: part of the cache key."""

    essential: ClassVar[tuple[str, ...]] = ()
    """Options that say what is done: a point of a sweep in which all of them are `off` or 0 goes without the pass."""

    def check(self, view: View) -> list[Complaint]:
        """What of this pass cannot be done; found from facts alone, in milliseconds, without torch."""
        return []

    def ingredients(self, view: View) -> dict[str, Any]:
        """What else decides the result, for the cache key."""
        return {}

    def run(self, source: Any, work: Work) -> Done[Any]:
        """Do it. Raises VerificationError when the pass's own proof fails."""
        raise AssertionError(f"{type(self).__name__} defines no run")

    def tolerance_of(self, made: Artifact) -> float:
        """The tolerance for this result; half-precision graphs get that of their type."""
        dtype = made.facts.dtype if isinstance(made, (Graph, Engine)) else "float32"
        return max(self.tolerance, ROUNDING[dtype])

    @property
    def word(self) -> str:
        """The recipe's word for this pass: the name of its file."""
        return type(self).__module__.rsplit(".", 1)[1].replace("_", "-")

    @classmethod
    def takes(cls) -> type[Any]:
        """The artifact type `run` takes."""
        taken: type[Any] = _hints(cls)["source"]
        return taken

    @classmethod
    def gives(cls) -> type[Any]:
        """The artifact type `run` gives."""
        made: type[Any] = get_args(_hints(cls)["return"])[0]
        return made


def _hints(cls: type[Pass]) -> dict[str, Any]:
    return get_type_hints(cls.run)
