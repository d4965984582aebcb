"""quantize: linear layers to a low-bit format, calibrated on data, each layer's error recorded."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from openclaw_opt.artifacts import Model, Task
from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.formats import FORMATS, Format
from openclaw_opt.passes import Complaint, Done, Kind, Pass, View, Work, _caching, _parsers
from openclaw_opt.passes import candidates as choosing
from openclaw_opt.passes._caching import DEFAULT_PERCENTILE, FLOAT
from openclaw_opt.passes._linears import Sizes, generalised, linear_sizes, words
from openclaw_opt.passes.candidates import AUTO, Candidates, Within
from openclaw_opt.targets import Target, formats_of

if TYPE_CHECKING:
    from openclaw_opt.models.calibrate import Calibration
    from openclaw_opt.models.schemes import Job
    from openclaw_opt.models.spec import DecoderSpec, HfSpec

Algorithm = Literal["max", "smoothquant", "smoothquant_gptq", "rtn", "awq", "awq_full", "gptq", "awq_gptq"]
Ranges = Literal["max", "percentile", "mse", "entropy", "signed"]

ALGORITHMS: dict[str, tuple[Algorithm, ...]] = {
    "int8": ("smoothquant", "max"),
    "int8_per_token": ("max", "gptq", "smoothquant", "smoothquant_gptq"),
    "int8_weight_only": ("max", "gptq"),
    "int4": ("gptq", "awq_gptq", "awq_full", "awq", "rtn"),
    "uint4": ("gptq", "awq_gptq", "awq_full", "awq", "rtn"),
    "fp8": ("max",),
    "nvfp4": ("max",),
}
"""Legal for each format; the first is what `auto` takes for decoders."""
PLAIN: tuple[Algorithm, ...] = ("max", "rtn")
"""What `auto` takes for encoders and vision models, where input factors cannot move into a norm."""
RANGES: dict[str, tuple[Ranges, ...]] = {
    "int8": ("max", "percentile", "mse", "entropy"),
    "int8_per_token": ("max",),
    "int8_weight_only": ("max", "mse"),
    "int4": ("max", "mse", "signed"),
    "uint4": ("max", "mse"),
    "fp8": ("max", "percentile", "mse"),
    "nvfp4": ("max",),
}
"""How ranges may be found. Entropy needs levels of equal width; NVFP4 finds the scales of its blocks when it runs."""
SMOOTHS: tuple[Algorithm, ...] = ("smoothquant", "smoothquant_gptq")
ON_INPUTS: tuple[Algorithm, ...] = ("awq", "awq_full", "gptq", "awq_gptq", *SMOOTHS)
COMPENSATES: tuple[Algorithm, ...] = ("gptq", "awq_gptq", "smoothquant_gptq")
NEEDS_DATA = frozenset({"int8", "fp8", "nvfp4"})
SMOOTHQUANT_TOKENS = 1024
DEFAULT_ALPHA, DEFAULT_DAMPING, DEFAULT_SWEEPS = 0.5, 0.01, 2
DEFAULT_KEEP = {"decoder": ("head",), "encoder": (), "vision": ("model.classifier*",)}
BLOCKS = (16, 32, 64, 128, 256)
NVFP4_BLOCK = 16
WEIGHTS = "weights"
"""Subfolder for the model whose weights are done and whose cache is not."""


class Quantize(Pass):
    """Store the weights of linear layers in few bits and, where the format says so, quantize their inputs too.

    nvidia-modelopt finds ranges of inputs and input factors; how weights are rounded, and ranges from histograms, are our own.
    Every layer is proven equal to the fake-quantized one that was calibrated; embeddings and norms stay float.
    """

    kind: ClassVar[Kind] = "lossy"
    summary: ClassVar[str] = (
        "weights (and activations, and the cache) in few bits, inputs calibrated by nvidia-modelopt"
    )
    tools: ClassVar[tuple[str, ...]] = ("torch", "nvidia-modelopt")
    reads: ClassVar[tuple[str, ...]] = ("calibration",)
    essential: ClassVar[tuple[str, ...]] = ("format", "kv_cache")

    format: Literal["int8", "int8_per_token", "int8_weight_only", "int4", "uint4", "fp8", "nvfp4", "auto", "float"] = (
        FLOAT
    )
    """Number format; a row of `openclaw-opt list formats`. `float`: weights stay as they are, for `kv_cache` alone. `auto`: each
    layer gets one of `candidates`, so that the model keeps `within` and is as small, or as fast, as it can be."""
    candidates: Candidates | None = None
    """auto: two formats or more, each a word or a mapping of `format` and its own options: `[{format: int4, block: 128}, int8,
    fp16]`. `fp16` leaves a layer in the graph's float type, which is float16 on a GPU and float32 on a CPU."""
    within: Within | None = None
    """auto: what the choice must keep, as a budget is written: `{bits_per_byte.recovery: ">= 0.99"}` or `{kl.mean: {rule: "<= 0.001",
    confidence: 0.9}}`. Any accuracy measurement; the end of its interval (0.95) on calibration data held back keeps the rule.
    Evaluation data is never looked at."""
    minimise: Literal["size", "time"] | None = None
    """auto: bytes of the weights as the engine holds them (`size`, the default), or the roofline time of a decode step."""
    held_back: Annotated[float, Field(gt=0, lt=1)] | None = None
    """auto: the share of the calibration samples that the choice is measured on and nothing else looks at. Default 0.5."""
    algorithm: Literal["auto"] | Algorithm = "auto"
    """How weights are rounded. int8: smoothquant, max; int8_weight_only: max, gptq; int8_per_token: these, smoothquant and
    smoothquant_gptq (gptq after its factors); fp8, nvfp4: max; int4, uint4: gptq (ranges clipped, errors made up for by later
    columns), awq_gptq (after awq's factors), awq_full (factors and clipped ranges), awq (factors), rtn.

    `auto` is the first of these for decoders, and max or rtn for encoders and vision models."""
    calibration: Ranges = "max"
    """How ranges are found. int8, fp8: of activations, the largest value seen, a percentile of the values, the least squared
    error, or (int8) the least divergence. Weight-only formats with rtn or max: of weights, max, mse, or (int4, on a CPU) `signed`: the
    largest of a block is the code -8, its sign in the scale, so that steps are 7/8 as wide."""
    percentile: Annotated[float, Field(gt=50, le=100)] | None = None
    """`calibration` or `kv_calibration: percentile`: how many of the values lie within the range, in percent. Default 99.99."""
    damping: Annotated[float, Field(gt=0, le=1)] | None = None
    """gptq: what is added to the diagonal of the inputs' products, as a share of its mean. Default 0.01."""
    act_order: bool | None = None
    """gptq: round the columns with the largest inputs first. Default true."""
    sweeps: Annotated[int, Field(ge=0, le=100)] | None = None
    """gptq: how often scales and codes are looked at again after it. Default 2; 0 leaves what GPTQ gave."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """SmoothQuant: how much of the activations' range moves into the weights, 0 to 1. Default 0.5."""
    block: Annotated[int, Field(gt=0)] | None = None
    """int4, uint4, nvfp4: inputs that share a weight scale; must divide the inputs of every layer. Default: the format's."""
    per_channel: bool | None = None
    """fp8: a scale for each output channel of a weight; default one for the whole weight. Integers always have one a channel."""
    keep: tuple[str, ...] | None = None
    """Layers that stay float, as patterns of module names (`head`, `layers.0.*`).

    Default: `head` for decoders, the classifier for vision models, nothing for encoders; nothing with `format: auto`."""
    kv_cache: Literal["float", "int8", "int4"] = FLOAT
    """Type of a decoder's key/value cache: `float`, that of the graph; `int8` or `int4` on a CPU, where ONNX Runtime's attention kernel
    has a calibrated scale for each head and channel, llama.cpp finds one for 32 channels of each token when it runs, and OpenVINO one for
    each token and head."""
    kv_calibration: Ranges | None = None
    """`kv_cache` on ONNX Runtime: how ranges of keys and values are found; entropy for int8 alone. Default: max."""
    kv_per_channel: bool | None = None
    """`kv_cache` on ONNX Runtime: a scale for each kv head and channel (the default), which loses least where calibration has some ten
    thousand tokens, or one for a layer's keys and one for its values, which the kernel reads faster."""
    batch_size: Annotated[int, Field(gt=0)] = 4
    """Calibration sequences that run at once; memory grows with it."""

    @field_validator("format", "candidates", "within", "kv_cache", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        """Raises RecipeError with the option as `where`."""
        try:
            if info.field_name == "format":
                return choosing.read_format(value)
            if info.field_name == "kv_cache":
                return _caching.read_word(value)
            return None if value is None else cls._read_choice(value, info)
        except RecipeError as error:
            raise RecipeError(error.what, where=str(info.field_name), fix=error.fix) from error

    @classmethod
    def _read_choice(cls, value: Any, info: ValidationInfo) -> Any:
        return choosing.read_candidates(value, cls) if info.field_name == "candidates" else choosing.read_within(value)

    @property
    def row(self) -> Format:
        return FORMATS[self.format]

    def algorithm_for(self, task: str) -> Algorithm:
        """What `auto` stands for."""
        if self.algorithm != "auto":
            return self.algorithm
        legal = ALGORITHMS[self.format]
        return legal[0] if task == "decoder" else next(word for word in PLAIN if word in legal)

    def patterns(self, task: str) -> tuple[str, ...]:
        if self.keep is not None:
            return self.keep
        return () if self.format == AUTO else DEFAULT_KEEP[task]

    def parts(self, task: Task) -> tuple[Quantize, ...]:
        """The formats it may give a layer, each as a pass of its own: itself, the candidates of `auto`, or none."""
        if self.format == FLOAT:
            return ()
        return tuple(choosing.expanded(self, task).values()) if self.format == AUTO else (self,)

    def decided(self, task: str) -> dict[str, Any]:
        """What it does to a layer, with every default filled in: two with the same do the same."""
        own = {name: getattr(self, name) for name in choosing.OPTIONS}
        return {**own, "format": self.format, "algorithm": self.algorithm_for(task), "block": self.block_size()}

    def title_for(self, task: str) -> str:
        block = self.block_size()
        return f"{self.format} ({self.algorithm_for(task)}{f', blocks of {block}' if block else ''})"

    def ingredients(self, view: View) -> dict[str, Any]:
        """With `auto`, what a layer costs depends on the backend, and its time on the target; who finds a cache's scales too."""
        if self.format != AUTO:
            return {} if self.kv_cache == FLOAT else {"dynamic_cache": _caching.is_dynamic(view.backend)}
        return {"backend": view.backend, **({"target": view.target.title} if self.minimise == "time" else {})}

    def block_size(self) -> int | None:
        return None if self.format == FLOAT else self.block or self.row.block

    def check(self, view: View) -> list[Complaint]:
        found = [*choosing.complaints(self, view), *_caching.complaints(self, view)]
        if self.format == AUTO:
            return list(dict.fromkeys(found))
        if self.format == FLOAT:
            return [*found, *_caching.weights_stay(self)]
        found += [
            *self._realised(view.target, view.backend),
            *self.option_complaints(view.spec.task),
            *self._data(view),
        ]
        found += [*self._architecture(view.spec), *_parsers.refused(self, view.backend)]
        if any(earlier.word == "prune" for earlier in view.earlier):
            return found  # layers and sizes are not known yet; `run` looks at the real ones
        return [*found, *self._layers(linear_sizes(view.spec), view.spec.task)]

    def _realised(self, target: Target, backend: str) -> list[Complaint]:
        if target.realises(self.row, backend):
            return []
        legal = [FORMATS[name] for name in formats_of(target, backend)]
        near = min(legal, key=lambda row: _distance(self.row, row), default=None)
        what = f"{backend} does not realise {self.format} on {target.title}"
        if self.row.limits and backend not in self.row.backends:
            what += f": {self.row.limits}"
        if backend == "tensorrt" and backend in self.row.backends:
            needs, has = (f"{major}.{minor}" for major, minor in (self.row.compute, target.compute))
            what += f": it needs compute capability {needs}, the target has {has}"
        return [Complaint(what, "format", f"format: {near.name}" if near else "choose another backend")]

    def option_complaints(self, task: str) -> list[Complaint]:
        found, legal, algorithm = [], ALGORITHMS[self.format], self.algorithm_for(task)
        if algorithm not in legal:
            fix = f"algorithm: {legal[0]}" if len(legal) == 1 else nearest(algorithm, legal)
            return [Complaint(f"{algorithm} is no algorithm for {self.format}", "algorithm", fix)]
        found += self._range_options(algorithm)
        if algorithm not in COMPENSATES:
            for option in ("damping", "act_order", "sweeps"):
                if getattr(self, option) is not None:
                    found.append(Complaint(f"{option} has no effect with {algorithm}", option, "leave it out"))
        if self.alpha is not None and algorithm not in SMOOTHS:
            found.append(Complaint(f"alpha has no effect with {algorithm}", "alpha", "leave it out"))
        if self.per_channel is not None and self.format != "fp8":
            found.append(Complaint(f"per_channel has no effect with {self.format}", "per_channel", "leave it out"))
        if self.block is not None and self.row.block is None:
            found.append(Complaint(f"block has no effect with {self.format}", "block", "leave it out"))
        elif self.format == "nvfp4" and self.block_size() != NVFP4_BLOCK:
            found.append(Complaint(f"nvfp4 has blocks of {NVFP4_BLOCK}, not {self.block}", "block", "leave it out"))
        elif self.block is not None and self.block not in BLOCKS:
            near = min(BLOCKS, key=lambda size: abs(size - (self.block or 0)))
            found.append(Complaint(f"no runtime has blocks of {self.block}", "block", f"block: {near}"))
        return found

    def _range_options(self, algorithm: Algorithm) -> list[Complaint]:
        legal = RANGES[self.format]
        if self.calibration not in legal:
            why = f"{self.format} has no {self.calibration} calibration"
            return [Complaint(why, "calibration", f"legal: {', '.join(legal)}")]
        if self.row.weight_only and self.calibration != "max" and algorithm not in PLAIN:
            return [Complaint(f"{algorithm} finds its own ranges", "calibration", "leave it out")]
        if self.percentile is not None and "percentile" not in (self.calibration, self.kv_calibration):
            return [Complaint("percentile has no effect without it", "percentile", "calibration: percentile")]
        return []

    def _data(self, view: View) -> list[Complaint]:
        source, algorithm = view.calibration, self.algorithm_for(view.spec.task)
        if source is None:
            if not self._needs_data(algorithm):
                return []
            why = f"{self.format} with {algorithm} needs calibration data"
            return [Complaint(why, "algorithm", "add `calibration` to `data`")]
        wanted = "images" if view.spec.task == "vision" else "text"
        if source.kind != wanted:
            return [
                Complaint(f"calibration data is {source.kind}, the model takes {wanted}", "", "change data.calibration")
            ]
        tokens = source.samples * source.length
        if algorithm in SMOOTHS and wanted == "text" and tokens < SMOOTHQUANT_TOKENS:
            return [_too_few(tokens)]
        return []

    def _needs_data(self, algorithm: Algorithm) -> bool:
        return self.format in NEEDS_DATA or algorithm in ON_INPUTS

    def _architecture(self, spec: DecoderSpec | HfSpec) -> list[Complaint]:
        if spec.family == "resnet" and self.format not in ("int8", "fp8"):
            what = f"{self.format} has no convolution, and {spec.family} has no other layer"
            return [Complaint(what, "format", "format: int8")]
        return []

    def _layers(self, sizes: Sizes, task: str, done: tuple[str, ...] = ()) -> list[Complaint]:
        """What is wrong with `keep` and `block` for these layers; nothing where they are not known."""
        if not sizes:
            return []
        found = [
            Complaint(f"keep: {pattern!r} matches no layer", "keep", nearest(pattern, words(sizes)))
            for pattern in self.patterns(task)
            if self.keep is not None and not any(fnmatchcase(name, pattern) for name in (*sizes, *done))
        ]
        left = {name: k for name, k in sizes.items() if not self._kept(name, task)}
        if not left:
            return [*found, Complaint("keep leaves no layer to quantize", "keep", "keep: [head]")]
        block = self.block_size()
        odd = {name: k for name, k in left.items() if block in BLOCKS and k % block}
        if odd:
            name, k = next(iter(odd.items()))
            found.append(
                Complaint(
                    f"blocks of {block} do not divide the {k} inputs of {name}", "block", self._legal_block(left, odd)
                )
            )
        return found

    def _legal_block(self, left: Sizes, odd: Sizes) -> str:
        legal = [size for size in BLOCKS if not any(k % size for k in left.values())]
        if self.format != "nvfp4" and legal:
            return f"block: {max(legal)}"
        return f"keep: [{', '.join([*self.patterns('decoder'), *generalised(odd)])}]"

    def _kept(self, name: str, task: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns(task))

    def run(self, source: Model, work: Work) -> Done[Model]:
        if self.format == AUTO:
            from openclaw_opt.passes.mixing import choose_formats

            return choose_formats(self, source, work)
        from openclaw_opt.models.calibrate import load_calibration
        from openclaw_opt.models.quantizing import Input, quantize_model
        from openclaw_opt.models.spec import read_facts

        facts, data = read_facts(source), work.calibration
        batches = None if data is None else load_calibration(data, facts, source, work.data_cache, self.batch_size)
        if self.format == FLOAT:
            return self._cached(source, batches, work)
        choose, both = partial(self.chosen, done=tuple(facts.quant)), self.kv_cache != FLOAT
        given, folder = Input(source, facts, batches), work.folder / WEIGHTS if both else work.folder
        made = quantize_model(given, folder, self.job(facts.task), choose, work.progress)
        if not both:
            return Done(made.model, changed=made.sentence, count=made.count, details=made.details)
        done = self._cached(made.model, batches, work)
        shutil.rmtree(folder)
        changed, rows = f"{made.sentence}; {done.changed}", [*made.details["layers"], *done.details["layers"]]
        details = {**made.details, **done.details, "layers": rows}
        return Done(done.artifact, changed=changed, count=made.count, details=details)

    def _cached(self, source: Model, batches: Calibration | None, work: Work) -> Done[Model]:
        """The cache of `source` as `kv_cache` says."""
        from openclaw_opt.models.caching import quantize_cache

        job = _caching.cache_job(self, work.backend)
        made = quantize_cache(source, batches, work.folder, job, work.progress)
        return Done(made.model, changed=made.sentence, count=made.count, details=made.details)

    def job(self, task: str) -> Job:
        """The same with every default filled in."""
        from openclaw_opt.models.schemes import Job

        algorithm = self.algorithm_for(task)
        return Job(
            format=self.format,
            algorithm=algorithm,
            alpha=(DEFAULT_ALPHA if self.alpha is None else self.alpha) if algorithm in SMOOTHS else None,
            block=self.block_size(),
            least_rows=SMOOTHQUANT_TOKENS if algorithm in SMOOTHS else 0,
            ranges=self.calibration,
            percentile=(self.percentile or DEFAULT_PERCENTILE) if self.calibration == "percentile" else None,
            damping=DEFAULT_DAMPING if self.damping is None else self.damping,
            act_order=self.act_order is not False,
            sweeps=DEFAULT_SWEEPS if self.sweeps is None else self.sweeps,
            per_channel=bool(self.per_channel),
        )

    def chosen(self, sizes: Sizes, task: str, done: tuple[str, ...] = ()) -> list[str]:
        """The layers to quantize, of all that are float; `done` an earlier pass has quantized. Raises RecipeError where an option does not fit them."""
        wrong = [
            RecipeError(problem.what, where=f"quantize.{problem.option}", fix=problem.fix)
            for problem in self._layers(sizes, task, done)
        ]
        if wrong:
            raise RecipeError(f"{len(wrong)} mistakes in quantize", mistakes=wrong)
        return [name for name in sizes if not self._kept(name, task)]


def _distance(asked: Format, there: Format) -> tuple[bool, float, bool]:
    """How far a format is from the one asked: same kind first, then bits, then a float for a float."""
    floats = asked.weight.startswith("FLOAT") != there.weight.startswith("FLOAT")
    return asked.weight_only != there.weight_only, abs(asked.weight_bits - there.weight_bits), floats


def _too_few(tokens: int) -> Complaint:
    what = f"smoothquant needs at least {SMOOTHQUANT_TOKENS} calibration tokens, samples × length is {tokens}"
    return Complaint(what, "algorithm", "raise data.calibration.samples, or algorithm: max")
