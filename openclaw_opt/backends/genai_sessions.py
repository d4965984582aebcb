"""onnxruntime-genai as a session: the runtime most users of an ONNX Runtime decoder deploy, over the folder it deploys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openclaw_opt.backends import DecoderSession
from openclaw_opt.errors import MachineError, RecipeError

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class GenaiDecoder(DecoderSession):
    """A folder with genai_config.json. Each sequence of a batch has a generator of its own: its padding is left away.

    Args:
        folder: of a finished ONNX Runtime engine, or what onnxruntime-genai's own builder wrote.
        context: tokens a sequence may grow to.
    """

    def __init__(self, folder: Path, context: int) -> None:
        try:
            import onnxruntime_genai as genai
        except ImportError as error:
            raise MachineError(
                "onnxruntime-genai is not installed", fix="pip install onnxruntime-genai-cuda"
            ) from error
        if not (folder / "genai_config.json").is_file():
            raise RecipeError("no genai_config.json: onnxruntime-genai cannot open it", where=str(folder))
        self._genai, self._model, self.context = genai, genai.Model(str(folder)), context
        self._generators: list[Any] = []

    def close(self) -> None:
        self._generators = []

    def logits(self, ids: Ids) -> Floats:
        return np.stack([self._started(row)[1] for row in ids])

    def prefill(self, ids: Ids, lengths: Ids | None = None) -> Floats:
        sizes = [ids.shape[1]] * len(ids) if lengths is None else [int(length) for length in lengths]
        started = [self._started(row[:size]) for row, size in zip(ids, sizes, strict=True)]
        self._generators = [generator for generator, _ in started]
        return np.stack([logits[-1] for _, logits in started])

    def decode(self, ids: Ids) -> Floats:
        return np.stack([self._given(one, ids[i : i + 1])[-1] for i, one in enumerate(self._generators)])

    def _started(self, row: Ids) -> tuple[Any, Floats]:
        """A generator that has seen `row`, and its logits [length, vocab]."""
        if not 1 <= len(row) <= self.context:
            raise RecipeError(f"a sequence of {len(row)} tokens; the context is {self.context}, and it needs one")
        options = self._genai.GeneratorParams(self._model)
        options.set_search_options(max_length=self.context, batch_size=1)
        generator = self._genai.Generator(self._model, options)
        return generator, self._given(generator, row)

    def _given(self, generator: Any, tokens: Ids) -> Floats:
        generator.append_tokens(np.asarray(tokens, np.int32)[None])
        return np.array(generator.get_output("logits")[0], np.float32)
