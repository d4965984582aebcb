"""The GGUF engine: a decoder's lowered graph as one file that llama.cpp and everything built on it runs on a CPU.

Three things are proven before the engine counts as built:

    * the file's weights, read back by the `gguf` package, are our codes times our scales rounded to half precision, bit for bit;
    * the same weights as float32, in llama.cpp with a float32 cache, give the graph's outputs (`proof`; compared by the pipeline):
      so the architecture, the rotation and the order of rows are right;
    * the tokenizer in the file gives the ids of the checkpoint's.

What is left is rounding of activations to int8 and of the cache to half precision, or to int8 or int4 where the recipe asks for it
(llama.cpp then finds a scale for 32 channels of each token): it is measured, against the proof and as accuracy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openclaw_opt import zeros
from openclaw_opt.artifacts import Engine, EngineFacts, Graph, ReceiptRow
from openclaw_opt.backends.gguf_facts import ARCHITECTURES, model_facts, refused
from openclaw_opt.errors import MachineError, RecipeError, VerificationError
from openclaw_opt.formats import CACHES
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.targets import Target

Progress = Callable[[float, str], None]
FILE = "model.gguf"
Floats = NDArray[np.float32]


def missing() -> str:
    """Why this machine cannot run GGUF; empty if it can."""
    from openclaw_opt.backends.llama_cpp import MODULE, PACKAGE

    absent = [name for module, name in ((MODULE, PACKAGE), ("gguf", "gguf")) if find_spec(module) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


def build(
    graph: Graph, target: Target, folder: Path, progress: Progress = lambda part, text: None, *, proof: bool = False
) -> Engine:
    """The engine in `folder`: model.gguf, graph.json, assets/.

    Args:
        graph: of a decoder, in dialect `onnxruntime`.
        target: a CPU.
        proof: write float32 weights, the quantized ones dequantized, and open it exactly; to compare with the graph.

    Raises:
        RecipeError: llama.cpp has no such decoder; what it lacks is named.
        MachineError: a package is missing.
        VerificationError: what was written is not what was to be written.
    """
    began, facts = time.monotonic(), graph.facts
    if why := missing():
        raise MachineError(why, fix="pip install 'openclaw-opt[gguf]'")
    spec = decoder_spec(graph)
    reasons = list(refused(spec, facts.context))
    if reasons:
        raise RecipeError(reasons[0], where="build.backend", fix="backend: onnxruntime")
    folder.mkdir(parents=True, exist_ok=True)
    progress(0.1, "writing GGUF")
    rows, rounded, why = _write(graph, spec, folder / FILE, proof=proof)
    progress(0.6, "reading it back")
    engine, notes = Engine(folder), (*zeros.notes(facts, (target,), "gguf"), *_notes(rounded, why))
    held = None if proof or spec.cache is None else CACHES[spec.cache.format]
    if held is not None:
        notes = (*notes, _cache_note(held.name))
    types = {"cache": held.name, "block": held.blocks} if held is not None else {"cache": None}
    kv = tuple(one.model_copy(update=types) for one in facts.kv)
    _copy_assets(graph, folder)
    engine.write_facts(
        EngineFacts(
            task="decoder",
            backend="gguf",
            target=target.name,
            dialect=facts.dialect,
            # Scales and cache are half precision: what comes out can agree with float32 no further.
            dtype="float32" if proof else "float16",
            graph=facts.model_copy(update={"dtype": "float32" if proof else "float16", "kv": kv}),
            files=(FILE,),
            receipt=rows,
            notes=notes,
            tool=_tool(),
            build_seconds=time.monotonic() - began,
        )
    )
    if not why and not proof:
        _check_tokenizer(engine)
    if held is not None:
        caches = tuple(_cache_rows(engine, held.name))
        engine.write_facts(engine.facts.model_copy(update={"receipt": (*rows, *caches)}))
        if wrong := [row for row in caches if not row.ok]:
            raise VerificationError(f"llama.cpp holds its cache in {wrong[0].realised}, not in {held.name}")
    return engine


def open_engine(engine: Engine, *, threads: int | None = None) -> Any:
    """A session on the engine. Raises MachineError when llama.cpp is not here or refuses the file."""
    from openclaw_opt.backends.llama_cpp import LlamaDecoder

    facts = engine.facts
    assert facts.graph.context is not None, "a decoder's graph states its context"
    assert facts.graph.vocab is not None, "a decoder's graph states its vocabulary"
    return LlamaDecoder(
        engine.folder / FILE,
        context=facts.graph.context,
        vocab=facts.graph.vocab,
        exact=facts.dtype == "float32",
        threads=threads,
        cache=facts.graph.kv[0].cache,
    )


def decoder_spec(graph: Graph) -> DecoderSpec:
    """What the graph computes. Raises RecipeError for other tasks."""
    if graph.facts.task != "decoder" or not graph.facts.decoder:
        raise RecipeError(f"GGUF is written for decoders, not for a {graph.facts.task} model", where="build.backend")
    return DecoderSpec.model_validate(graph.facts.decoder)


def weight_bytes(file: Path) -> int:
    """Bytes of weights a decode step reads: every tensor but an embedding that is not the head too."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(file).tensors}
    return sum(size for name, size in sizes.items() if name != "token_embd.weight" or "output.weight" not in sizes)


