"""Every metric on a real session: what it measures, what it will not state, and what it says instead."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from openclaw_opt.artifacts import Graph, GraphFacts, KvShape, LayerFormat, Measurement
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.data.load import ImageSet, SentenceSet, TokenSet
from openclaw_opt.errors import MachineError, VerificationError
from openclaw_opt.metrics import Metric
from openclaw_opt.metrics.agreement import Agreement
from openclaw_opt.metrics.classification import Classification, classification_rows
from openclaw_opt.metrics.embedding import Embedding, embedding_rows
from openclaw_opt.metrics.latency import Latency
from openclaw_opt.metrics.memory import Memory
from openclaw_opt.metrics.perplexity import Perplexity
from openclaw_opt.metrics.reference import TokenReference, store_arrays, store_tokens
from openclaw_opt.metrics.roofline import Roofline, read_work
from openclaw_opt.metrics.scores import feeds, score_sequences
from openclaw_opt.metrics.size import Size
from openclaw_opt.metrics.subject import Opener, Subject
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.targets import target_named

VOCAB, LENGTH = 11, 9
SEQUENCES = np.random.default_rng(0).integers(0, VOCAB, (6, LENGTH))
TABLE = np.random.default_rng(1).normal(0, 2, (VOCAB, VOCAB)).astype(np.float32)
FACTS = GraphFacts(
    task="decoder", dialect="onnxruntime", dtype="float32", family="llama", opset=23, vocab=VOCAB, context=64, hidden=8,
    kv=(KvShape(q_heads=4, kv_heads=2, head_dim=16), KvShape(q_heads=4, kv_heads=2, head_dim=16, window=8)),
)  # fmt: skip


class Bigram(DecoderSession):
    """Logits of the next token are a row of a table: everything has a closed form. `seconds` makes it slow."""

    def __init__(self, table: np.ndarray, seconds: float = 0.0) -> None:
        self.table, self.seconds, self.calls = table, seconds, 0

    def logits(self, ids: Any) -> Any:
        self.calls += 1
        return self.table[ids]

    def prefill(self, ids: Any, lengths: Any = None) -> Any:
        time.sleep(self.seconds)
        return self.table[ids[:, -1]]

    def decode(self, ids: Any) -> Any:
        time.sleep(self.seconds)
        return self.table[ids]


def tokens(sequences: np.ndarray = SEQUENCES) -> TokenSet:
    return TokenSet(sequences, bytes=3 * sequences[:, 1:].size, fingerprint="f", documents=("a",))


def subject(folder: Path, session: Any, **facts: Any) -> Subject:
    reference = store_tokens(Bigram(TABLE).logits, SEQUENCES, VOCAB, folder / "reference")
    here = Subject(
        facts=FACTS,
        target=target_named("rtx4090"),
        accuracy=Opener(lambda: session),
        speed=Opener(lambda: session),
        eager=Opener(None, "reference", "no eager here"),
        data=tokens(),
        reference=reference,
        memory_why="no engine",
    )
    return replace(here, **facts)


def by_name(rows: list[Measurement], whose: str = "engine") -> dict[str, Measurement]:
    return {row.name: row for row in rows if row.subject == whose}


def log_softmax(table: np.ndarray) -> np.ndarray:
    wide = table.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


# ---- the contract


@pytest.mark.parametrize("word", part_names("metrics"))
def test_every_metric_gives_every_name_or_says_why_not(word: str, tmp_path: Path) -> None:
    metric = part_named("metrics", word, Metric)()
    assert metric.word == word
    assert metric.summary
    nothing = Opener(None, "engine", "no NVIDIA GPU")
    for task in metric.for_tasks:
        blank = Subject(
            facts=FACTS.model_copy(update={"task": task, "kv": ()}), target=target_named("h100-sxm"), accuracy=nothing,
            speed=nothing, eager=nothing, memory_why="no NVIDIA GPU",
        )  # fmt: skip
        rows = metric.measure(blank)
        assert [row.name for row in rows] == list(metric.measurement_names(task))
        assert all(row.value is None and row.not_measured for row in rows)
        assert {(row.unit, row.better) for row in rows} <= {(n.unit, n.better) for n in metric.numbers}


def test_names_are_given_once() -> None:
    names = [name for word in part_names("metrics") for name in part_named("metrics", word, Metric).measurement_names()]
    assert len(names) == len(set(names))


def test_a_measurement_has_a_value_or_a_reason() -> None:
    with pytest.raises(ValueError, match="either a value or the reason"):
        Measurement(name="x", value=None, unit="", better="lower")
    with pytest.raises(ValueError, match="either a value or the reason"):
        Measurement(name="x", value=1.0, unit="", better="lower", not_measured="no")


def test_metrics_load_without_torch_onnx_or_scipy() -> None:
    import subprocess

    code = (
        "import sys\nfrom openclaw_opt.parts import part_named, part_names\nfrom openclaw_opt.metrics import Metric\n"
        "[part_named('metrics', word, Metric) for word in part_names('metrics')]\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'scipy', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- decoders: accuracy


def test_perplexity_and_agreement_have_their_closed_forms(tmp_path: Path) -> None:
    ours = TABLE + np.random.default_rng(2).normal(0, 0.3, TABLE.shape).astype(np.float32)
    session = Bigram(ours)
    here = subject(tmp_path, session)
    rows = Perplexity().measure(here) + Agreement().measure(here)
    assert session.calls == 1, "the evaluation set is run once for all metrics"
    before, after = SEQUENCES[:, :-1].reshape(-1), SEQUENCES[:, 1:].reshape(-1)
    p, q = log_softmax(TABLE), log_softmax(ours)
    nll, reference = -q[before, after].mean(), -p[before, after].mean()
    engine, theirs = by_name(rows), by_name(rows, "reference")
    assert engine["perplexity"].value == pytest.approx(np.exp(nll), rel=1e-5)
    assert theirs["perplexity"].value == pytest.approx(np.exp(reference), rel=1e-5)
    assert engine["bits_per_byte"].value == pytest.approx(nll / np.log(2) / 3, rel=1e-5)
    assert engine["perplexity.recovery"].value == pytest.approx(np.exp(reference - nll), rel=1e-5)
    assert engine["bits_per_byte.recovery"].value == pytest.approx(reference / nll, rel=1e-5)
    assert engine["kl.mean"].value == pytest.approx((np.exp(p) * (p - q)).sum(-1)[before].mean(), rel=2e-3)
    assert engine["agreement.top1"].value == pytest.approx((p.argmax(-1) == q.argmax(-1))[before].mean())
    for row in engine.values():
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.value <= row.high
        assert row.samples == len(SEQUENCES)


def test_the_checkpoint_against_itself_is_lossless(tmp_path: Path) -> None:
    here = subject(
        tmp_path, Bigram(TABLE), accuracy=Opener(lambda: Bigram(TABLE), "engine graph on ONNX Runtime CPU", note="n")
    )
    rows = by_name(Perplexity().measure(here) + Agreement().measure(here), "engine graph on ONNX Runtime CPU")
    assert rows["perplexity.recovery"].value == pytest.approx(1, abs=1e-6)
    assert rows["agreement.top1"].value == 1
    assert abs(rows["kl.mean"].value or 0) < 1e-5
    assert {row.note for row in rows.values()} == {"n"}


def test_recovery_is_the_same_draw_for_both(tmp_path: Path) -> None:
    """Sequences differ much in difficulty; the recovery's interval does not inherit that."""
    rows = by_name(Perplexity().measure(subject(tmp_path, Bigram(TABLE * 1.02))))
    wide, narrow = rows["perplexity"], rows["perplexity.recovery"]
    assert (narrow.high - narrow.low) / narrow.value < 0.2 * (wide.high - wide.low) / wide.value


