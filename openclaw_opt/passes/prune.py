"""prune: whole FFN channels, attention heads and layers out of a decoder; the smaller model runs on any engine as it is."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import RecipeError
from openclaw_opt.passes import Complaint, Done, Kind, Pass, View, Work
from openclaw_opt.targets import Target

if TYPE_CHECKING:
    from openclaw_opt.models.decoder import Decoder
    from openclaw_opt.models.pruning import Plan, Pruned
    from openclaw_opt.models.spec import DecoderSpec, LayerSpec, ModelFacts

Fraction = Annotated[float, Field(gt=0, lt=1)]
GPU_MULTIPLE, CPU_MULTIPLE = 64, 32
ROUNDING = 1e-9  # (1 - 0.3) * 10 is 7.000000000000001 in floating point, and means 7


class Prune(Pass):
    """Remove what matters least, layer by layer, and shrink the weights.

    Proof that goes with it: the model with the removed parts set to zero gives the same outputs as the shrunk one.
    """

    kind: ClassVar[Kind] = "lossy"
    summary: ClassVar[str] = "remove FFN channels, attention heads or whole layers of a decoder"
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    reads: ClassVar[tuple[str, ...]] = ("target", "calibration")
    essential: ClassVar[tuple[str, ...]] = ("ffn", "heads", "query_heads", "layers")

    ffn: Fraction | None = None
    """Fraction of each layer's FFN channels to remove."""
    heads: Fraction | None = None
    """Fraction of each layer's key/value groups to remove, each with all its query heads."""
    query_heads: Fraction | None = None
    """Fraction of the query heads of each remaining group to remove; the key/value cache keeps its size."""
    layers: Annotated[int, Field(gt=0)] | None = None
    """How many whole layers to remove: those that change their input least on calibration data."""
    importance: Literal["magnitude", "activation"] | None = None
    """How channels and heads are ranked: by their weights, or by what they add on calibration data. Default: activation."""
    round_to: Annotated[int, Field(gt=0)] | None = None
    """FFN sizes become multiples of this, rounded up: never more is removed than asked. Default: 64 for a GPU, 32 for a CPU."""
    batch_size: Annotated[int, Field(gt=0)] = 4
    """Calibration sequences that run at once; memory grows with it."""

    @property
    def narrows(self) -> bool:
        return any(part is not None for part in (self.ffn, self.heads, self.query_heads))

    @property
    def ranks_on_data(self) -> bool:
        return self.layers is not None or (self.narrows and self.importance != "magnitude")

    def multiple(self, target: Target) -> int:
        return self.round_to or (GPU_MULTIPLE if target.is_gpu else CPU_MULTIPLE)

    def check(self, view: View) -> list[Complaint]:
        from openclaw_opt.models.spec import DecoderSpec

        if not isinstance(view.spec, DecoderSpec):
            return [Complaint(f"prune takes decoders, {view.spec.architecture} is a model for {view.spec.task}")]
        if any(earlier.word == "quantize" for earlier in view.earlier):
            return [Complaint("quantized weights cannot be pruned", fix="put prune before quantize")]
        found = [*self._options(), *self._data(view)]
        if any(earlier.word == "sparsify" for earlier in view.earlier):
            found.append(Complaint("taking out inputs breaks up groups of four", fix="put prune before sparsify"))
        if any(earlier.word == "prune" for earlier in view.earlier):
            return found  # the sizes are not known yet; `run` looks at the real ones
        return [*found, *self._sizes(view.spec, view.target)]

    def _options(self) -> list[Complaint]:
        if not self.narrows and self.layers is None:
            return [Complaint("prune removes nothing", fix="give ffn, heads, query_heads or layers")]
        found = []
        if self.round_to is not None and self.ffn is None:
            found.append(Complaint("round_to has no effect without ffn", "round_to", "leave it out"))
        if self.importance is not None and not self.narrows:
            found.append(Complaint("importance has no effect on layers alone", "importance", "leave it out"))
        return found

    def _data(self, view: View) -> list[Complaint]:
        source = view.calibration
        if source is None and self.ranks_on_data:
            option = "layers" if self.layers is not None else "importance"
            fix = "add `calibration` to `data`" + ("" if self.layers is not None else ", or importance: magnitude")
            return [Complaint("ranking needs calibration data", option, fix)]
        if source is not None and source.kind != "text":
            return [
                Complaint(f"calibration data is {source.kind}, the model takes text", "", "change data.calibration")
            ]
        return []

    def _sizes(self, spec: DecoderSpec, target: Target) -> list[Complaint]:
        """Parts of which rounding leaves everything, and more layers than there are."""
        found, multiple = [], self.multiple(target)
        if self.layers is not None and self.layers >= len(spec.layers):
            what = f"{self.layers} layers cannot be removed from {len(spec.layers)}"
            found.append(Complaint(what, "layers", f"layers: {max(1, len(spec.layers) - 1)}"))
        if self.ffn is not None:
            counts = [layer.ffn for layer in spec.layers]
            found += _no_cut("ffn", self.ffn, counts, multiple, f"channels removes nothing at multiples of {multiple}")
        if self.heads is not None:
            counts = [layer.kv_heads for layer in spec.layers]
            found += _no_cut("heads", self.heads, counts, 1, "key/value groups removes none")
        if self.query_heads is not None:
            counts = [layer.q_heads // layer.kv_heads for layer in spec.layers]
            found += _no_cut("query_heads", self.query_heads, counts, 1, "query heads a group removes none")
        return found

    def kept(self, sizes: LayerSpec, multiple: int) -> LayerSpec:
        """A layer's sizes after the cut."""
        groups = remaining(sizes.kv_heads, self.heads)
        each = remaining(sizes.q_heads // sizes.kv_heads, self.query_heads)
        ffn = remaining(sizes.ffn, self.ffn, multiple)
        return sizes.model_copy(update={"ffn": ffn, "kv_heads": groups, "q_heads": groups * each})

    def run(self, source: Model, work: Work) -> Done[Model]:
        from openclaw_opt.models.calibrate import load_calibration
        from openclaw_opt.models.pruning import parameters_of, prove, prune_decoder
        from openclaw_opt.models.spec import read_facts
        from openclaw_opt.models.store import save_model

        facts, data = read_facts(source), work.calibration
        spec = self._refuse(facts, work.target)
        batches = None if data is None else load_calibration(data, facts, source, work.data_cache, self.batch_size)
        decoder = _open(source)
        plan = self._plan(self.multiple(work.target))
        made = prune_decoder(decoder, plan, batches, lambda part, text: work.progress(0.8 * part, text))
        work.progress(0.8, "proving that masked and shrunk agree")
        proof = prove(_open(source), made.decoder, made.cuts, batches)
        before, after = parameters_of(decoder), parameters_of(made.decoder)
        share = f"{before:,} → {after:,} parameters ({after / before - 1:+.1%})"
        sentence = f"{_changes(spec, made.decoder.spec)}; {share}"
        noted = facts.model_copy(update={"notes": (*facts.notes, sentence), "decoder": made.decoder.spec})
        details = {
            "parameters": after,
            "parameters_before": before,
            "widths": _widths(spec, made),
            "removed_layers": [i for i in range(len(spec.layers)) if i not in made.cuts],
            "block_importance": made.block_importance,
            "proof": {"what": "hidden states and logits, masked against shrunk", "largest_difference": proof},
        }
        model = save_model(made.decoder, noted, work.folder, source.assets)
        return Done(model, changed=sentence, count=before - after, details=details)

    def _plan(self, multiple: int) -> Plan:
        from openclaw_opt.models.pruning import Plan

        return Plan(
            drop=self.layers or 0,
            sizes=lambda sizes: self.kept(sizes, multiple),
            by_activation=self.importance != "magnitude",
            narrows=self.narrows,
        )

    def _refuse(self, facts: ModelFacts, target: Target) -> DecoderSpec:
        """What `check` could not see, since earlier passes changed the model; the spec where nothing is wrong."""
        assert facts.decoder is not None, "check refuses models without a decoder's spec"
        if facts.quant:
            name = next(iter(facts.quant))
            raise RecipeError("quantized weights cannot be pruned", where=name, fix="put prune before quantize")
        wrong = [
            RecipeError(problem.what, where=f"prune.{problem.option}", fix=problem.fix)
            for problem in self._sizes(facts.decoder, target)
        ]
        if wrong:
            raise RecipeError(f"{len(wrong)} mistakes in prune", mistakes=wrong)
        return facts.decoder


def _open(model: Model) -> Decoder:
    from openclaw_opt.models.decoder import Decoder
    from openclaw_opt.models.store import open_model

    module = open_model(model)
    assert isinstance(module, Decoder)
    return module


def _changes(before: DecoderSpec, after: DecoderSpec) -> str:
    """What became smaller, in words; sizes of the layers that stay, each different one once."""
    said = [f"layers {len(before.layers)} → {len(after.layers)}"] if len(before.layers) != len(after.layers) else []
    for name, title in (("ffn", "FFN channels"), ("q_heads", "query heads"), ("kv_heads", "key/value heads")):
        old, new = (sorted({getattr(layer, name) for layer in spec.layers}) for spec in (before, after))
        if old != new:
            said.append(f"{title} {'/'.join(map(str, old))} → {'/'.join(map(str, new))}")
    return ", ".join(said)


def _widths(before: DecoderSpec, made: Pruned) -> list[dict[str, Any]]:
    """A row a remaining layer: its place in the original, sizes before and after, share of the importance kept."""
    rows = []
    for (i, _), sizes in zip(made.cuts.items(), made.decoder.spec.layers, strict=True):
        old = before.layers[i]
        ffn, heads = made.energy_kept[i]
        rows.append(
            {
                "layer": f"layers.{i}",
                "ffn": [old.ffn, sizes.ffn],
                "q_heads": [old.q_heads, sizes.q_heads],
                "kv_heads": [old.kv_heads, sizes.kv_heads],
                "ffn_importance_kept": round(ffn, 6),
                "heads_importance_kept": round(heads, 6),
            }
        )
    return rows


def remaining(count: int, fraction: float | None, multiple: int = 1) -> int:
    """What stays of `count` parts: the least multiple not below (1 − fraction)·count, so that no more goes than was asked."""
    if fraction is None:
        return count
    return min(count, max(1, ceil((1 - fraction) * count / multiple - ROUNDING)) * multiple)


def _no_cut(option: str, fraction: float, counts: list[int], multiple: int, why: str) -> list[Complaint]:
    """A complaint where rounding leaves everything in every layer, with the least fraction (in hundredths) that does not."""
    if any(remaining(count, fraction, multiple) < count for count in counts):
        return []
    most = max(counts)
    enough = (i / 100 for i in range(1, 100) if remaining(most, i / 100, multiple) < most)
    least = next(enough, None)
    fix = f"{option}: {least:g}" if least is not None else f"leave {option} out"
    return [Complaint(f"{option}: {fraction:g} of {most} {why}", option, fix)]
