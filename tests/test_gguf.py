"""The GGUF engine: weights bit for bit, every architecture against its graph, tokenizer, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openclaw_opt.artifacts import Engine, Graph
from openclaw_opt.backends import fastest, gguf
from openclaw_opt.backends.gguf_facts import ARCHITECTURES, refused
from openclaw_opt.backends.gguf_tensors import BLOCK, Blocks, qkv_order
from openclaw_opt.backends.llama_cpp import LlamaDecoder, library
from openclaw_opt.backends.llama_profile import NodeTimes
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.models.families import DECODERS, spec_from_config
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.passes import PROOF
from openclaw_opt.passes.build import Build
from openclaw_opt.plan import check_recipe
from openclaw_opt.profiling import STEPS, profile
from openclaw_opt.recipe import load_recipe
from openclaw_opt.targets import CANDIDATES, host
from openclaw_opt.verify import compare, make_probe
from tests import tiny
from tests.lowered import graph_of

needs_llama = pytest.mark.skipif(bool(gguf.missing()), reason=f"{gguf.missing()}: pip install 'openclaw-opt[gguf]'")
NO_WINDOW: dict[str, Any] = {"sliding_window": None, "layer_types": None}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3": ("llama3", {}),
    "llama-yarn": ("llama-yarn", {}),
    "llama-linear": ("llama-linear", {}),
    "qwen2": ("qwen2", {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", NO_WINDOW),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3", {}),
    "phi3": ("phi3-partial", {"sliding_window": None}),
}


def test_every_architecture_row_is_a_family_of_ours() -> None:
    assert set(ARCHITECTURES) <= {family.name for family in DECODERS}


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from((4, 8)), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_packed_blocks_read_back_bit_for_bit(n: int, blocks: int, bits: int, seed: int) -> None:
    gguf_package = pytest.importorskip("gguf", reason="pip install gguf")
    random = np.random.default_rng(seed)
    top = 1 << (bits - 1)
    codes = random.integers(-top, top, (n, blocks * BLOCK)).astype(np.int8)
    made = Blocks(codes, random.lognormal(-4, 2, (n, blocks)).astype(np.float32), bits)
    kind = getattr(gguf_package.GGMLQuantizationType, made.type_name)
    assert np.array_equal(gguf_package.quants.dequantize(made.packed(), kind), made.values())


def test_rows_of_a_rotated_head_become_neighbours() -> None:
    spec = spec_from_config(tiny.CONFIGS["llama"]().to_dict() | {"architectures": ["LlamaForCausalLM"]})
    assert isinstance(spec, DecoderSpec)
    order = qkv_order(spec, interleaved=True)
    assert sorted(order) == list(range(len(order)))
    assert order[:4].tolist() == [0, 8, 1, 9]
    values = len(order) - 2 * spec.head_dim
    assert order[values:].tolist() == list(range(values, len(order)))


@pytest.mark.slow
@needs_llama
@pytest.mark.parametrize("name", RUNS)
def test_the_file_computes_what_the_graph_computes(name: str, tmp_path: Path) -> None:
    family, changes = RUNS[name]
    graph, todo = graph_of(tmp_path, family, **changes)
    done = Build(backend="gguf").run(graph, todo)
    assert done.proof is not None
    verification = compare(Build(backend="gguf"), graph, done.artifact, probe_of(graph), done.proof)
    assert verification.value is not None
    assert verification.value < 1e-4 if "gemma" not in name else 1e-3, "its tanh GELU is a table in half precision"
    assert "ONNX Runtime against llama.cpp; rounding then moves outputs by" in verification.what
    assert {row.realised for row in done.artifact.facts.receipt} == {"Q4_0"}


def probe_of(graph: Graph) -> Any:
    return make_probe(gguf.decoder_spec(graph), seed=0)


@needs_llama
def test_int8_weights_are_q8_0_and_the_tokenizer_that_is_none_is_said(tmp_path: Path) -> None:
    graph, todo = graph_of(tmp_path, format="int8_weight_only")
    engine = Build(backend="gguf").run(graph, todo).artifact
    assert {row.realised for row in engine.facts.receipt} == {"Q8_0"}
    assert engine.facts.notes[0] == (
        "the file has no tokenizer: the tokenizer is a WordLevel, and only plain byte-level BPE is written; "
        "use tokenizer.json beside it"
    )


@needs_llama
def test_a_wrong_row_order_does_not_pass_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, todo = graph_of(tmp_path)
    plain = replace(ARCHITECTURES["llama"], interleaved=False)
    monkeypatch.setitem(ARCHITECTURES, "llama", plain)
    proof = gguf.build(graph, host(), todo.folder / PROOF, proof=True)
    with pytest.raises(Exception, match="pass `build` is exact, but outputs differ by"):
        compare(Build(backend="gguf"), graph, proof, probe_of(graph))


@needs_llama
def test_the_profile_names_every_node_and_changes_no_number(tmp_path: Path) -> None:
    graph, todo = graph_of(tmp_path)
    engine = gguf.build(graph, host(), todo.folder / "engine")
    rows = profile(engine.folder, tmp_path / "trace.json")
    layers = {row.layer: row.kernels for row in rows}
    for name in ("ffn_gate", "ffn_up", "ffn_out", "attn_out"):
        assert {f"{name}-0": ("MUL_MAT",), f"{name}-1": ("MUL_MAT",)}.items() <= layers.items()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "ffn_out-0" for event in events) == 1 + STEPS
    ids, times = np.arange(5)[None], NodeTimes(library())
    with (
        closing(LlamaDecoder(engine.folder / gguf.FILE, context=64, vocab=256, watch=times)) as watched,
        closing(LlamaDecoder(engine.folder / gguf.FILE, context=64, vocab=256)) as plain,
    ):
        np.testing.assert_allclose(watched.prefill(ids), plain.prefill(ids), atol=1e-5)
    assert times.events


@needs_llama
def test_a_session_refuses_what_does_not_fit(tmp_path: Path) -> None:
    graph, todo = graph_of(tmp_path)
    engine = gguf.build(graph, host(), todo.folder / "engine")
    with gguf.open_engine(engine) as session:
        for ids, what in (
            (np.zeros((1, 0), np.int64), "the prompt is empty"),
            (np.zeros((1, 65), np.int64), "a sequence of 65 tokens exceeds the engine's context of 64"),
            (np.full((1, 2), 256), "token ids reach from 256 to 256; the model has 0 to 255"),
        ):
            with pytest.raises(RecipeError, match=what):
                session.prefill(ids)
    (engine.folder / gguf.FILE).write_bytes(b"GGUF")
    with pytest.raises(MachineError, match=r"llama\.cpp cannot open the file: "):
        gguf.open_engine(engine)


@pytest.mark.slow
@needs_llama
def test_fastest_builds_each_and_keeps_one_with_the_numbers_of_all(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'openclaw-opt[openvino]'")
    graph, todo = graph_of(tmp_path, backend="fastest")
    engine = fastest.build(graph, host(), todo.folder / "engine")
    said = engine.facts.notes
    assert engine.facts.backend in CANDIDATES
    assert any(note.startswith(f"fastest: kept {engine.facts.backend}; ") for note in said)
    for name in CANDIDATES:
        assert any(note.startswith(f"{name} ") and " ms a token after it" in note for note in said), said
    assert not (engine.folder / fastest.TRIALS).exists()
    assert Engine(engine.folder).facts.receipt


def test_only_a_difference_beyond_the_interval_decides() -> None:
    def trial(name: str, times: list[float]) -> fastest.Trial:
        return fastest.Trial(name, prefill=times, decode=[0.0] * len(times))

    first = trial("first", [10.0, 11, 10, 11, 10, 11, 10, 11, 10])
    assert fastest.chosen([first])[0] is first
    assert fastest.chosen([first, trial("same", first.prefill)])[0] is first
    clear = trial("clear", [one / 2 for one in first.prefill])
    best, said = fastest.chosen([first, clear])
    assert best is clear
    assert said.startswith("fastest: kept clear; first / clear 2.00 (2.00 to 2.00)")


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("gpt2", {}, "the GGUF writer knows llama, mistral, qwen2, qwen3, phi3, gemma2, gemma3, not gpt2"),
        ("mistral", {}, "llama.cpp's llama has no sliding window; the model's is 8 tokens in a context of 64"),
        ("gemma2", {}, "llama.cpp's gemma2 scales attention by 0.25, the model by 0.1768"),
        ("phi3", {}, "llama.cpp's phi3 does not rotate as longrope does here"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(family: str, changes: dict[str, Any], what: str) -> None:
    config = tiny.CONFIGS[family]()
    words = {"gpt2": "GPT2LMHeadModel", "gemma2": "Gemma2ForCausalLM"}
    spec = spec_from_config(
        config.to_dict() | changes | {"architectures": [words.get(family, f"{family.capitalize()}ForCausalLM")]}
    )
    assert isinstance(spec, DecoderSpec)
    assert list(refused(spec)) == [what]


def test_check_refuses_a_gpu_other_blocks_and_other_formats(write_recipe: Callable[..., Path]) -> None:
    to_gguf = ("- build", "- build: {backend: gguf}")
    int4 = ("{format: int8, algorithm: max}", "{format: int4, algorithm: rtn, block: 64}")
    awq = ("{format: int8, algorithm: max}", "{format: int4, algorithm: awq_full}")
    cases = {
        (to_gguf, ("target: host", "target: l4")): ("gguf is for a CPU, not for NVIDIA L4", "target: host"),
        (to_gguf,): ("gguf does not realise int8 on", "format: int8_weight_only"),
        (to_gguf, awq): ("GGUF has no place for AWQ's factors on `o` with grouped queries", "algorithm: rtn"),
        (to_gguf, int4): ("GGUF has int4 in blocks of 32, not 64", "block: 32"),
    }
    for changes, (what, fix) in cases.items():
        with pytest.raises(RecipeError) as error:
            check_recipe(load_recipe(write_recipe(*changes)))
        said = str(error.value)
        assert what in said
        assert fix in said