def test_what_is_not_finite_is_an_error_not_a_number(tmp_path: Path) -> None:
    broken = TABLE.copy()
    broken[3, 4] = np.nan
    with pytest.raises(VerificationError, match="engine's logits hold NaN"):
        Perplexity().measure(subject(tmp_path, Bigram(broken)))
    with pytest.raises(VerificationError, match="reference's logits hold NaN"):
        store_tokens(Bigram(broken).logits, SEQUENCES, VOCAB, tmp_path / "r")


def test_a_session_this_machine_cannot_open_is_not_measured(tmp_path: Path) -> None:
    def refuse() -> Any:
        raise MachineError("ONNX Runtime has no kernel for bfloat16")

    here = subject(tmp_path, None, accuracy=Opener(refuse, "engine graph on ONNX Runtime CPU"), speed=Opener(refuse))
    for metric in (Perplexity(), Agreement(), Latency()):
        rows = metric.measure(here)
        assert [row.name for row in rows] == list(metric.measurement_names("decoder"))
        assert {row.not_measured for row in rows} == {"ONNX Runtime has no kernel for bfloat16"}


def test_a_reference_of_other_data_is_refused(tmp_path: Path) -> None:
    reference = store_tokens(Bigram(TABLE).logits, SEQUENCES, VOCAB, tmp_path)
    with pytest.raises(VerificationError, match=r"of \[6, 8\] positions, the data has \[5, 9\] tokens"):
        score_sequences(Bigram(TABLE).logits, SEQUENCES[:5], TokenReference(reference.folder))


