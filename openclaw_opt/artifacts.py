"""What flows through the pipeline: Checkpoint → Model → Graph → Engine → Report.

Each of the first four is a folder and the facts that a JSON file in that folder states. They are values: a pass gets one
and a fresh folder, and gives the next. Nothing here imports torch or onnx.

    Checkpoint   what the user has: config.json, *.safetensors, tokenizer files. Never written to.
    Model        model.json + model.safetensors + assets/: our canonical layout, float or quantized.
    Graph        graph.json + model.onnx (+ model.onnx.data) + assets/: the portable graph or a lowering of it.
    Engine       engine.json + what the runtime loads + assets/.

`assets/` holds what goes through unchanged: config.json, generation_config.json, tokenizer files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from openclaw_opt.formats import CACHES

Task = Literal["decoder", "encoder", "vision"]
MODEL_OF: dict[str, str] = {"decoder": "a decoder", "encoder": "an encoder", "vision": "a vision model"}
"""What a model for the task is called in a sentence."""
Dialect = Literal["portable", "onnxruntime", "tensorrt"]
FloatType = Literal["float32", "float16", "bfloat16"]
FLOAT_BYTES: dict[FloatType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
SCALE_BITS = 16
WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".data", ".plan", ".gguf", ".xml", ".bin")
SECOND = "second"
"""Folder in a lowered Graph with the portable one, for runtimes that want that, where a build is to choose between several."""


class Facts(BaseModel):
    """A frozen record that is written as JSON and read back equal; an unknown key is an error."""

    # Validators are made when first used: `check` reads few of these, and is to take half a second.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class LayerFormat(Facts):
    """What was asked of one linear layer: the row the precision receipt is checked against."""

    name: str
    """Name of the linear module, e.g. `layers.0.qkv`; every ONNX node and initializer of it starts with this name."""
    format: str
    """A row of formats.py."""
    block: int | None = None
    """Elements of the input axis that share a scale; None for per-channel."""


class LayerZeros(Facts):
    """Zeros that a pass put into one layer's weight and that every later pass keeps."""

    pattern: Literal["2:4", "unstructured"]
    """`2:4`: at most two of four neighbouring inputs of an output are not zero."""
    share: float
    """Of the weight, 0 to 1."""


class KvShape(Facts):
    """Shape of one decoder layer's cache: past_key_values.i.key is [batch, kv_heads, past, head_dim]."""

    q_heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    """Sliding attention window in tokens, counted with the token itself; None for full attention."""
    cache: str | None = None
    """Format of the cache, a row of formats.CACHES; None for the graph's float type."""
    block: int | None = None
    """Channels that share what is stored with each token to scale them; None where scales are constants of the graph."""
    scale_bits: int = SCALE_BITS
    """Of that: a half-precision scale, or a float32 scale and zero point."""

    def token_bytes(self, dtype: FloatType) -> float:
        """Bytes of one token's keys and values in this layer; `dtype` is the graph's."""
        bits: float = 8 * FLOAT_BYTES[dtype] if self.cache is None else CACHES[self.cache].bits
        bits += self.scale_bits / self.block if self.block else 0
        return 2 * self.kv_heads * self.head_dim * bits / 8


class GraphFacts(Facts):
    """What graph.json states."""

    task: Task
    dialect: Dialect
    dtype: FloatType
    family: str
    opset: int
    vocab: int | None = None
    context: int | None = None
    """Longest sequence (past and new tokens) the graph is right for, in tokens."""
    hidden: int | None = None
    kv: tuple[KvShape, ...] = ()
    """One a decoder layer; empty for encoders and vision models."""
    recompute_after: int | None = None
    """longrope: where a sequence grows past this many tokens, other frequencies turn all of it, and its cache must be made
    again by one prefill of the whole sequence. None where a cache stays right."""
    decoder: dict[str, Any] = {}
    """The DecoderSpec as JSON, for runtimes that bring the architecture themselves; empty for other tasks."""
    quantized: tuple[LayerFormat, ...] = ()
    sparse: dict[str, LayerZeros] = {}
    """Layers whose weights hold zeros on purpose, by name."""
    fusions: dict[str, int] = {}
    """How often each rewrite applied, by its name."""
    quantized_activations: bool = False
    """Some layer's inputs are quantized too: a last-bit difference before one can turn a rounding over."""
    batch_first_shapes: dict[str, list[int | str]] = {}
    """Input name to shape, e.g. {"pixel_values": ["batch", 1, 8, 8]}; for tasks without a cache."""

    @property
    def cache_format(self) -> str:
        """Element type or format of the caches; several, joined by `and`, where layers differ."""
        return " and ".join(dict.fromkeys(kv.cache or self.dtype for kv in self.kv))

    @property
    def token_bytes(self) -> float:
        """Bytes of one token's keys and values in all layers."""
        return sum(kv.token_bytes(self.dtype) for kv in self.kv)


class ReceiptRow(Facts):
    """One quantized layer: what was asked, what the engine does."""

    layer: str
    asked: str
    realised: str
    ok: bool
    why: str = ""
    """Why it is not what was asked, or by what evidence it is (kernel name, log line)."""
    profile: str = ""


