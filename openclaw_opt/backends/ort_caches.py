"""Where a decoder's keys and values live between the steps of an ONNX Runtime session, by the graph's dialect.

Decoder caches never leave the runtime: they are OrtValues that a step's outputs hand to the next step's inputs.

    portable     past grows by a Concat inside the graph; a step's `present` is bound as the next step's `past`
    onnxruntime  GroupQueryAttention; one buffer of `context` tokens bound as both past and present, written in place
    tensorrt     static caches of `context` tokens; `present` and `past` swap between two buffers
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from openclaw_opt import formats
from openclaw_opt.artifacts import GraphFacts, KvShape
from openclaw_opt.backends.stepping import Ids, Placed, one_column_more, padding_first

ELEMENT = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
}


class Cache(ABC):
    """Where a decoder's keys and values live between steps."""

    def __init__(self, facts: GraphFacts, device: str) -> None:
        self._facts, self._device = facts, device
        self._values: list[Any] = []
        self.binding: Any = None
        """An IOBinding that holds this cache, where one serves every step."""
        self.logits: NDArray[np.float32] | None = None
        """What that binding writes logits to, [batch, new tokens, vocab]."""

    in_place = False
    """A step's present lies where its past lay, so that one binding serves every step."""

    def clear(self) -> None:
        self._values, self.binding, self.logits = [], None, None

    def names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{part}" for layer in range(len(self._facts.kv)) for part in ("key", "value")]

    def _buffers(self, batch: int, tokens: int) -> list[Any]:
        made = []
        for kv in self._facts.kv:
            kind, width = _stored(kv, self._facts)
            made += [_zeros((batch, kv.kv_heads, tokens, width), kind, self._device) for _ in ("key", "value")]
        return made

    @abstractmethod
    def start(self, batch: int, capacity: int) -> None:
        """Empty, for `batch` sequences that grow to `capacity` tokens."""

    def placed(self, ids: Ids, lengths: Ids) -> Placed:
        """Right-padded prompts as this cache wants them: ids, attention mask, positions, and the column of each last token.

        Padding stands at its sequence's last position: longrope looks at the largest of a row.
        """
        columns = np.arange(ids.shape[1])
        mask = (columns < lengths[:, None]).astype(np.int64)
        return ids, mask, np.minimum(columns, lengths[:, None] - 1), lengths - 1

    @abstractmethod
    def bind(self, binding: Any) -> None:
        """Give this step's caches to the runtime."""

    @abstractmethod
    def keep(self, outputs: list[Any]) -> None:
        """The step's present caches, in the order of `names("present")`."""

    @abstractmethod
    def grown_mask(self, mask: Ids, lengths: Ids) -> Ids:
        """The attention mask of the next step, from the last one and the tokens each sequence has had."""


class GrowingCache(Cache):
    """portable: each present, allocated by the runtime, is the next past; padding comes first."""

    def start(self, batch: int, capacity: int) -> None:
        self._values = self._buffers(batch, 0)

    def placed(self, ids: Ids, lengths: Ids) -> Placed:
        return padding_first(ids, lengths)

    def bind(self, binding: Any) -> None:
        for name, value in zip(self.names("past_key_values"), self._values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in self.names("present"):
            binding.bind_output(name, self._device)

    def keep(self, outputs: list[Any]) -> None:
        self._values = outputs

    def grown_mask(self, mask: Ids, lengths: Ids) -> Ids:
        return one_column_more(mask)


class SharedCache(Cache):
    """onnxruntime: one buffer for past and present; each sequence is dense in it, a new token overwrites padding."""

    in_place = True

    def start(self, batch: int, capacity: int) -> None:
        if not self._values or (self._values[0].shape()[0], self._values[0].shape()[2]) != (batch, capacity):
            self._values, self.binding = self._buffers(batch, capacity), None

    def bind(self, binding: Any) -> None:
        for past, present, value in zip(
            self.names("past_key_values"), self.names("present"), self._values, strict=True
        ):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)

    def grown_mask(self, mask: Ids, lengths: Ids) -> Ids:
        return np.asarray(np.arange(lengths.max() + 1) <= lengths[:, None], np.int64)

    def keep(self, outputs: list[Any]) -> None:
        """Nothing to hand over: present was written where past lies."""


class StaticCache(SharedCache):
    """tensorrt: `context` slots a sequence; two sets of buffers, because TensorScatter outside TensorRT copies."""

    in_place = False

    def __init__(self, facts: GraphFacts, device: str) -> None:
        super().__init__(facts, device)
        self._other: list[Any] = []

    def clear(self) -> None:
        self._values, self._other = [], []

    def start(self, batch: int, capacity: int) -> None:
        super().start(batch, capacity)
        if not self._other or self._other[0].shape() != self._values[0].shape():
            self._other = self._buffers(batch, capacity)

    def bind(self, binding: Any) -> None:
        for name, value in zip(self.names("past_key_values"), self._values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self.names("present"), self._other, strict=True):
            binding.bind_ortvalue_output(name, value)

    def keep(self, outputs: list[Any]) -> None:
        self._values, self._other = self._other, self._values


CACHES: dict[str, Callable[[GraphFacts, str], Cache]] = {
    "portable": GrowingCache,
    "onnxruntime": SharedCache,
    "tensorrt": StaticCache,
}


def _stored(kv: KvShape, facts: GraphFacts) -> tuple[str, int]:
    """Element type and width of a token's row in one head: int4 lies two a byte in the lowered graph, one in the others."""
    if kv.cache is None:
        return facts.dtype, kv.head_dim
    packed = formats.CACHES[kv.cache].bits == 4 and facts.dialect == "onnxruntime"
    return ("uint8", kv.head_dim // 2) if packed else ("int8", kv.head_dim)


def _zeros(shape: tuple[int, ...], dtype: str, device: str) -> Any:
    """An OrtValue of zeros: a shared cache may read a slot before it is written, masked, and 0 · NaN would show."""
    if dtype == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros(shape, np.uint16), ELEMENT[dtype])
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), device, 0)
