"""Names of a model's linear layers, and the patterns that are likely meant by a wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from openclaw_opt.models.sizes import linears
from openclaw_opt.models.spec import DecoderSpec, HfSpec

Sizes = Mapping[str, int]
"""Name of a linear layer → its inputs (K)."""


def linear_sizes(spec: DecoderSpec | HfSpec) -> dict[str, int]:
    """Every linear layer and its inputs, from the sizes alone; empty for models that run as Hugging Face wrote them."""
    if not isinstance(spec, DecoderSpec):
        return {}
    return {name: inputs for name, (_, inputs) in linears(spec).items()}


def words(names: Iterable[str]) -> list[str]:
    """Layer names and the patterns that are likely meant: `layers.0.*`, `*.down`."""
    every = list(names)
    layers = {".".join(name.split(".")[:2]) + ".*" for name in every if "." in name}
    return sorted({*every, *layers, *generalised(every)})


def generalised(names: Iterable[str]) -> list[str]:
    return sorted({f"*.{name.rsplit('.', 1)[1]}" for name in names if "." in name})