def _tool() -> str:
    from openclaw_opt.backends.llama_cpp import version

    return version()


def _write(
    graph: Graph, spec: DecoderSpec, file: Path, *, proof: bool
) -> tuple[tuple[ReceiptRow, ...], dict[str, float], str]:
    """The file; a receipt row a quantized tensor, how far rounding moved scales by layer, and why there is no tokenizer."""
    import gguf

    from openclaw_opt.backends.gguf_tensors import Blocks, tensors
    from openclaw_opt.backends.gguf_tokenizer import vocabulary

    config = _json(graph.assets / "config.json") | _json(graph.assets / "generation_config.json")
    words = vocabulary(graph.assets, spec.vocab, config)
    writer = gguf.GGUFWriter(file, ARCHITECTURES[spec.family].name)
    arch = ARCHITECTURES[spec.family].name
    context = graph.facts.context or spec.context
    for key, value in {f"{arch}.{name}": v for name, v in model_facts(spec, context).items()}.items():
        _add(writer, key, value)
    for key, value in {"general.file_type": 0 if proof else 2, **words.facts}.items():
        _add(writer, key, value)
    formats = {layer.name: layer.format for layer in graph.facts.quantized}
    rows: list[ReceiptRow] = []
    rounded: dict[str, float] = {}
    for name, weight, layer in tensors(graph, spec):
        if not isinstance(weight, Blocks):
            writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
            continue
        rounded[layer] = float(np.abs(weight.half.astype(np.float32) / weight.scales - 1).max())
        if proof:
            writer.add_tensor(name, weight.exact_values())
            continue
        kind = getattr(gguf.GGMLQuantizationType, weight.type_name)
        packed = weight.packed()
        if not np.array_equal(gguf.quants.dequantize(packed, kind), weight.values()):
            raise VerificationError(f"{layer}: {weight.type_name} does not hold the weights it was given")
        writer.add_tensor(name, packed, raw_dtype=kind)
        rows.append(_receipt(layer, name, formats.get(layer, "?"), weight.type_name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tuple(rows), rounded, words.why


def _receipt(layer: str, tensor: str, asked: str, kind: str) -> ReceiptRow:
    why = f"tensor {tensor}; ggml multiplies it with activations in int8, blocks of 32"
    return ReceiptRow(layer=layer, asked=asked, realised=kind, ok=True, why=why)


def _cache_rows(engine: Engine, asked: str) -> Iterator[ReceiptRow]:
    """A row for each cache that llama.cpp makes (layers with and without a window have one each), from what its log says."""
    from openclaw_opt.backends.llama_cpp import LOW_BIT

    with closing(open_engine(engine)) as session:
        held = session.cache_types()
    wanted, why = LOW_BIT[asked][0], "types of keys and values in llama.cpp's log"
    for i, types in enumerate(held or (("not found", "not found"),)):
        realised, ok = "/".join(dict.fromkeys(types)), types == (wanted, wanted)
        yield ReceiptRow(layer=f"cache.{i}" if i else "cache", asked=asked, realised=realised, ok=ok, why=why)


def _cache_note(name: str) -> str:
    from openclaw_opt.backends.llama_cpp import LOW_BIT

    word = LOW_BIT[name][0]
    return (
        f"a GGUF file does not state its cache: start llama.cpp with --cache-type-k {word} --cache-type-v {word} "
        "--flash-attn on for what was measured here"
    )


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _notes(rounded: dict[str, float], why: str) -> tuple[str, ...]:
    notes = [f"the file has no tokenizer: {why}; use tokenizer.json beside it"] if why else []
    largest = max(rounded.values(), default=0.0)
    if largest:
        worst = max(rounded, key=lambda name: rounded[name])
        notes.append(
            f"GGUF keeps scales in half precision: they moved by at most {largest:.2g} of themselves ({worst})"
        )
    return tuple(notes)


def _copy_assets(graph: Graph, folder: Path) -> None:
    from openclaw_opt.graph import ir_tools

    lowered = Graph(folder)
    lowered.write_facts(graph.facts)
    ir_tools.copy_assets(graph, lowered)


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return {key: value for key, value in content.items() if value is not None}


def _check_tokenizer(engine: Engine) -> None:
    """The ids that llama.cpp gives for texts, against the checkpoint's own tokenizer."""
    for text, wanted, got in _tokenized(engine):
        if wanted != got:
            raise VerificationError(
                f"the tokenizer in the file gives {got[:8]}… for {text[:24]!r}, the checkpoint's gives {wanted[:8]}…",
                where=str(engine.folder / FILE),
            )


def _tokenized(engine: Engine) -> Iterator[tuple[str, list[int], list[int]]]:
    from tokenizers import Tokenizer

    from openclaw_opt.backends.gguf_tokenizer import PROBES

    tokenizer = Tokenizer.from_file(str(engine.assets / "tokenizer.json"))
    with closing(open_engine(engine)) as session:
        for text in PROBES:
            yield text, tokenizer.encode(text, add_special_tokens=False).ids, session.tokenize(text)
