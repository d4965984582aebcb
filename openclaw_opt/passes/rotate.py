"""rotate: an exact change of basis that spreads outliers, so that what is quantized after it loses less."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import RecipeError
from openclaw_opt.passes import Complaint, Done, Kind, Pass, View, Work

if TYPE_CHECKING:
    from openclaw_opt.models.spec import DecoderSpec


class Rotate(Pass):
    """Fold a randomized Hadamard rotation (QuaRot) into a decoder's weights: the same outputs, activations without outliers.

    Nothing is added to the graph. The rotation is drawn from the recipe's `seed`."""

    kind: ClassVar[Kind] = "exact"
    summary: ClassVar[str] = "fold a Hadamard rotation into a decoder's weights, so that quantizing after it costs less"
    tools: ClassVar[tuple[str, ...]] = ("torch",)

    heads: bool = True
    """Rotate the values of each head too, between `qkv` and `o`."""

    def check(self, view: View) -> list[Complaint]:
        from openclaw_opt.models.spec import DecoderSpec

        if not isinstance(view.spec, DecoderSpec):
            return [Complaint(f"rotate takes decoders, {view.spec.architecture} is a model for {view.spec.task}")]
        words = [earlier.word for earlier in view.earlier]
        if "quantize" in words:
            return [Complaint("quantized weights cannot be rotated", fix="put rotate before quantize")]
        if "sparsify" in words:
            return [Complaint("a rotation mixes zeros with what is beside them", fix="put rotate before sparsify")]
        reason = why_not(view.spec)
        if reason:
            return [Complaint(f"{view.spec.family} cannot be rotated exactly: {reason}", fix="take rotate out")]
        return []

    def run(self, source: Model, work: Work) -> Done[Model]:
        from openclaw_opt.models.decoder import Decoder
        from openclaw_opt.models.rotation import rotate
        from openclaw_opt.models.spec import read_facts
        from openclaw_opt.models.store import open_model, save_model

        facts, decoder = read_facts(source), open_model(source)
        if facts.quant or not isinstance(decoder, Decoder):
            raise RecipeError("quantized weights cannot be rotated", fix="put rotate before quantize")
        untied = decoder.spec.tied
        work.progress(0.1, "rotating")
        count = rotate(decoder, work.seed, heads=self.heads)
        sentence = f"{count} matrices rotated"
        if untied:
            extra = decoder.head.weight.numel()
            sentence += f"; the head is no longer tied to the embedding: {extra:,} more parameters"
        noted = facts.model_copy(update={"notes": (*facts.notes, sentence), "decoder": decoder.spec})
        details = {"untied": untied, "parameters": sum(value.numel() for value in decoder.parameters())}
        return Done(save_model(decoder, noted, work.folder, source.assets), sentence, count, details=details)


def why_not(spec: DecoderSpec) -> str:
    """Why this decoder cannot be rotated exactly, from its facts; empty if it can."""
    if spec.norm == "layer":
        return "its layer norms take off the mean, which a rotation does not keep"
    if spec.post_norms:
        return "its norms after attention and MLP weigh channels before they are added to the residual"
    return ""
