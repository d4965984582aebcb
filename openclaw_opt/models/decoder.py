"""The canonical decoder: one module for every decoder family, its sizes in a DecoderSpec.

Module names are the names every other part uses: `embed`, `positions` (learned positions only), `layers.{i}.` with
`norm_in`, `qkv` ([q|k|v], head-major), `q_norm`, `k_norm`, `o`, `norm_post_attn`, `norm_mlp`, `gate_up` ([gate|up]) or
`up`, `down`, `norm_post_mlp`; with a low-bit cache `k_scale`, `v_scale`; then `norm_out` and `head`. Linear weights are [out, in], as in torch.

Norms and softmax compute in float32 whatever the weights are; logits come out in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openclaw_opt.formats import CACHES
from openclaw_opt.models.rope import rotate, rotation
from openclaw_opt.models.spec import Activation, DecoderSpec, LayerSpec
from openclaw_opt.numerics.cache import as_cached

Rotation = tuple[Tensor, Tensor]
Context = tuple[Rotation | None, Tensor]
"""A layer's rotation, and which keys its queries see."""


class Norm(nn.Module):
    """RMS norm, or layer norm where `bias` is there, of the last axis."""

    def __init__(self, size: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.bias is not None:
            wide = wide - wide.mean(-1, keepdim=True)
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        y = scaled.to(x.dtype) * self.weight
        return y if self.bias is None else y + self.bias


def visible(attention_mask: Tensor, queries: int, window: int | None) -> Tensor:
    """Which keys each query sees: bool [batch, 1, queries, keys] from int64 [batch, keys].

    Query i stands at key P + i, where P = keys - queries. It sees itself, and of the keys before it (within the window,
    counted with itself) those that attention_mask marks. That a padded query sees itself keeps its row finite.
    """
    keys = attention_mask.shape[1]
    at = torch.arange(keys, device=attention_mask.device)
    own = at[keys - queries :, None]
    causal = at <= own
    if window is not None:
        causal = causal & (at > own - window)
    return ((attention_mask != 0)[:, None, None] | (at == own)) & causal


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Grouped-query attention: [batch, heads, queries, head_dim] over [batch, kv_heads, keys, head_dim]."""
    groups = q.shape[1] // k.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=groups > 1)
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
    weights = scores.float().masked_fill(~mask, float("-inf")).softmax(-1).to(q.dtype)
    return weights @ v


def activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(x)
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class Layer(nn.Module):
    """Attention and MLP, each with a norm before it, a residual around it, and in some families a norm after it."""

    def __init__(self, spec: DecoderSpec, sizes: LayerSpec) -> None:
        super().__init__()
        self.spec, self.sizes = spec, sizes
        hidden, head_dim = spec.hidden, spec.head_dim
        self.norm_in = _norm(spec, hidden)
        self.qkv = nn.Linear(hidden, (sizes.q_heads + 2 * sizes.kv_heads) * head_dim, bias=spec.qkv_bias)
        self.o = nn.Linear(sizes.q_heads * head_dim, hidden, bias=spec.o_bias)
        self.norm_mlp = _norm(spec, hidden)
        if spec.gated:
            self.gate_up = nn.Linear(hidden, 2 * sizes.ffn, bias=spec.mlp_bias)
        else:
            self.up = nn.Linear(hidden, sizes.ffn, bias=spec.mlp_bias)
        self.down = nn.Linear(sizes.ffn, hidden, bias=spec.mlp_bias)
        if spec.qk_norm:
            self.q_norm, self.k_norm = _norm(spec, head_dim), _norm(spec, head_dim)
        if spec.post_norms:
            self.norm_post_attn, self.norm_post_mlp = _norm(spec, hidden), _norm(spec, hidden)
        if spec.cache is not None and not spec.cache.dynamic:
            self.set_cache(*(torch.ones(sizes.kv_heads, 1, head_dim) for _ in ("key", "value")))

    def set_cache(self, k_scale: Tensor, v_scale: Tensor) -> None:
        """Scales of a low-bit cache, float32 [kv_heads, 1, head_dim]; `spec.cache` says its format."""
        self.register_buffer("k_scale", k_scale)
        self.register_buffer("v_scale", v_scale)

    def cached(self, x: Tensor, part: str) -> Tensor:
        """New keys (`k`) or values (`v`) as the cache holds them."""
        cache = self.spec.cache
        if cache is None or cache.dynamic:
            return x
        return as_cached(x, self.get_buffer(f"{part}_scale"), CACHES[cache.format])

    def forward(
        self, x: Tensor, rope: Rotation | None, mask: Tensor, past: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, and the layer's whole keys and values [batch, kv_heads, past + new, head_dim]."""
        attended, k, v = self.attention(self.norm_in(x), rope, mask, past)
        x = x + (self.norm_post_attn(attended) if self.spec.post_norms else attended)
        fed = self.mlp(self.norm_mlp(x))
        return x + (self.norm_post_mlp(fed) if self.spec.post_norms else fed), k, v

    def attention(
        self, x: Tensor, rope: Rotation | None, mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.heads(self.qkv(x))
        if self.spec.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        k, v = self.cached(k, "k"), self.cached(v, "v")
        if past:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = attend(q, k, v, mask, self.spec.attention_scale, self.spec.attention_softcap)
        return self.o(y.transpose(1, 2).flatten(2)), k, v

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split [batch, sequence, (q + 2 kv) * head_dim] into three of [batch, heads, sequence, head_dim]."""
        split = qkv.view(*qkv.shape[:2], -1, self.spec.head_dim).transpose(1, 2)
        q, kv = self.sizes.q_heads, self.sizes.kv_heads
        return split[:, :q], split[:, q : q + kv], split[:, q + kv :]

    def mlp(self, x: Tensor) -> Tensor:
        if self.spec.gated:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            return self.down(activate(gate, self.spec.activation) * up)  # type: ignore[no-any-return]
        return self.down(activate(self.up(x), self.spec.activation))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A decoder-only language model."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab, spec.hidden)
        self.positions = nn.Embedding(spec.context, spec.hidden) if spec.learned_positions else None
        self.layers = nn.ModuleList(Layer(spec, sizes) for sizes in spec.layers)
        self.norm_out = _norm(spec, spec.hidden)
        self.head = nn.Linear(spec.hidden, spec.vocab, bias=False)
        self.tie()

    def tie(self) -> bool:
        """Share the embedding with the head, where the spec says so and the head is still a plain linear."""
        tied = self.spec.tied and type(self.head) is nn.Linear
        if tied:
            self.head.weight = self.embed.weight
        return tied

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """One step over new tokens.

        Args:
            input_ids: int64 [batch, new].
            attention_mask: int64 [batch, past + new], 1 for a real token, 0 for padding on either side.
            position_ids: int64 [batch, new], the place of each token in its own sequence.
            past: k0, v0, k1, v1, …, each [batch, kv_heads, past, head_dim]; empty for none.

        Returns:
            Logits, float32 [batch, new, vocab], and the caches with the new tokens, in the order of `past`.
        """
        x, contexts = self.entered(input_ids, attention_mask, position_ids)
        presents: list[Tensor] = []
        for i, (layer, context) in enumerate(zip(self.layers, contexts, strict=True)):
            x, k, v = layer(x, *context, past[2 * i : 2 * i + 2])
            presents += [k, v]
        return self.logits(x), presents

    def entered(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, list[Context]]:
        """The hidden states [batch, new, hidden] before the first layer, and what each layer needs besides them."""
        x = self.embed(input_ids)
        if self.spec.embed_scale != 1.0:
            x = x * torch.tensor(self.spec.embed_scale, dtype=x.dtype)
        if self.positions is not None:
            x = x + self.positions(position_ids)
        return x, self.contexts(attention_mask, position_ids)

    def contexts(self, attention_mask: Tensor, position_ids: Tensor) -> list[Context]:
        """Rotation and mask of each layer, for the arguments of `forward`."""
        ropes = {key: rotation(rope, position_ids) for key, rope in self.spec.ropes.items()}
        windows = {sizes.window for sizes in self.spec.layers}
        masks = {window: visible(attention_mask, position_ids.shape[1], window) for window in windows}
        return [(None if sizes.rope is None else ropes[sizes.rope], masks[sizes.window]) for sizes in self.spec.layers]

    def logits(self, x: Tensor) -> Tensor:
        """float32 [..., vocab] from the last layer's hidden states."""
        logits: Tensor = self.head(self.norm_out(x)).float()
        cap = self.spec.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _norm(spec: DecoderSpec, size: int) -> Norm:
    return Norm(size, spec.norm_eps, bias=spec.norm == "layer")