class KernelRow(Facts):
    """What one optimization profile of an engine runs."""

    profile: str
    kernels: int
    per_layer: float | None = None
    by_type: dict[str, int] = {}
    activation_bytes: int | None = None
    weight_bytes: int | None = None


class EngineFacts(Facts):
    """What engine.json states."""

    task: Task
    backend: str
    target: str
    """Row of the target table; of several, the first."""
    targets: tuple[str, ...] = ()
    """Every target it was built for; empty for a backend that builds for one."""
    compute: tuple[str, ...] = ()
    """Compute capabilities its engines hold, e.g. `sm89`; empty where the files fit any."""
    threads: int | None = None
    """Threads its session options were tuned for; None where they fit any host."""
    dialect: Dialect
    dtype: FloatType
    graph: GraphFacts
    files: tuple[str, ...] = ()
    """What the runtime loads, relative to the folder."""
    finished: bool = True
    finish_command: str = ""
    """What to run on the GPU host when `finished` is false."""
    unfinished_why: str = ""
    receipt: tuple[ReceiptRow, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    notes: tuple[str, ...] = ()
    """Options without effect on this backend, advisories, warnings: what a person must know. Never empty talk."""
    session: dict[str, str | int | bool] = {}
    """Options that the runtime is opened with, by its own names: ONNX Runtime's that were measured to be faster here, OpenVINO's
    types of cache and arithmetic; empty for its defaults."""
    tool: str = ""
    """Runtime and version, e.g. `tensorrt_rtx 1.7.1.116`."""
    build_seconds: float | None = None
    build_peak_bytes: int | None = None


class Measurement(Facts):
    """One number about one subject, measured here or `not measured` with the reason; nothing in between."""

    name: str
    """Dotted, e.g. `perplexity.recovery`, `latency.decode.p50_ms`; what a budget names."""
    value: float | None
    """None exactly when `not_measured` says why."""
    unit: str
    better: Literal["higher", "lower", "neither"]
    low: float | None = None
    """Lower end of the 95 % interval; None where the number has no sampling error or too few samples for one."""
    high: float | None = None
    samples: int | None = None
    """How many independent observations (sequences, timed tokens) the value rests on."""
    subject: str = "engine"
    """Whose number it is: "engine", "reference", "engine graph on ONNX Runtime CPU", "bound"."""
    not_measured: str = ""
    note: str = ""
    raw: tuple[float, ...] = ()
    """Latency samples in milliseconds, in the order they were taken."""
    items: tuple[float, ...] = ()
    """One number an evaluation item (sequence, text, image), in the order of the data, so that two artifacts can be
    compared item by item; the value is Σ items / Σ weights."""
    weights: tuple[float, ...] = ()
    """What each item counts: tokens, bytes, or 1; as many as `items`."""
    at: dict[str, int | str] = {}
    """Conditions of this row, e.g. {"batch": 4} or {"task": "arc_easy acc"}, where a metric gives the same number under several; budgets look at
    rows without."""

    @model_validator(mode="after")
    def _value_or_reason(self) -> Measurement:
        if (self.value is None) != bool(self.not_measured):
            raise ValueError(f"{self.name}: either a value or the reason why there is none")
        if len(self.items) != len(self.weights):
            raise ValueError(f"{self.name}: {len(self.items)} items and {len(self.weights)} weights")
        return self


def weight_files(folder: Path) -> list[Path]:
    """What the model is made of, in order; tokenizers, logs, reports and the portable twin of a lowered graph are left out."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in WEIGHT_SUFFIXES and SECOND not in path.relative_to(folder).parts
    ]


@dataclass(frozen=True)
class Checkpoint:
    """The user's folder, read only. `files` maps each weight file to its sha256 (hex)."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, str]


@dataclass(frozen=True)
class Artifact:
    """A folder and the name of the JSON file that states its facts."""

    folder: Path
    facts_file: ClassVar[str]

    @property
    def assets(self) -> Path:
        return self.folder / "assets"


@dataclass(frozen=True)
class Model(Artifact):
    """Weights in the canonical layout; `models.spec.read_facts` and `models.open_model` read it."""

    facts_file = "model.json"


@dataclass(frozen=True)
class Graph(Artifact):
    """An ONNX graph, weights in `model.onnx.data` beside it."""

    facts_file = "graph.json"

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def facts(self) -> GraphFacts:
        return GraphFacts.model_validate_json((self.folder / self.facts_file).read_text())

    def write_facts(self, facts: GraphFacts) -> None:
        (self.folder / self.facts_file).write_text(facts.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class Engine(Artifact):
    """What runs, or what one command on the GPU host turns into what runs."""

    facts_file = "engine.json"

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts.model_validate_json((self.folder / self.facts_file).read_text())

    def write_facts(self, facts: EngineFacts) -> None:
        (self.folder / self.facts_file).write_text(facts.model_dump_json(indent=1) + "\n")