def test_batching_does_not_change_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = store_tokens(Bigram(TABLE).logits, SEQUENCES, VOCAB, tmp_path / "a")
    whole = score_sequences(Bigram(TABLE * 1.1).logits, SEQUENCES, reference)
    monkeypatch.setattr("openclaw_opt.metrics.reference.LOGIT_BYTES", 1)
    session = Bigram(TABLE * 1.1)
    assert score_sequences(session.logits, SEQUENCES, reference) == whole
    assert session.calls == len(SEQUENCES)


# ---- encoders and classifiers


@given(st.integers(2, 12), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_an_embedding_against_itself_scaled(texts: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(texts, 5)).astype(np.float32)
    found = by_name(embedding_rows(rows, 3 * rows))
    assert found["embedding.cosine.mean"].value == pytest.approx(1, abs=1e-6)
    assert found["embedding.retrieval"].value == 1


def test_a_text_alone_has_no_neighbours() -> None:
    found = by_name(embedding_rows(np.ones((1, 4), np.float32), np.ones((1, 4), np.float32)))
    assert found["embedding.retrieval"].not_measured == "one text has no neighbours"
    assert found["embedding.cosine.min"].value == pytest.approx(1)


def test_classification_counts() -> None:
    labels = np.arange(40) % 4
    reference = np.eye(4, dtype=np.float32)[labels].copy()
    reference[:4] = np.eye(4)[(labels[:4] + 1) % 4]
    ours = reference.copy()
    ours[4:8] = np.eye(4)[(labels[4:8] + 1) % 4]
    rows = classification_rows(reference, ours, labels)
    engine = by_name(rows)
    assert (engine["accuracy.top1"].value, by_name(rows, "reference")["accuracy.top1"].value) == (0.8, 0.9)
    assert engine["accuracy.top1.recovery"].value == pytest.approx(0.8 / 0.9)
    assert engine["agreement.class"].value == pytest.approx(0.9)
    never = by_name(classification_rows(np.roll(np.eye(4)[labels], 1, 1), ours, labels))
    assert "classifies no sample" in never["accuracy.top1.recovery"].not_measured


class Linear(GenericSession):
    def __init__(self, name: str, source: str) -> None:
        self.name, self.source, self.batches = name, source, 0

    def infer(self, feed: Any) -> Any:
        self.batches += 1
        rows = np.asarray(feed[self.source], np.float32)
        return {self.name: rows.reshape(len(rows), -1)[:, :4]}


def test_encoders_and_classifiers_through_their_sessions(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(1, 50, (40, 6))
    texts = SentenceSet(tuple(map(str, range(40))), ids, np.ones_like(ids), "f", ("a",))
    shapes: dict[str, list[int | str]] = {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}
    facts = FACTS.model_copy(update={"task": "encoder", "batch_first_shapes": shapes, "kv": ()})
    session = Linear("embedding", "input_ids")
    stored = store_arrays({"embedding": ids[:, :4].astype(np.float32)}, tmp_path / "e")
    here = subject(tmp_path, session, facts=facts, data=texts, reference=stored)
    assert by_name(Embedding().measure(here))["embedding.cosine.mean"].value == pytest.approx(1)
    assert session.batches == 2, "40 texts in batches of 32"
    with pytest.raises(VerificationError, match="nothing for the graph's inputs"):
        feeds(tokens(), facts)
    images = ImageSet(np.random.default_rng(0).random((5, 1, 2, 2), np.float32), np.zeros(5, np.int64), "f", ("a",))
    facts = FACTS.model_copy(
        update={"task": "vision", "batch_first_shapes": {"pixel_values": ["batch", 1, 2, 2]}, "kv": ()}
    )
    stored = store_arrays({"logits": images.images.reshape(5, 4)}, tmp_path / "v")
    here = subject(tmp_path, Linear("logits", "pixel_values"), facts=facts, data=images, reference=stored)
    assert by_name(Classification().measure(here))["agreement.class"].value == 1


# ---- speed


def timing(**options: Any) -> Latency:
    return Latency(**{"prompt": 8, "new_tokens": 4, "time_box_s": 0.3, "warmup": 1, **options})


def test_latency_states_what_it_has_samples_for(tmp_path: Path) -> None:
    fast, slow = Bigram(TABLE, 0.001), Bigram(TABLE, 0.003)
    here = subject(tmp_path, fast, eager=Opener(lambda: slow, "reference"))
    rows = timing().measure(here)
    engine, theirs = by_name(rows), by_name(rows, "reference")
    assert set(engine) == set(Latency.measurement_names("decoder"))
    assert 1.0 <= engine["latency.decode.p50_ms"].value < theirs["latency.decode.p50_ms"].value
    assert "needs 459 samples" in engine["latency.decode.p99_ms"].not_measured
    assert "load" in engine["latency.decode.p50_ms"].note
    raw = engine["latency.decode.p50_ms"].raw
    assert len(raw) == engine["latency.decode.p50_ms"].samples
    assert engine["latency.decode.p50_ms"].value == pytest.approx(float(np.percentile(raw, 50)), rel=1e-4)
    assert engine["throughput.decode_tokens_per_s"].value == pytest.approx(1e3 / np.mean(raw), rel=1e-4)
    speedup = engine["speedup"]
    assert speedup.low <= speedup.value <= speedup.high
    assert speedup.value > 1.2


def test_p99_needs_its_459_samples(tmp_path: Path) -> None:
    rows = by_name(timing(new_tokens=16, time_box_s=30.0, compare=False).measure(subject(tmp_path, Bigram(TABLE))))
    assert rows["latency.decode.p99_ms"].value is not None
    assert (rows["latency.decode.p99_ms"].samples or 0) >= 459
    assert rows["latency.ttft.p90_ms"].value is not None
    assert rows["speedup"].not_measured == "no eager here"


def test_measuring_ends_when_even_the_fewest_rounds_take_too_long(tmp_path: Path) -> None:
    began = time.monotonic()
    rows = by_name(timing(time_box_s=0.05, new_tokens=2, compare=False).measure(subject(tmp_path, Bigram(TABLE, 0.05))))
    assert time.monotonic() - began < 3
    assert "p50 needs 7 samples" in rows["latency.ttft.p50_ms"].not_measured


def test_who_goes_first_alternates(tmp_path: Path) -> None:
    order: list[str] = []

    class Told(Bigram):
        def __init__(self, name: str) -> None:
            super().__init__(TABLE, 0.001)
            self.name = name

        def prefill(self, ids: Any, lengths: Any = None) -> Any:
            order.append(self.name)
            return super().prefill(ids)

    timing().measure(subject(tmp_path, Told("a"), eager=Opener(lambda: Told("b"), "reference")))
    assert order[:8] == ["a", "b", "a", "b", "b", "a", "a", "b"]


def test_models_without_a_cache_are_timed_whole(tmp_path: Path) -> None:
    facts = FACTS.model_copy(
        update={"task": "vision", "batch_first_shapes": {"pixel_values": ["batch", 1, 4, 4]}, "kv": ()}
    )
    session = Linear("logits", "pixel_values")
    rows = by_name(timing(batch=3).measure(subject(tmp_path, session, facts=facts)))
    assert set(rows) == set(Latency.measurement_names("vision"))
    mean = float(np.mean(rows["latency.infer.p50_ms"].raw))
    assert rows["throughput.samples_per_s"].value == pytest.approx(3e3 / mean, rel=1e-3)


# ---- size, memory, bound


def test_size_is_bytes(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"x" * 2**20)
    (tmp_path / "original").write_bytes(b"x" * 3 * 2**20)
    here = subject(tmp_path, Bigram(TABLE), files=(tmp_path / "engine",), original_files=(tmp_path / "original",))
    rows = Size().measure(here)
    assert (by_name(rows)["size_mib"].value, by_name(rows)["size.reduction"].value) == (1.0, 3.0)
    assert by_name(rows, "reference")["size_mib"].value == 3.0


def child(code: str) -> tuple[str, ...]:
    return ("-c", f"import json, sys\n{code}")


def test_memory_is_that_of_the_child(tmp_path: Path) -> None:
    """A child that touches 60 MiB, whatever this process holds; measured by the code the real child runs."""
    held = np.ones(2**25, np.uint8)
    code = (
        "from openclaw_opt.metrics._memory_child import resident\nbefore = resident('VmRSS')\nx = bytearray(60 * 2**20)\n"
        "x[::4096] = b'1' * len(x[::4096])\ndel x\nprint(json.dumps({'before': before, 'peak': resident('VmHWM')}))"
    )
    rows = by_name(Memory().measure(subject(tmp_path, Bigram(TABLE), memory_command=child(code))))
    assert rows["memory.engine_mib"].value == pytest.approx(60, abs=6)
    assert rows["memory.peak_mib"].value > 60
    assert held.all()


def test_a_child_that_fails_is_not_measured(tmp_path: Path) -> None:
    here = subject(tmp_path, Bigram(TABLE), memory_command=child("sys.exit('no such engine')"))
    assert Memory().measure(here)[0].not_measured == "the run ended with exit code 1: no such engine"
    here = subject(tmp_path, Bigram(TABLE), memory_command=child("import time; time.sleep(9)"))
    assert Memory(timeout_s=0.2).measure(here)[0].not_measured == "the run took longer than 0.2 s"


def work_graph(folder: Path) -> Path:
    """An embedding of 10·8, a gathered and multiplied head of 8·10, an int4 matrix of 32·8 and a bias."""
    rng = np.random.default_rng(0)
    weights = {
        "embed.weight": rng.normal(size=(10, 8)).astype(np.float32),
        "head.weight": rng.normal(size=(8, 10)).astype(np.float32),
        "l.bias": np.zeros(10, np.float32),
        "layers.0.qkv.weight_scale": np.ones((1, 8), np.float32),
    }
    packed = helper.make_tensor("layers.0.qkv.weight_q", TensorProto.INT4, (32, 8), np.zeros(256, np.int8))
    nodes = [
        helper.make_node("Gather", ["embed.weight", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "head.weight"], ["y"]),
        helper.make_node("Add", ["y", "l.bias"], ["z"]),
        helper.make_node(
            "DequantizeLinear", ["layers.0.qkv.weight_q", "layers.0.qkv.weight_scale"], ["w"], axis=0, block_size=32
        ),
        helper.make_node("MatMul", ["wide", "w"], ["u"]),
    ]
    initializers = [packed, *(numpy_helper.from_array(value, name) for name, value in weights.items())]
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], initializers)), str(folder / "model.onnx"))
    return folder


