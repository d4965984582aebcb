"""Moves the factors that SmoothQuant and AWQ put on a layer's input into what computes that input, where it is exact.

A layer W with input factors s computes W·(s ∘ x). Where x comes from

    a norm                     x = n(h) ∘ w (+ b)           w ← s ∘ w, b ← s ∘ b
    the up half of a gated MLP x = act(gate) ∘ up           rows of up and their bias × s
    ReLU without a gate        x = relu(up), s > 0          the same
    attention, one query head  x = Σ p·v                    rows of v and their bias × s
    a key/value head

the factors move there and cost nothing. A quantized row's factor goes into its scale, its codes stay. With grouped queries
the heads of a group want different factors of one value: those stay, one multiplication at run time, as do the factors
behind weights with one scale for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from openclaw_opt.errors import VerificationError
from openclaw_opt.models.calibrate import Batch, layer_outputs
from openclaw_opt.models.decoder import Decoder, Layer, Norm
from openclaw_opt.models.linear import QuantLayer, QuantLinear
from openclaw_opt.models.stages import HeadStage, LayerStage
from openclaw_opt.numerics.quantization import relative_difference

TOLERANCE = 1e-4


def fold(decoder: Decoder, probe: Batch) -> list[str]:
    """Move every factor that can move, and prove that nothing changed.

    Returns:
        Names of the layers that lost their factors.

    Raises:
        VerificationError: outputs on `probe`, with input quantizers off, differ by more than TOLERANCE.
    """
    before = _outputs(decoder, probe)
    folded = [f"layers.{i}.{part}" for i, layer in enumerate(decoder.layers) for part in _fold_layer(layer)]  # type: ignore[arg-type]
    folded += ["head"] if _into_norm(decoder.norm_out, decoder.head) else []
    if folded:
        compare(before, _outputs(decoder, probe))
    return folded


def fold_stage(stage: nn.Module) -> list[str]:
    """The same in one stage of a decoder, without a proof; names of the layers that lost their factors."""
    if isinstance(stage, LayerStage):
        return [f"{stage.name}.{part}" for part in _fold_layer(stage.layer)]
    assert isinstance(stage, HeadStage)
    return ["head"] if _into_norm(stage.norm_out, stage.head) else []


def _fold_layer(layer: Layer) -> Iterator[str]:
    mlp = "gate_up" if layer.spec.gated else "up"
    # The values first: their rows belong to layers whose own input factors are moved after.
    if layer.sizes.q_heads == layer.sizes.kv_heads:
        width = layer.sizes.kv_heads * layer.spec.head_dim
        if _into_rows(layer.qkv, slice(2 * width, 3 * width), layer.o):
            yield "o"
    if layer.spec.gated or layer.spec.activation == "relu":
        start = layer.sizes.ffn if layer.spec.gated else 0
        if _into_rows(layer.get_submodule(mlp), slice(start, start + layer.sizes.ffn), layer.down):
            yield "down"
    if _into_norm(layer.norm_in, layer.qkv):
        yield "qkv"
    if _into_norm(layer.norm_mlp, layer.get_submodule(mlp)):
        yield mlp


def _into_norm(norm: Norm, layer: nn.Module) -> bool:
    factors = _factors(layer)
    if factors is None:
        return False
    norm.weight = nn.Parameter(norm.weight * factors, requires_grad=False)
    if norm.bias is not None:
        norm.bias = nn.Parameter(norm.bias * factors, requires_grad=False)
    _take(layer)
    return True


def _into_rows(before: nn.Module, rows: slice, layer: nn.Module) -> bool:
    factors = _factors(layer)
    if factors is None or not _scale_rows(before, rows, factors):
        return False
    _take(layer)
    return True


def _factors(layer: nn.Module) -> Tensor | None:
    return layer.pre_scale if isinstance(layer, QuantLinear) else None


def _take(layer: nn.Module) -> None:
    assert isinstance(layer, QuantLinear)
    layer.pre_scale = None
    layer.quant = layer.quant.model_copy(update={"pre_scale": False})


def _scale_rows(layer: nn.Module, rows: slice, factors: Tensor) -> bool:
    """Multiply output rows; False where the weight has no scale of its own for each row."""
    if isinstance(layer, QuantLayer):
        if layer.quant.kind not in ("int8", "int4", "uint4") or layer.weight_scale.ndim == 0:
            return False
        layer.weight_scale = _scaled(layer.weight_scale, rows, factors)
        layer.bias = None if layer.bias is None else _scaled(layer.bias, rows, factors)
        return True
    assert isinstance(layer, nn.Linear)
    layer.weight = nn.Parameter(_scaled(layer.weight, rows, factors), requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(_scaled(layer.bias, rows, factors), requires_grad=False)
    return True


def _scaled(value: Tensor, rows: slice, factors: Tensor) -> Tensor:
    made = value.detach().clone()
    made[rows] *= factors.to(made.dtype).reshape(-1, *[1] * (made.ndim - 1))
    return made


def _outputs(decoder: Decoder, probe: Batch) -> list[tuple[str, Tensor]]:
    """Hidden states after every layer, and the logits, with input quantizers off."""
    with inputs_unquantized(decoder):
        return layer_outputs(decoder, probe)


@contextmanager
def inputs_unquantized(module: nn.Module) -> Iterator[None]:
    """While open, quantized layers take their inputs as they are; weights stay quantized."""
    kept = [(layer, layer.takes_float) for layer in module.modules() if isinstance(layer, QuantLayer)]
    try:
        for layer, _ in kept:
            layer.takes_float = True
        yield
    finally:
        for layer, before in kept:
            layer.takes_float = before


def compare(before: list[tuple[str, Tensor]], after: list[tuple[str, Tensor]]) -> None:
    """VerificationError where outputs of one name differ by more than TOLERANCE."""
    for (name, old), (_, new) in zip(before, after, strict=True):
        difference = relative_difference(old, new)
        if difference > TOLERANCE:
            raise VerificationError(
                f"moving input factors into the layers before changed the output by {difference:.2g} of its largest value "
                f"(at most {TOLERANCE:g} is rounding)",
                where=name,
            )
