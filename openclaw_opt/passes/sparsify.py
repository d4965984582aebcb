"""sparsify: zeros in linear weights, two of every four or anywhere; no shape changes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from openclaw_opt.artifacts import Model
from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.passes import Complaint, Done, Kind, Pass, View, Work
from openclaw_opt.passes._linears import Sizes, linear_sizes
from openclaw_opt.passes.quantize import DEFAULT_KEEP
from openclaw_opt.zeros import TWO_OF_FOUR

DEFAULT_RATIO = 0.5
DEFAULT_DAMPING = 0.01
GROUP = 4
BASE = 60


class Sparsify(Pass):
    """Set weights of linear layers to zero. Shapes, size and, on most engines, speed stay: `check` says what an engine does with it.

    Zeros are recorded in model.json, and passes after this one keep them: `quantize` proves it layer by layer.
    """

    kind: ClassVar[Kind] = "lossy"
    summary: ClassVar[str] = "zeros in linear weights, 2:4 or unstructured, by magnitude, Wanda or SparseGPT"
    tools: ClassVar[tuple[str, ...]] = ("torch",)
    reads: ClassVar[tuple[str, ...]] = ("calibration",)
    essential: ClassVar[tuple[str, ...]] = ("pattern",)

    pattern: Literal["2:4", "unstructured"]
    """`2:4`: of every four neighbouring inputs of an output two become zero, what sparse tensor cores can skip. `unstructured`:
    zeros stand anywhere; no engine here is faster for them."""
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`pattern: unstructured`: share of the weights that become zero. Default 0.5."""
    method: Literal["magnitude", "wanda", "sparsegpt"] = "sparsegpt"
    """How weights are chosen. magnitude: the smallest of each layer; wanda: the smallest times the norm of their input, in each
    output row; sparsegpt: those whose loss the others can make up for best, and the others do."""
    damping: Annotated[float, Field(gt=0, le=1)] | None = None
    """sparsegpt: what is added to the diagonal of the inputs' products, as a share of its mean. Default 0.01."""
    keep: tuple[str, ...] | None = None
    """Layers that stay dense, as patterns of module names (`head`, `layers.0.*`).

    Default: `head` for decoders, the classifier for vision models, nothing for encoders."""
    batch_size: Annotated[int, Field(gt=0)] = 4
    """Calibration sequences that run at once; memory grows with it."""

    @field_validator("pattern", mode="before")
    @classmethod
    def _base_60(cls, word: Any) -> Any:
        """YAML 1.1 reads 2:4 without quotes as 124, minutes and seconds; nobody who writes it means that."""
        whole = isinstance(word, int) and not isinstance(word, bool)
        return f"{word // BASE}:{word % BASE}" if whole else word

    @property
    def zeros(self) -> float | None:
        """Share of zeros; None for 2:4."""
        if self.pattern == TWO_OF_FOUR:
            return None
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    def patterns(self, task: str) -> tuple[str, ...]:
        return DEFAULT_KEEP[task] if self.keep is None else self.keep

    def check(self, view: View) -> list[Complaint]:
        words = [earlier.word for earlier in view.earlier]
        found = [*self._options(), *self._data(view)]
        if "quantize" in words:
            found.append(Complaint("quantized weights cannot be made sparse", fix="put sparsify before quantize"))
        if "sparsify" in words:
            what = "a second sparsify would fill zeros of the first"
            found.append(Complaint(what, fix="say it in one pass, with keep for what stays dense"))
        if view.spec.family == "resnet":
            what = f"sparsify takes linear layers, {view.spec.family} has convolutions"
            return [*found, Complaint(what, fix="take sparsify out")]
        if "prune" in words:
            return found  # layers and sizes are not known yet; `run` looks at the real ones
        return [*found, *self._layers(linear_sizes(view.spec), view.spec.task)]

    def _options(self) -> list[Complaint]:
        found = []
        if self.ratio is not None and self.pattern == TWO_OF_FOUR:
            found.append(Complaint("ratio has no effect with 2:4, which is always a half", "ratio", "leave it out"))
        if self.damping is not None and self.method != "sparsegpt":
            found.append(Complaint(f"damping has no effect with {self.method}", "damping", "leave it out"))
        return found

    def _data(self, view: View) -> list[Complaint]:
        source = view.calibration
        if source is None:
            if self.method == "magnitude":
                return []
            fix = "add `calibration` to `data`, or method: magnitude"
            return [Complaint(f"{self.method} needs calibration data", "method", fix)]
        wanted = "images" if view.spec.task == "vision" else "text"
        if source.kind != wanted:
            what = f"calibration data is {source.kind}, the model takes {wanted}"
            return [Complaint(what, "", "change data.calibration")]
        return []

    def _layers(self, sizes: Sizes, task: str) -> list[Complaint]:
        """What is wrong with `keep`, `ratio` and `pattern` for these layers; nothing where they are not known."""
        if not sizes:
            return []
        found = [
            Complaint(f"keep: {pattern!r} matches no layer", "keep", nearest(pattern, sizes))
            for pattern in self.patterns(task)
            if self.keep is not None and not any(fnmatchcase(name, pattern) for name in sizes)
        ]
        left = {name: k for name, k in sizes.items() if not self._kept(name, task)}
        if not left:
            return [*found, Complaint("keep leaves no layer to make sparse", "keep", "keep: [head]")]
        odd = {name: k for name, k in left.items() if k % GROUP}
        if odd and self.pattern == TWO_OF_FOUR:
            name, k = next(iter(odd.items()))
            also = ", ".join([*self.patterns(task), *odd])
            found.append(
                Complaint(f"groups of {GROUP} do not divide the {k} inputs of {name}", "pattern", f"keep: [{also}]")
            )
        return [*found, *self._nothing(left)]

    def _nothing(self, sizes: Sizes) -> list[Complaint]:
        """A ratio that rounds to no weight of a row, or to all."""
        if self.zeros is None:
            return []
        wrong = {name: k for name, k in sizes.items() if round(self.zeros * k) in (0, k)}
        if not wrong:
            return []
        name, k = next(iter(wrong.items()))
        what = "no" if round(self.zeros * k) == 0 else "every"
        return [
            Complaint(
                f"ratio {self.zeros:g} makes {what} weight of the {k} inputs of {name} zero", "ratio", "ratio: 0.5"
            )
        ]

    def _kept(self, name: str, task: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns(task))

    def chosen(self, sizes: Sizes, task: str) -> list[str]:
        """The layers to make sparse, of all that are float. Raises RecipeError where an option does not fit them."""
        wrong = [
            RecipeError(problem.what, where=f"sparsify.{problem.option}", fix=problem.fix)
            for problem in self._layers(sizes, task)
        ]
        if wrong:
            raise RecipeError(f"{len(wrong)} mistakes in sparsify", mistakes=wrong)
        return [name for name in sizes if not self._kept(name, task)]

    def run(self, source: Model, work: Work) -> Done[Model]:
        from openclaw_opt.models.calibrate import load_calibration
        from openclaw_opt.models.sparsifying import Job, sparsify_model
        from openclaw_opt.models.spec import read_facts

        facts, data = read_facts(source), work.calibration
        if facts.quant:
            raise RecipeError(
                "quantized weights cannot be made sparse",
                where=next(iter(facts.quant)),
                fix="put sparsify before quantize",
            )
        batches = None if data is None else load_calibration(data, facts, source, work.data_cache, self.batch_size)
        job = Job(self.zeros, self.method, DEFAULT_DAMPING if self.damping is None else self.damping)
        made = sparsify_model(source, facts, batches, work.folder, job, self.chosen, work.progress)
        return Done(made.model, changed=made.sentence, count=made.count, details=made.details)