def test_the_roofline_counts_what_a_step_reads(tmp_path: Path) -> None:
    work = read_work(work_graph(tmp_path))
    assert work.weight_bytes == 8 * 10 * 4 + 10 * 4 + 32 * 8 // 2 + 8 * 4
    assert {(matrix.name, matrix.k, matrix.n) for matrix in work.matrices} == {
        ("head.weight", 8, 10),
        ("layers.0.qkv.weight_q", 32, 8),
    }


def test_the_roofline_is_a_bound_with_its_arithmetic(tmp_path: Path) -> None:
    quantized = (LayerFormat(name="layers.0.qkv", format="int8"),)
    facts = FACTS.model_copy(update={"quantized": quantized})
    target = target_named("rtx4090")
    here = subject(tmp_path, Bigram(TABLE), graph=work_graph(tmp_path / "g"), facts=facts)
    rows = by_name(Roofline(context=100, prompt=10**6).measure(here), "bound")
    weights = 8 * 10 * 4 + 10 * 4 + 32 * 8 // 2 + 8 * 4
    cache = 4 * (2 * 2 * 16 * 100 + 2 * 2 * 16 * 8)
    assert rows["roofline.decode_ms"].value == pytest.approx(1e3 * (weights + cache) / target.bandwidth)
    matrices = 2 * 80 / target.peak["fp16"] + 2 * 256 / target.peak["int8"]
    attention = 0.5 * (4 * 4 * 16 * 10**6 + 4 * 4 * 16 * 8) / target.peak["fp16"]
    assert rows["roofline.ttft_ms"].value == pytest.approx(1e3 * 10**6 * (matrices + attention))
    assert "arithmetic of GeForce RTX 4090" in rows["roofline.ttft_ms"].note
    unknown = subject(tmp_path, Bigram(TABLE), graph=tmp_path / "g", target=replace(target, bandwidth=None))
    assert "are not known" in Roofline().measure(unknown)[0].not_measured


def test_memory_of_a_real_engine(tmp_path: Path) -> None:
    from openclaw_opt.backends import onnxruntime
    from openclaw_opt.graph.to_onnxruntime import lower
    from openclaw_opt.metrics.memory import memory_command
    from tests.tiny_decoder import Tiny, write_tiny

    graph = lower(write_tiny(Tiny(dtype="float32"), tmp_path / "p"), tmp_path / "o")
    graph.assets.mkdir()
    (Graph(graph.folder).assets / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    engine = onnxruntime.build(graph, target_named("host"), tmp_path / "e")
    rows = by_name(
        Memory(prompt=8, new_tokens=4).measure(
            subject(tmp_path, Bigram(TABLE), memory_command=memory_command(engine.folder))
        )
    )
    assert rows["memory.peak_mib"].not_measured == ""
    assert 0 < rows["memory.engine_mib"].value < rows["memory.peak_mib"].value
