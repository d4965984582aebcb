"""prune: whole FFN channels, attention heads and layers out of a decoder or an encoder; the smaller model runs on any engine as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import RecipeError
from openclaw_opt.passes import Complaint, Done, Kind, Pass, View, Work
from openclaw_opt.passes._goal import Goal
from openclaw_opt.passes._prune_sizes import family_complaints, size_complaints, unreachable
from openclaw_opt.passes._pruned import changes, widths
from openclaw_opt.passes._widths import Meets, by_sensitivity, even, least, remaining
from openclaw_opt.targets import Target

if TYPE_CHECKING:
    from openclaw_opt.models.blocks import Prunable
    from openclaw_opt.models.decoder import Decoder
    from openclaw_opt.models.importance import Scores
    from openclaw_opt.models.pruning import Plan
    from openclaw_opt.models.spec import LayerSpec, ModelFacts, Sized
    from openclaw_opt.models.trimming import Vocabulary

Fraction = Annotated[float, Field(gt=0, lt=1)]
GPU_MULTIPLE, CPU_MULTIPLE = 64, 32


class Prune(Pass):
    """Remove what matters least, layer by layer, and shrink the weights.

    Takes decoders, and BERT-family encoders (`ffn`, `heads`, `layers` and `to`).

    Proof that goes with it: the model with the removed parts set to zero gives the same outputs as the shrunk one. Layers may
    end up with different widths: model.json, graphs and engines hold that, a Hugging Face config.json does not.
    """

    kind: ClassVar[Kind] = "lossy"
    summary: ClassVar[str] = (
        "remove FFN channels, attention heads or whole layers, of decoders hidden channels and tokens too"
    )
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    reads: ClassVar[tuple[str, ...]] = ("target", "calibration")
    essential: ClassVar[tuple[str, ...]] = ("ffn", "heads", "query_heads", "layers", "hidden", "vocabulary", "to")

    ffn: Fraction | None = None
    """Fraction of each layer's FFN channels to remove."""
    heads: Fraction | None = None
    """Fraction of each layer's key/value groups to remove, each with all its query heads; of an encoder, of its heads."""
    query_heads: Fraction | None = None
    """Fraction of the query heads of each remaining group to remove; the key/value cache keeps its size. Decoders only."""
    layers: Annotated[int, Field(gt=0)] | None = None
    """How many whole layers to remove: those that change their input least on calibration data."""
    hidden: Fraction | None = None
    """Fraction of the hidden states' channels to remove, everywhere; families with RMS norms only."""
    vocabulary: Literal["used"] | Fraction | None = None
    """Tokens to remove, by the whole text of the calibration source: all that never occur in it (`used`), or a fraction, the
    rarest first. What tokens are merged from stays with them, and so do special tokens and bytes: text outside becomes more
    tokens. Byte-level BPE only; accuracy is then in bits per byte."""
    to: Goal | None = None
    """What the model is to be made to fit: `{parameters: 4.0M}`, `{parameters: 0.8}` of what there is, `{gib: 0.5}` or
    `{decode_ms: 1.2}` (roofline of a token on the target); `format: int4` beside the last two counts linear layers as a later
    `quantize` leaves them. As few FFN channels go as meet it, after what the other options take out."""
    allocation: Literal["even", "sensitivity"] | None = None
    """How `ffn` or `to` is spread over layers: `even` by one fraction, or by `sensitivity`, the channels of least importance for
    the whole model first, so that widths differ. Default: even."""
    importance: Literal["magnitude", "activation", "wanda", "taylor"] | None = None
    """How channels and heads are ranked: by their weights (magnitude), by the energy they add on calibration data (activation),
    by the norm of their input times their weights (wanda), or by the loss's first derivative (taylor). Default: activation."""
    round_to: Annotated[int, Field(gt=0)] | None = None
    """FFN and hidden sizes become multiples of this, rounded up: never more is removed than asked. Default: 64 for a GPU, 32 for a CPU."""
    batch_size: Annotated[int, Field(gt=0)] = 4
    """Calibration sequences that run at once; memory grows with it."""

    @property
    def narrows(self) -> bool:
        return any(part is not None for part in (self.ffn, self.heads, self.query_heads, self.to))

    @property
    def cuts_ffn(self) -> bool:
        return self.ffn is not None or self.to is not None

    @property
    def ranks_on_data(self) -> bool:
        by_data = self.importance != "magnitude"
        return self.layers is not None or (by_data and (self.narrows or self.hidden is not None))

    def multiple(self, target: Target) -> int:
        return self.round_to or (GPU_MULTIPLE if target.is_gpu else CPU_MULTIPLE)

    def check(self, view: View) -> list[Complaint]:
        if not view.spec.layers:
            name = getattr(view.spec, "architecture", view.spec.family)
            what = f"prune takes decoders and BERT-family encoders, {name} is a model for {view.spec.task}"
            return [Complaint(what, fix="leave prune out; quantize makes such a model smaller")]
        words = [earlier.word for earlier in view.earlier]
        if "quantize" in words:
            return [Complaint("quantized weights cannot be pruned", fix="put prune before quantize")]
        found = [*self._options(), *self._data(view), *family_complaints(self, view.spec, view.target)]
        if "sparsify" in words:
            found.append(Complaint("taking out inputs breaks up groups of four", fix="put prune before sparsify"))
        if "prune" in words or found:
            return found  # after another prune the sizes are not known yet; `run` looks at the real ones
        return size_complaints(self, view.spec, view.target, view.backend)

    def _options(self) -> list[Complaint]:
        if not self.narrows and self.layers is None and self.hidden is None and self.vocabulary is None:
            fix = "give ffn, heads, query_heads, layers, hidden, vocabulary or to"
            return [Complaint("prune removes nothing", fix=fix)]
        found = []
        if self.to is not None and self.ffn is not None:
            found.append(Complaint("`to` finds the FFN's width itself", "ffn", "leave ffn or to out"))
        if self.allocation is not None and not self.cuts_ffn:
            found.append(Complaint("allocation has no effect without ffn or to", "allocation", "leave it out"))
        if self.round_to is not None and not self.cuts_ffn and self.hidden is None:
            found.append(Complaint("round_to has no effect without ffn, hidden or to", "round_to", "leave it out"))
        if self.importance is not None and not self.narrows and self.hidden is None:
            found.append(Complaint("importance has no effect on layers alone", "importance", "leave it out"))
        return found

    def _data(self, view: View) -> list[Complaint]:
        source = view.calibration
        if source is None and self.ranks_on_data:
            option = "layers" if self.layers is not None else "importance"
            fix = "add `calibration` to `data`" + ("" if self.layers is not None else ", or importance: magnitude")
            return [Complaint("ranking needs calibration data", option, fix)]
        if source is None and self.vocabulary is not None:
            what = "which tokens are used is seen on calibration data"
            return [Complaint(what, "vocabulary", "add `calibration` to `data`")]
        if source is not None and source.kind != "text":
            return [
                Complaint(f"calibration data is {source.kind}, the model takes text", "", "change data.calibration")
            ]
        return []

    def cut(self, spec: Sized, stay: Sequence[int], target: Target) -> Sized:
        """The spec after every cut but that of `to`, with the layers in `stay`."""
        multiple = self.multiple(target)
        layers = tuple(self.kept(spec.layers[i], multiple) for i in stay)
        return spec.model_copy(update={"layers": layers, "hidden": remaining(spec.hidden or 0, self.hidden, multiple)})

    def kept(self, sizes: LayerSpec, multiple: int) -> LayerSpec:
        """A layer's sizes after the cut; with `sensitivity` or `to`, but for its FFN."""
        groups = remaining(sizes.kv_heads, self.heads)
        each = remaining(sizes.q_heads // sizes.kv_heads, self.query_heads)
        ffn = sizes.ffn if self.allocation == "sensitivity" else remaining(sizes.ffn, self.ffn, multiple)
        return sizes.model_copy(update={"ffn": ffn, "kv_heads": groups, "q_heads": groups * each})

    def run(self, source: Model, work: Work) -> Done[Model]:
        from openclaw_opt.models.calibrate import load_calibration
        from openclaw_opt.models.pruning import parameters_of, prove, prune_model
        from openclaw_opt.models.spec import read_facts
        from openclaw_opt.models.store import save_model
        from openclaw_opt.models.trimming import assets_of, prove_rows, with_rows

        facts, data = read_facts(source), work.calibration
        spec = self._refuse(facts, work)
        words = self._trimmed(source, spec, work)
        reader = source if words is None else assets_of(source, work.folder, words.trimmed, facts.task)
        batches = None if data is None else load_calibration(data, facts, reader, work.data_cache, self.batch_size)
        whole = _open(source)
        model = whole if words is None else with_rows(_decoder(whole), words.kept)
        made = prune_model(model, self._plan(spec, work), batches, lambda part, text: work.progress(0.8 * part, text))
        work.progress(0.8, "proving that masked and shrunk agree")
        before, after = parameters_of(whole), parameters_of(made.model)
        rows = None
        if words is not None:
            assert batches is not None, "check refuses a vocabulary without data"
            rows = prove_rows(_decoder(whole), _decoder(model), words.kept, batches.batches[0])
        again = _open(source) if words is None else with_rows(_decoder(_open(source)), words.kept)
        proof = prove(again, made.model, made.cuts, batches, made.hidden)
        share = f"{before:,} → {after:,} parameters ({after / before - 1:+.1%})"
        sentence = f"{changes(spec, made.model.spec)}; {share}"
        noted = facts.model_copy(update={"notes": (*facts.notes, sentence)})
        said = "logits" if facts.task == "decoder" else "embeddings"
        details = {
            "parameters": after,
            "parameters_before": before,
            "widths": widths(spec, made),
            "removed_layers": [i for i in range(len(spec.layers)) if i not in made.cuts],
            "block_importance": made.block_importance,
            "hidden": [spec.hidden, made.model.spec.hidden],
            "hidden_importance_kept": round(made.hidden_kept, 6),
            "goal": self._goal(spec, made.model.spec, work),
            "proof": {"what": f"hidden states and {said}, masked against shrunk", "largest_difference": proof},
            "vocabulary": {}
            if words is None
            else {"before": words.before, "used": words.used, "after": len(words.kept), "largest_difference": rows},
        }
        saved = save_model(made.model, noted, work.folder, source.assets)
        if words is not None:
            assets_of(source, work.folder, words.trimmed, facts.task)
        return Done(saved, changed=sentence, count=before - after, details=details)

    def _trimmed(self, source: Model, spec: Sized, work: Work) -> Vocabulary | None:
        """The smaller vocabulary; None where it stays."""
        from openclaw_opt.models.trimming import vocabulary_of

        if self.vocabulary is None:
            return None
        assert work.calibration is not None, "check refuses a vocabulary without data"
        work.progress(0.0, "looking which tokens are used")
        multiple = self.multiple(work.target)
        assert spec.vocab is not None
        rows = None if isinstance(self.vocabulary, str) else remaining(spec.vocab, self.vocabulary, multiple)
        return vocabulary_of(source, spec.vocab, work.calibration, work.data_cache, rows, multiple)

    def _goal(self, before: Sized, after: Sized, work: Work) -> dict[str, str]:
        """What was asked and what was reached; empty without `to`."""
        if self.to is None:
            return {}
        reached = self.to.measure(after, work.target, work.backend)
        return {"asked": self.to.told(self.to.limit(before)), "reached": self.to.told(reached)}

    def _plan(self, spec: Sized, work: Work) -> Plan:
        from openclaw_opt.models.pruning import Plan

        multiple = self.multiple(work.target)

        def found(cut: Sized, scores: list[Scores]) -> list[int]:
            return self._widths(spec, cut, scores, work)

        return Plan(
            drop=self.layers or 0,
            sizes=lambda sizes: self.kept(sizes, multiple),
            importance=self.importance or "activation",
            narrows=self.narrows,
            widths=found if self.to is not None or self.allocation == "sensitivity" else None,
            hidden=None if self.hidden is None else remaining(spec.hidden or 0, self.hidden, multiple),
        )

    def _widths(self, before: Sized, cut: Sized, scores: list[Scores], work: Work) -> list[int]:
        """FFN widths of the layers that stay. Raises RecipeError where no widths meet the goal."""
        multiple, meets = self.multiple(work.target), self._meets(before, cut, work)
        if self.allocation == "sensitivity":
            made = by_sensitivity(cut, multiple, meets, [(one.ffn / (one.scale or 1.0)).tolist() for one in scores])
        else:
            made = even(cut, multiple, meets)
        if made is not None:
            return made
        assert self.to is not None, "a fraction can always be met"
        closest = self.to.measure(least(cut, multiple), work.target, work.backend)
        problem = unreachable(self.to, self.to.limit(before), closest)
        raise RecipeError(problem.what, where="prune.to", fix=problem.fix)

    def _meets(self, before: Sized, cut: Sized, work: Work) -> Meets:
        goal = self.to
        if goal is None:
            multiple = self.multiple(work.target)
            allowed = sum(remaining(layer.ffn, self.ffn, multiple) for layer in cut.layers)
            return lambda spec: sum(layer.ffn for layer in spec.layers) <= allowed
        limit = goal.limit(before)
        return lambda spec: goal.measure(spec, work.target, work.backend) <= limit

    def _refuse(self, facts: ModelFacts, work: Work) -> Sized:
        """What `check` could not see, since earlier passes changed the model; the spec where nothing is wrong."""
        if facts.quant:
            name = next(iter(facts.quant))
            raise RecipeError("quantized weights cannot be pruned", where=name, fix="put prune before quantize")
        wrong = [
            RecipeError(problem.what, where=f"prune.{problem.option}", fix=problem.fix)
            for problem in size_complaints(self, facts.spec, work.target, work.backend)
        ]
        if wrong:
            raise RecipeError(f"{len(wrong)} mistakes in prune", mistakes=wrong)
        return facts.spec


def _open(model: Model) -> Prunable:
    from openclaw_opt.models.decoder import Decoder
    from openclaw_opt.models.hf import Encoder
    from openclaw_opt.models.store import open_model

    module = open_model(model)
    assert isinstance(module, (Decoder, Encoder)), "check refuses what has no layers"
    return module


def _decoder(model: Prunable) -> Decoder:
    """The same, of which only a decoder can be given here. Raises AssertionError for others."""
    from openclaw_opt.models.decoder import Decoder

    assert isinstance(model, Decoder), "check refuses a smaller vocabulary of other models"
    return model
