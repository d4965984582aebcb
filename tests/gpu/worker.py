"""One subject in a process of its own, on a GPU or, to try the script, on the CPU; JSON lines as tests/peers/worker.py has them.

    python worker.py SUBJECT CHECKPOINT CACHE DEVICE

    {"do": "round", "batch": n, "prompt": [ids], "follow": [ids]}  →  {"first": ms, "later": [ms, …]}
    {"do": "bandwidth", "bytes": n}                                →  {"rate": bytes a second}

The same prompt stands in every sequence of a batch. A step ends when its logits are in host memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LONGEST = 512
"""Tokens that a compiled model's static cache holds."""


class Batched(Protocol):
    def prefill(self, ids: list[list[int]]) -> object: ...

    def decode(self, tokens: list[int]) -> object: ...


class Torch:
    """transformers in bfloat16, eager or compiled; compiled, its cache is static."""

    def __init__(self, checkpoint: str, device: str, *, compiled: bool) -> None:
        import torch
        import transformers

        self.torch, self.transformers, self.device, self.compiled = torch, transformers, device, compiled
        self.model = (
            transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval().to(device)
        )
        mode = "reduce-overhead" if device == "cuda" else "default"
        self.step = torch.compile(self.model.forward, mode=mode) if compiled else self.model.forward
        self.length = 0

    def prefill(self, ids: list[list[int]]) -> object:
        config = self.model.config
        self.length = 0
        self.cache = (
            self.transformers.StaticCache(config=config, max_cache_len=LONGEST)
            if self.compiled
            else self.transformers.DynamicCache(config=config)
        )
        return self._run(
            self.model.forward, ids
        )  # a prompt is run once: compiling it for every length is no user's choice

    def decode(self, tokens: list[int]) -> object:
        return self._run(self.step, [[token] for token in tokens])

    def _run(self, forward: Callable[..., Any], ids: list[list[int]]) -> object:
        torch = self.torch
        places = torch.arange(self.length, self.length + len(ids[0]), device=self.device)
        self.length += len(ids[0])
        with torch.inference_mode():
            made = forward(
                input_ids=torch.tensor(ids, device=self.device),
                position_ids=places[None].expand(len(ids), -1),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
                **({"cache_position": places} if self.compiled else {}),
            )
        return made.logits[:, -1].float().cpu().numpy()


class Ours:
    """The engine that `measure.py` built."""

    def __init__(self, folder: Path) -> None:
        from openclaw_opt.artifacts import Engine
        from openclaw_opt.backends import DecoderSession
        from openclaw_opt.backends.engines import open_engine

        session = open_engine(Engine(folder))
        assert isinstance(session, DecoderSession)
        self.session = session

    def prefill(self, ids: list[list[int]]) -> object:
        return self.session.prefill(np.array(ids, np.int64))

    def decode(self, tokens: list[int]) -> object:
        return self.session.decode(np.array(tokens, np.int64))


def opened(name: str, checkpoint: str, cache: Path, device: str) -> Batched:
    if name.startswith("pytorch"):
        return Torch(checkpoint, device, compiled=name == "pytorch-compiled")
    return Ours(cache / name)


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6


def answer(subject: Batched, asked: dict[str, Any], device: str) -> dict[str, Any]:
    if asked["do"] == "bandwidth":
        return {"rate": bandwidth(asked["bytes"], device)}
    batch = asked["batch"]
    first = timed(lambda: subject.prefill([asked["prompt"]] * batch))
    return {"first": first, "later": [timed(lambda t=token: subject.decode([t] * batch)) for token in asked["follow"]]}  # type: ignore[misc]


def bandwidth(size: int, device: str) -> float:
    """Bytes a second at which the device reads `size` bytes: the best of ten sums."""
    import torch

    values = torch.ones(size // 4, device=device)
    return size / min(timed(lambda: float(values.sum().item())) for _ in range(10)) * 1e3


def main() -> None:
    name, checkpoint, cache, device = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    subject = opened(name, checkpoint, Path(cache), device)
    print(json.dumps({"ready": name}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(subject, json.loads(line), device)), file=out, flush=True)


if __name__ == "__main__":
    main()
