"""One peer in a process of its own: opens a model, then answers one JSON line for each on standard input.

    python worker.py PEER CHECKPOINT CACHE

    {"do": "round", "prompt": [ids], "follow": [ids]}  →  {"first": ms, "later": [ms, …]}
    {"do": "score", "ids": [ids]}                      →  {"nll": nats, "tokens": n}     (each token after the first, teacher forced)

A decode step is timed until its logits are in host memory; the next token is given, so no sampling is timed. Imports nothing of
openclaw_opt but in the peers `ours-…`: what is measured is the peer as a user has it.
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

THREADS = len(os.sched_getaffinity(0))


class Peer(Protocol):
    def prefill(self, ids: list[int]) -> Any: ...

    def decode(self, token: int) -> Any: ...


class Torch:
    """transformers with its own cache: eager, compiled, or quantized by torchao."""

    def __init__(self, checkpoint: str, dtype: str = "float32", *, compiled: bool = False, ao: str = "") -> None:
        import torch
        import transformers

        torch.set_num_threads(THREADS)
        self.torch, self.transformers = torch, transformers
        self.model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
        if ao:
            _quantize(self.model, ao)
        self.compiled, self.length = compiled, 0
        self.forward = torch.compile(self.model.forward) if compiled else self.model.forward

    def prefill(self, ids: list[int]) -> Any:
        self.length = 0
        if self.compiled:
            self.cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=192)
        else:
            self.cache = self.transformers.DynamicCache(config=self.model.config)
        return self._step(ids)

    def decode(self, token: int) -> Any:
        return self._step([token])

    def _step(self, ids: list[int]) -> Any:
        torch = self.torch
        places = torch.arange(self.length, self.length + len(ids))
        self.length += len(ids)
        with torch.inference_mode():
            made = self.forward(
                input_ids=torch.tensor([ids]),
                position_ids=places[None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
                **({"cache_position": places} if self.compiled else {}),
            )
        return made.logits[0, -1].float().numpy()


def _quantize(model: Any, kind: str) -> None:
    """torchao on the module itself, in blocks of 32; int4's kernel for CPUs is a prototype of its own, and transformers' config cannot name it."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    if kind == "int8":
        config: Any = Int8WeightOnlyConfig()
    else:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        config = PrototypeInt4WeightOnlyConfig(group_size=32)
    quantize_(model, config, filter_fn=lambda module, _: isinstance(module, torch.nn.Linear))


class Genai:
    """A folder of onnxruntime-genai's."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai as og

        config = json.loads((folder / "genai_config.json").read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = THREADS
        (folder / "genai_config.json").write_text(json.dumps(config))
        self.og, self.model = og, og.Model(str(folder))

    def prefill(self, ids: list[int]) -> Any:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=192)
        self.generator = self.og.Generator(self.model, params)
        return self._step(ids)

    def decode(self, token: int) -> Any:
        return self._step([token])

    def _step(self, ids: list[int]) -> Any:
        self.generator.append_tokens(ids)
        return np.asarray(self.generator.get_logits()).reshape(-1)


def genai(checkpoint: str, cache: Path, block: int) -> Genai:
    """onnxruntime-genai's own builder, int4 in the blocks asked for."""
    import subprocess

    folder = cache / f"genai-int4-{block}"
    if not (folder / "genai_config.json").is_file():
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", str(folder)]
        more = ["-p", "int4", "-e", "cpu", "-c", str(cache / "hub"), "--extra_options", f"int4_block_size={block}"]
        subprocess.run([*command, *more], check=True, stdout=sys.stderr)
    return Genai(folder)


def olive(cache: Path, name: str) -> Genai:
    """What Olive made, by `speed_builds.olive`."""
    return Genai(next(iter((cache / name).rglob("genai_config.json"))).parent)


