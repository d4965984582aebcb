"""llama.cpp as a session: a GGUF file with its cache inside, through the C interface that llama-cpp-python binds.

Weights in Q4_0 and Q8_0 are multiplied with activations rounded to int8 in blocks of 32. The cache is float16, or Q8_0 or Q4_0 where
that is asked for: attention is then the flash kernel, which rounds queries to int8 too. A file in F32 opened with `exact` computes in
float32 throughout, which is what proves a quantized one. Sequences of a batch have caches of their own, so padding never reaches
the model.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openclaw_opt.backends import DecoderSession
from openclaw_opt.backends.host_rates import cores
from openclaw_opt.errors import MachineError, RecipeError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
PACKAGE = "llama-cpp-python"
MODULE = "llama_cpp"
FIX = f"pip install {PACKAGE} (it is compiled, which takes some minutes)"
CHUNK = 512
"""Tokens that go through the model at once in a prefill."""
EXACT_TYPE, HALF_TYPE = 0, 1
"""ggml's F32 and F16, for the cache."""
LOW_BIT = {"int8": ("q8_0", 8), "int4": ("q4_0", 2)}
"""Our format of a cache → ggml's word and number."""
FLASH, AUTO_FLASH, NO_FLASH = 1, -1, 0
ERROR_LEVEL = 4
CACHE_LINE = re.compile(r"K \((\w+)\):.*V \((\w+)\):")

_said: list[str] = []
_caches: list[tuple[str, str]] = []
"""ggml's words for the types of keys and values, of each cache that was made."""
_callbacks: list[Any] = []


def library() -> Any:
    """The bound C library, its log kept for error messages. Raises MachineError where the package is missing or broken."""
    try:
        import llama_cpp
    except ModuleNotFoundError as error:
        if error.name != MODULE:
            raise
        raise MachineError(f"the package {PACKAGE} is not installed", fix=FIX) from error
    except (OSError, RuntimeError) as error:
        raise MachineError(f"{PACKAGE} cannot load its library: {error}", fix=FIX) from error
    if not _callbacks:
        _callbacks.append(llama_cpp.llama_log_callback(_listen))
        llama_cpp.llama_log_set(_callbacks[0], None)
        llama_cpp.llama_backend_init()
    return llama_cpp


def _listen(level: int, text: bytes, _: object) -> None:
    if level == ERROR_LEVEL:
        _said.append(text.decode(errors="replace").strip())
    elif found := CACHE_LINE.search(text.decode(errors="replace")):
        _caches.append((found[1], found[2]))


@dataclass(frozen=True)
class _Ways:
    """How a context computes: `LlamaDecoder` says what each means."""

    exact: bool
    threads: int
    cache: str | None
    watch: Any


class _Lane:
    """A context for `sequences` at once, each of `tokens` at most, and the arrays of its steps."""

    def __init__(self, lib: Any, model: Any, sequences: int, tokens: int, ways: _Ways) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = tokens * sequences, sequences
        params.n_batch = params.n_ubatch = max(CHUNK, sequences)
        params.n_threads = params.n_threads_batch = ways.threads
        params.type_k = params.type_v = (
            EXACT_TYPE if ways.exact else LOW_BIT[ways.cache][1] if ways.cache else HALF_TYPE
        )
        params.flash_attn_type = NO_FLASH if ways.exact else FLASH if ways.cache else AUTO_FLASH
        if ways.watch is not None:
            params.cb_eval = ways.watch.callback
        params.swa_full = True  # a pruned window cache cannot hold a prompt in chunks
        self.lib, self.sequences, self.limit = lib, sequences, int(params.n_batch)
        _caches.clear()
        self.context = lib.llama_init_from_model(model, params)
        if not self.context:
            raise MachineError(f"llama.cpp cannot make a context of {tokens * sequences} tokens: {_last()}")
        self.held = tuple(_caches)
        self._tokens, self._places = np.zeros(self.limit, np.int32), np.zeros(self.limit, np.int32)
        self._sequence = np.zeros(self.limit, np.int32)
        self._counts, self._wanted = np.ones(self.limit, np.int32), np.zeros(self.limit, np.int8)
        starts = self._sequence.ctypes.data + self._sequence.itemsize * np.arange(self.limit, dtype=np.uint64)
        self._pointers = np.ascontiguousarray(starts, np.uint64)
        self._batch = self._make_batch()

    def _make_batch(self) -> Any:
        batch = self.lib.llama_batch()
        types = dict(type(batch)._fields_)
        arrays: dict[str, NDArray[Any]] = {
            "token": self._tokens,
            "pos": self._places,
            "n_seq_id": self._counts,
            "seq_id": self._pointers,
            "logits": self._wanted,
        }
        for name, array in arrays.items():
            setattr(batch, name, ctypes.cast(array.ctypes.data, types[name]))
        return batch

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def close(self) -> None:
        if self.context:
            self.lib.llama_free(self.context)
            self.context = None

    def run(self, tokens: Ids, places: Ids, sequences: Ids, wanted: NDArray[np.bool_], vocab: int) -> Floats:
        """Tokens in any order, each with its place in its sequence -> float32 [wanted.sum(), vocab], in the order given."""
        found = np.empty((int(wanted.sum()), vocab), np.float32)
        row = 0
        for start in range(0, len(tokens), self.limit):
            part = slice(start, start + self.limit)
            count = len(tokens[part])
            self._tokens[:count], self._places[:count] = tokens[part], places[part]
            self._sequence[:count], self._wanted[:count] = sequences[part], wanted[part]
            self._batch.n_tokens = count
            status = self.lib.llama_decode(self.context, self._batch)
            if status != 0:
                raise MachineError(f"llama.cpp ended a step with status {status}: {_last()}")
            for i in np.flatnonzero(wanted[part]):
                logits = self.lib.llama_get_logits_ith(self.context, int(i))
                found[row] = np.ctypeslib.as_array(logits, (vocab,))
                row += 1
        return found


