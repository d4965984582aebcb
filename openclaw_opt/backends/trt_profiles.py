"""Shape ranges an engine is built for: prefill and decode for decoders, one profile for everything else."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.backends.trt_child import Shapes
from openclaw_opt.errors import RecipeError

Triple = tuple[int, int, int]
"""(min, opt, max)."""


class Profiles(BaseModel):
    """Ranges in sequences and tokens. The engine is fastest at `opt` and refuses what is outside.

    Attributes:
        batch: sequences (or images) at once.
        prompt: tokens of one prefill, or of one encoder input; vision models do not use it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: Triple = (1, 1, 4)
    prompt: Triple = (1, 128, 512)

    @field_validator("batch", "prompt")
    @classmethod
    def _ordered(cls, value: Triple) -> Triple:
        if not 1 <= value[0] <= value[1] <= value[2]:
            raise ValueError("must be [min, opt, max] with 1 <= min <= opt <= max")
        return value


def shapes_of(profiles: Profiles, facts: GraphFacts, inputs: dict[str, list[int | str]]) -> list[Shapes]:
    """What to tell TensorRT. `inputs` maps input names to their shape, dynamic dimensions as strings.

    Raises RecipeError when the longest prompt does not fit into the context.
    """
    if facts.context is not None and facts.task == "decoder" and profiles.prompt[2] > facts.context:
        raise RecipeError(
            f"the longest prompt, {profiles.prompt[2]} tokens, does not fit into the context of {facts.context}",
            fix="lower the third number of `prompt` or raise `context`",
        )
    if facts.task == "decoder":
        return [
            _profile("prefill", profiles.batch, profiles.prompt, inputs),
            _profile("decode", profiles.batch, (1, 1, 1), inputs),
        ]
    return [_profile("main", profiles.batch, profiles.prompt, inputs)]


def _profile(name: str, batch: Triple, length: Triple, inputs: dict[str, list[int | str]]) -> Shapes:
    shapes = {
        tensor: [_fixed(dims, batch[rank], length[rank]) for rank in range(3)]
        for tensor, dims in inputs.items()
        if _dynamic(dims)
    }
    return {"name": name, "shapes": shapes}


def _dynamic(dims: list[int | str]) -> bool:
    return any(isinstance(dim, str) for dim in dims)


def _fixed(dims: list[int | str], batch: int, length: int) -> list[int]:
    """The first dimension is the batch, any other dynamic one the length."""
    return [dim if isinstance(dim, int) else (batch if axis == 0 else length) for axis, dim in enumerate(dims)]