class Openvino:
    """optimum-intel's export, weights compressed by NNCF; the stateful model run by OpenVINO itself."""

    def __init__(self, checkpoint: str, cache: Path, bits: int) -> None:
        import openvino

        folder = cache / f"openvino-int{bits}"
        if not (folder / "openvino_model.xml").is_file():
            from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

            more = {"group_size": 32, "ratio": 1.0} if bits == 4 else {}
            config = OVWeightQuantizationConfig(bits=bits, sym=True, **more)
            OVModelForCausalLM.from_pretrained(
                checkpoint, export=True, compile=False, quantization_config=config
            ).save_pretrained(folder)
        core = openvino.Core()
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS}
        model = core.compile_model(folder / "openvino_model.xml", "CPU", options)
        self.request = model.create_infer_request()
        self.names = {name for value in model.inputs for name in value.get_names()}
        self.length = 0

    def prefill(self, ids: list[int]) -> Any:
        self.request.reset_state()
        self.length = 0
        return self._step(ids)

    def decode(self, token: int) -> Any:
        return self._step([token])

    def _step(self, ids: list[int]) -> Any:
        start, self.length = self.length, self.length + len(ids)
        feed = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self.length), np.int64),
            "position_ids": np.arange(start, self.length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found = self.request.infer({name: value for name, value in feed.items() if name in self.names})
        return np.array(next(iter(found.values()))[0, -1])


class Session:
    """A DecoderSession of openclaw_opt."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def prefill(self, ids: list[int]) -> Any:
        return self.session.prefill(np.array([ids]))[0]

    def decode(self, token: int) -> Any:
        return self.session.decode(np.array([token]))[0]


def ours(cache: Path, backend: str) -> Session:
    """The artifact that `speed.py` built."""
    from openclaw_opt.artifacts import Engine
    from openclaw_opt.backends.engines import open_engine

    return Session(open_engine(Engine(cache / f"ours-{backend}")))


def llama_cpp(cache: Path, kind: str) -> Session:
    """llama.cpp's own quantizer on the float file, and llama.cpp; the same binding as our engine's."""
    from openclaw_opt.artifacts import Engine
    from openclaw_opt.backends.llama_cpp import LlamaDecoder, library

    lib = library()

    source, file = Engine(cache / "ours-float"), cache / f"llama-{kind}.gguf"
    if not file.is_file():
        params = lib.llama_model_quantize_default_params()
        params.ftype = {"q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0}[kind]
        part = file.with_suffix(".part")
        if lib.llama_model_quantize(str(source.folder / "model.gguf").encode(), str(part).encode(), params):
            raise RuntimeError("llama.cpp cannot quantize the float file")
        part.rename(file)
    facts = source.facts.graph
    return Session(LlamaDecoder(file, context=facts.context or 2048, vocab=facts.vocab or 0))


PEERS: dict[str, Callable[[str, Path], Peer]] = {
    "pytorch-fp32": lambda checkpoint, cache: Torch(checkpoint),
    "pytorch-bf16": lambda checkpoint, cache: Torch(checkpoint, "bfloat16"),
    "torch-compile-fp32": lambda checkpoint, cache: Torch(checkpoint, compiled=True),
    "torchao-int8": lambda checkpoint, cache: Torch(checkpoint, "bfloat16", ao="int8"),
    "torchao-int4": lambda checkpoint, cache: Torch(checkpoint, "bfloat16", ao="int4"),
    "genai-int4-32": lambda checkpoint, cache: genai(checkpoint, cache, 32),
    "genai-int4-128": lambda checkpoint, cache: genai(checkpoint, cache, 128),
    "olive-builder-int4": lambda checkpoint, cache: olive(cache, "olive-builder-int4"),
    "olive-rtn-int4": lambda checkpoint, cache: olive(cache, "olive-rtn-int4"),
    "openvino-int8": lambda checkpoint, cache: Openvino(checkpoint, cache, 8),
    "openvino-int4": lambda checkpoint, cache: Openvino(checkpoint, cache, 4),
    "llama.cpp-q4_0": lambda checkpoint, cache: llama_cpp(cache, "q4_0"),
    "llama.cpp-q8_0": lambda checkpoint, cache: llama_cpp(cache, "q8_0"),
    "ours-onnxruntime": lambda checkpoint, cache: ours(cache, "onnxruntime"),
    "ours-gguf": lambda checkpoint, cache: ours(cache, "gguf"),
    "ours-openvino": lambda checkpoint, cache: ours(cache, "openvino"),
}


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6


def answer(peer: Peer, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["do"] == "round":
        first = timed(lambda: peer.prefill(asked["prompt"]))
        return {"first": first, "later": [timed(lambda token=token: peer.decode(token)) for token in asked["follow"]]}  # type: ignore[misc]
    ids = asked["ids"]
    nll, logits = 0.0, np.asarray(peer.prefill(ids[:1]), np.float64)
    for i, token in enumerate(ids[1:]):
        top = logits.max()
        nll += float(np.log(np.exp(logits - top).sum()) + top - logits[token])
        if i < len(ids) - 2:
            logits = np.asarray(peer.decode(token), np.float64)
    return {"nll": nll, "tokens": len(ids) - 1}


def main() -> None:
    name, checkpoint, cache = sys.argv[1:]
    os.environ.pop(
        "OMP_WAIT_POLICY", None
    )  # every peer's threads wait as its runtime has it, whatever this environment says
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    peer = PEERS[name](checkpoint, Path(cache))
    print(json.dumps({"ready": name}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(peer, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
