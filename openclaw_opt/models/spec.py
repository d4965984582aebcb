"""What a model is, as frozen facts: sizes, norms, positions, masks. Read without torch, so that `check` can use it.

`spec_from_config` reads a Hugging Face config.json. What cannot be handled is refused by name before any work.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from openclaw_opt.artifacts import Facts, FloatType, LayerZeros, Model, Task
from openclaw_opt.errors import RecipeError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
RopeType = Literal["default", "linear", "llama3", "yarn", "longrope"]
WeightKind = Literal["int8", "int4", "uint4", "fp8", "nvfp4"]


class RopeSpec(Facts):
    """One table of rotary positions; which of the parameters count depends on `type`."""

    type: RopeType = "default"
    theta: float = 10000.0
    dim: int
    """Leading elements of a head that are rotated (`partial_rotary_factor` of head_dim); even."""
    factor: float = 1.0
    amplitude: float = 1.0
    """What cos and sin are multiplied with (yarn, longrope)."""
    original: int = 0
    """Context of the pretraining, in tokens (llama3, yarn, longrope)."""
    low_freq: float = 1.0
    high_freq: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


class LayerSpec(Facts):
    """Sizes of one layer of a decoder or an encoder; pruning makes them differ from layer to layer."""

    q_heads: int
    kv_heads: int
    ffn: int
    window: int | None = None
    """Sliding attention window in tokens, counted with the token itself; None for full attention."""
    rope: str | None = None
    """Key of `DecoderSpec.ropes`, or None for no rotation."""


class CacheSpec(Facts):
    """Keys and values in few bits: one scale for each kv head and channel of a layer, beside its weights."""

    format: str
    """A row of formats.CACHES."""
    dynamic: bool = False
    """The runtime finds scales of its own when it writes (llama.cpp's Q8_0 and Q4_0, OpenVINO's u8 and u4): there are none beside the weights, and
    the model and its graph compute with a float cache."""


class DecoderSpec(Facts):
    """A decoder-only language model in the canonical layout of `models.decoder`."""

    family: str
    vocab: int
    hidden: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    context: int
    """Longest sequence the checkpoint states (max_position_embeddings), in tokens."""
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float
    activation: Activation
    gated: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    """A norm after attention and after the MLP as well, before each is added to the residual."""
    tied: bool = False
    """The head is the transposed embedding."""
    learned_positions: bool = False
    embed_scale: float = 1.0
    attention_scale: float
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    ropes: dict[str, RopeSpec] = Field(default_factory=dict)
    cache: CacheSpec | None = None
    """None for a key/value cache in the float type of the graph."""

    @property
    def task(self) -> Task:
        return "decoder"


class HfSpec(Facts):
    """An encoder or vision model that runs as Hugging Face wrote it."""

    family: str
    task: Task
    architecture: str
    hidden: int | None = None
    vocab: int | None = None
    context: int | None = None
    classes: int | None = None
    image: tuple[int, int, int] | None = None
    """Channels, height, width of `pixel_values`; for vision models."""
    token_types: bool = False
    embedding: bool = False
    """A sentence encoder: the graph has a pooled, L2-normalised `embedding` output."""
    pooling: Literal["mean", "cls", "max"] = "mean"
    normalize: bool = True
    layers: tuple[LayerSpec, ...] = ()
    """Of BERT-family encoders, each head with a key and value of its own; empty where the model's layers are not known."""
    head_dim: int | None = None
    types: int = 0
    """Rows of the table of token types."""


Sized = DecoderSpec | HfSpec
"""What states sizes of its layers."""


class LayerQuant(Facts):
    """One quantized linear: everything but the numbers, enough to build its empty module."""

    format: str
    """A row of formats.py, as the recipe asked."""
    kind: WeightKind
    block: int | None = None
    """Elements of the input axis that share a weight scale; None for one scale per output channel or per tensor."""
    per_channel: bool = True
    """One scale per output channel; for kinds without blocks."""
    input_scale: bool = False
    """Activations are quantized too."""
    dynamic: bool = False
    """Activations are quantized with a scale a token, found when it runs."""
    pre_scale: bool = False
    """The input is multiplied with a vector first (SmoothQuant, AWQ)."""


class ModelFacts(Facts):
    """What model.json states."""

    task: Task
    family: str
    dtype: FloatType
    decoder: DecoderSpec | None = None
    hf: HfSpec | None = None
    quant: dict[str, LayerQuant] = Field(default_factory=dict)
    """By module name, e.g. `layers.0.qkv`."""
    sparse: dict[str, LayerZeros] = Field(default_factory=dict)
    """By module name: where a weight is zero it was made zero, and whatever changes the weight keeps that."""
    notes: tuple[str, ...] = ()
    """What passes did to the weights, in order, one sentence each."""

    @property
    def spec(self) -> DecoderSpec | HfSpec:
        spec = self.decoder or self.hf
        if spec is None:
            raise RecipeError("model.json has neither `decoder` nor `hf`", fix="rebuild the model from the checkpoint")
        return spec


def read_facts(model: Model) -> ModelFacts:
    """The facts in `model.folder/model.json`."""
    return ModelFacts.model_validate_json((model.folder / model.facts_file).read_text())


def write_facts(model: Model, facts: ModelFacts) -> None:
    """Write `model.folder/model.json`."""
    text = json.dumps(facts.model_dump(mode="json"), indent=1)
    (model.folder / model.facts_file).write_text(text + "\n")