class LlamaDecoder(DecoderSession):
    """A decoder in llama.cpp.

    Args:
        file: a GGUF file.
        context: longest sequence, in tokens.
        vocab: token ids of the model.
        exact: float32 cache and attention, weights as they lie in the file; for proofs.
        threads: of a step; None for every core this process may use.
        cache: `int8` or `int4`; None for half precision.
        watch: a `llama_profile.NodeTimes` that is told of every node.

    Raises:
        MachineError: the package is missing, or llama.cpp refuses the file.
    """

    def __init__(
        self,
        file: Path,
        *,
        context: int,
        vocab: int,
        exact: bool = False,
        threads: int | None = None,
        cache: str | None = None,
        watch: Any = None,
    ) -> None:
        self._lib = lib = library()
        _said.clear()
        params = lib.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, not exact
        self._model = lib.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise MachineError(f"llama.cpp cannot open the file: {_last()}", where=str(file))
        self.context, self._vocab, self._exact, self._low_bit = context, vocab, exact, cache
        self._threads, self._watch = threads or cores(), watch
        self._lane: _Lane | None = None
        self._scoring: _Lane | None = None
        self._lengths: Ids = np.zeros(0, np.int64)

    def close(self) -> None:
        for lane in (self._lane, self._scoring):
            if lane is not None:
                lane.close()
        self._lane = self._scoring = None
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def logits(self, ids: Ids) -> Floats:
        """Every position's logits: [batch, length] int64 -> [batch, length, vocab] float32; the cache stays as it is."""
        batch, length = ids.shape
        self._check(ids, length)
        if self._scoring is None:
            self._scoring = self._make_lane(1)
        found = np.empty((batch, length, self._vocab), np.float32)
        for row, tokens in enumerate(ids):
            self._scoring.clear()
            own = np.zeros(length, np.int64)
            found[row] = self._scoring.run(tokens, np.arange(length), own, np.ones(length, bool), self._vocab)
        return found

    def prefill(self, ids: Ids, lengths: Ids | None = None) -> Floats:
        """Start afresh: [batch, length], [batch] -> [batch, vocab] float32, logits at each sequence's last token."""
        batch, length = ids.shape
        sizes = np.full(batch, length, np.int64) if lengths is None else np.asarray(lengths, np.int64).copy()
        self._check(ids, length)
        if sizes.shape != (batch,) or sizes.min() < 1 or sizes.max() > length:
            raise RecipeError(f"lengths {sizes.tolist()} do not fit ids of shape {list(ids.shape)}")
        lane = self._lane
        if lane is None or lane.sequences != batch:
            if lane is not None:
                lane.close()
            lane = self._lane = self._make_lane(batch)
        lane.clear()
        self._lengths = sizes
        real = np.arange(length) < sizes[:, None]
        rows, columns = np.nonzero(real)
        return lane.run(ids[real], columns, rows, columns == sizes[rows] - 1, self._vocab)

    def decode(self, ids: Ids) -> Floats:
        """One more token for each sequence: [batch] int64 -> [batch, vocab] float32. `prefill` comes first."""
        if ids.shape != self._lengths.shape or self._lane is None:
            raise RecipeError(f"decode got {ids.size} tokens for a batch of {self._lengths.size} that was prefilled")
        self._check(ids, int(self._lengths.max()) + 1)
        batch = len(ids)
        logits = self._lane.run(ids, self._lengths, np.arange(batch), np.ones(batch, bool), self._vocab)
        self._lengths = self._lengths + 1
        return logits

    def tokenize(self, text: str) -> list[int]:
        """Ids of the text by the tokenizer in the file, special tokens recognised, none added."""
        raw = text.encode()
        buffer = (ctypes.c_int32 * (len(raw) + 8))()
        vocab = self._lib.llama_model_get_vocab(self._model)
        count = self._lib.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), False, True)
        return list(buffer[:count])

    def cache_types(self) -> tuple[tuple[str, str], ...]:
        """ggml's words for the types of keys and values, as llama.cpp's own log states them; of each cache that it makes."""
        lane = self._make_lane(1)
        lane.close()
        return lane.held

    def _make_lane(self, sequences: int) -> _Lane:
        ways = _Ways(self._exact, self._threads, self._low_bit, self._watch)
        return _Lane(self._lib, self._model, sequences, self.context, ways)

    def _check(self, ids: Ids, length: int) -> None:
        if not length:
            raise RecipeError("the prompt is empty")
        if length > self.context:
            raise RecipeError(f"a sequence of {length} tokens exceeds the engine's context of {self.context}")
        if ids.min() < 0 or ids.max() >= self._vocab:
            raise RecipeError(f"token ids reach from {ids.min()} to {ids.max()}; the model has 0 to {self._vocab - 1}")


def version() -> str:
    """Name and version for people."""
    from importlib.metadata import version as of

    return f"llama.cpp in {PACKAGE} {of(PACKAGE)}"


def _last() -> str:
    return "; ".join(_said[-2:]) or "it says nothing more"
