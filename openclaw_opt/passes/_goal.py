"""How small `prune` is to make a model, and how small a model of given sizes is: parameters, GiB, or the roofline of a
token or a text."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from openclaw_opt.artifacts import GraphFacts, LayerFormat
from openclaw_opt.errors import nearest
from openclaw_opt.formats import FORMATS
from openclaw_opt.metrics.roofline import Matrix, Roofline, Work, cache_bytes, multiply_seconds
from openclaw_opt.models import sizes
from openclaw_opt.models.spec import DecoderSpec, Sized
from openclaw_opt.targets import Target

GIB = 2**30
SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kMBG]?)")


KINDS = ("parameters", "gib", "decode_ms", "infer_ms")
COUNTS = WithJsonSchema(
    {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": f"^{COUNT.pattern}$"}]}
)


class Goal(BaseModel):
    """What FFN channels are taken out for. One of `parameters`, `gib`, `decode_ms` and `infer_ms`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    parameters: Annotated[float, COUNTS] | None = None
    """Parameters to be left: a count (4000000, 4.0M, 1.2B), or a share of what there is (0.8)."""
    gib: float | None = Field(None, gt=0)
    """Size of the weights in GiB: linear layers in `format`, the rest in the graph's float type."""
    decode_ms: float | None = Field(None, gt=0)
    """Roofline of one token on the target in milliseconds, batch 1, as the metric `roofline` counts it; needs a target whose
    bandwidth is known."""
    infer_ms: float | None = Field(None, gt=0)
    """Encoders: roofline of one text on the target in milliseconds, batch 1, as the metric `roofline` counts it."""
    format: str | None = None
    """With `gib` and the times: the number format that a later `quantize` gives linear layers but the head. Default: none."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, str):
            match = COUNT.fullmatch(value.strip())
            if match is None:
                raise ValueError(f"{value!r} is no count; write 4000000, 4.0M or 1.2B, or a share like 0.8")
            value = float(match[1]) * SUFFIXES[match[2]]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value <= 0 or 1 <= value != int(value):
                raise ValueError(f"{value:g} is neither a share below 1 nor a whole number of parameters")
            return float(value)
        return value

    @model_validator(mode="after")
    def _one(self) -> Goal:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"wants one of {', '.join(KINDS)}; got {', '.join(given) or 'none'}")
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"unknown number format {self.format!r}; {nearest(self.format, FORMATS)}")
        if self.format is not None and self.parameters is not None:
            raise ValueError("format has no effect on a number of parameters")
        return self

    @property
    def kind(self) -> str:
        return next(name for name in KINDS if getattr(self, name) is not None)

    def limit(self, before: Sized) -> float:
        """The number that `measure` must not exceed."""
        if self.parameters is None:
            return float(self.gib or self.decode_ms or self.infer_ms or 0.0)
        return self.parameters * sizes.parameters(before) if self.parameters < 1 else self.parameters

    def measure(self, spec: Sized, target: Target, backend: str) -> float:
        """What a model of these sizes has of what is asked."""
        if self.parameters is not None:
            return float(sizes.parameters(spec))
        wide = 2 if backend == "tensorrt" else 4
        if self.gib is not None:
            return self._bytes(spec, wide, tables=True) / GIB
        return self._bound_ms(spec, target, wide)

    def _bytes(self, spec: Sized, wide: int, *, tables: bool) -> float:
        """Of all weights, or, without tables, of those that a step reads; a tied head is its table, once."""
        bits = 8.0 * wide if self.format is None else FORMATS[self.format].bits_per_weight()
        shapes = sizes.linears(spec)
        n, k = shapes.pop("head", (0, 0))
        tied = isinstance(spec, DecoderSpec) and spec.tied
        low = sum(rows * columns for rows, columns in shapes.values()) * bits / 8
        counted = sizes.vectors(spec) + n * k + (sizes.tables(spec) - (n * k if tied else 0) if tables else 0)
        return low + wide * counted

    def _bound_ms(self, spec: Sized, target: Target, wide: int) -> float:
        assert target.bandwidth is not None, "check refuses targets whose bandwidth is not known"
        if isinstance(spec, DecoderSpec):
            new, cached, kv = 1, Roofline().context, sizes.caches(spec)
        else:
            new, cached, kv = Roofline().prompt, 0, ()
        shapes = sizes.linears(spec)
        quantized = [name for name in shapes if name != "head"] if self.format else []
        facts = GraphFacts(
            task=spec.task, dialect="portable", dtype="float16" if wide == 2 else "float32", family=spec.family, opset=0,
            kv=kv, quantized=tuple(LayerFormat(name=name, format=str(self.format)) for name in quantized),
        )  # fmt: skip
        matrices = tuple(Matrix(f"{name}.weight", k, n) for name, (n, k) in shapes.items())
        work = Work(round(self._bytes(spec, wide, tables=False)), matrices, 0)
        reading = (work.weight_bytes + cache_bytes(facts, cached)) / target.bandwidth
        return 1e3 * max(reading, multiply_seconds(work, facts, target, new, cached))

    def told(self, value: float) -> str:
        """The number with its unit."""
        if self.parameters is not None:
            return f"{value:,.0f} parameters"
        if self.gib is not None:
            return f"{value:.4g} GiB"
        return f"{value:.4g} ms a {'token' if self.infer_ms is None else 'text'}"
