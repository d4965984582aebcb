"""What will run, what is cached, what it needs, and what cannot be done: everything that can be known before work starts.

Nothing here imports torch. A step's key is the digest of its ingredients: the pass and its options, the key of its input,
the facts it reads (target row, calibration data), the versions of its tools and the code of this package.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openclaw_opt.artifacts import MODEL_OF
from openclaw_opt.checkpoint import Checkpoint, Listing, list_checkpoint
from openclaw_opt.data import Source, overlap
from openclaw_opt.errors import MachineError, OptError, RecipeError, nearest
from openclaw_opt.metrics import Metric
from openclaw_opt.parts import ROOT
from openclaw_opt.passes import Pass, View
from openclaw_opt.recipe import Recipe
from openclaw_opt.store import Store, digest, sha256_file
from openclaw_opt.targets import Target
from openclaw_opt.versions import version_of

if TYPE_CHECKING:
    from openclaw_opt.models.spec import DecoderSpec, HfSpec

RUNS_ENGINE = ("latency", "memory")
"""Metrics that run the engine itself; others look at its graph or its bytes."""
SEPARATE = (
    ("calibration", "evaluation", "evaluate on data that no pass has seen"),
    ("training", "evaluation", "evaluate on data that no pass has seen"),
    ("training", "calibration", "train on other data: a part of the calibration data is held back to stop early"),
)
"""Roles whose data may share nothing, and why."""
UNTIL = {"model": "Model", "graph": "Graph", "engine": "Engine"}


@dataclass(frozen=True)
class Step:
    """One pass of the plan. `cached` says that its result is in the store."""

    index: int
    part: Pass
    key: str
    ingredients: dict[str, Any]
    cached: bool


@dataclass(frozen=True)
class Plan:
    """A recipe that can be done, in steps."""

    recipe: Recipe
    listing: Listing
    checkpoint: Checkpoint
    spec: DecoderSpec | HfSpec
    steps: tuple[Step, ...]


def check_recipe(recipe: Recipe) -> tuple[Listing, DecoderSpec | HfSpec]:
    """Every check that needs no work. Raises RecipeError with all mistakes, MachineError when only the machine is at fault."""
    listing, spec = _inspect(recipe)
    mistakes: list[OptError] = [*_tokenizer(recipe, listing, spec), *_legality(recipe, spec)]
    mistakes += _data_mistakes(recipe, spec)
    if mistakes:
        raise RecipeError("the recipe cannot be done", where=str(recipe.file), mistakes=mistakes)
    for missing in (*(one.missing() for one in recipe.sources.values()), *(one.missing() for one in recipe.metrics)):
        if missing is not None:
            raise missing
    return listing, spec


def _inspect(recipe: Recipe) -> tuple[Listing, DecoderSpec | HfSpec]:
    from openclaw_opt.models.families import spec_from_config

    weights_only = bool(getattr(recipe.passes[0], "weights_only", False))
    try:
        listing = list_checkpoint(recipe.model, weights_only=weights_only)
        return listing, spec_from_config(listing.config)
    except RecipeError as error:
        inner = f"{error.where}: " if error.where and error.where != recipe.model else ""
        where = recipe.located.place(("model",))
        raise RecipeError(f"model {recipe.model}: {inner}{error.what}", where=where, fix=error.fix) from error


def _tokenizer(recipe: Recipe, listing: Listing, spec: DecoderSpec | HfSpec) -> Iterator[OptError]:
    if spec.task != "vision" and not (listing.folder / "tokenizer.json").is_file():
        yield RecipeError(
            f"model {recipe.model}: no tokenizer.json",
            where=recipe.located.place(("model",)),
            fix="save the checkpoint with a fast tokenizer beside it",
        )


def _legality(recipe: Recipe, spec: DecoderSpec | HfSpec) -> Iterator[OptError]:
    for index, part in enumerate(recipe.passes):
        views = [_view(recipe, spec, index, target) for target in recipe.targets]
        for complaint in dict.fromkeys(complaint for view in views for complaint in part.check(view)):
            yield RecipeError(
                f"{part.word}: {complaint.what}", where=recipe.place_of(index, complaint.option), fix=complaint.fix
            )
    for i, metric in enumerate(recipe.metrics):
        for name, asked, largest in _over_profile(recipe, metric):
            yield RecipeError(
                f"metric {metric.word!r}: {name} {asked} is more than the engine is built for, {largest} at most",
                where=recipe.located.place(("metrics", i)),
                fix=f"lower it, or raise the third number of `build: {{{name}: [min, opt, max]}}`",
            )
        if spec.task not in metric.for_tasks:
            fits = ", ".join(metric.for_tasks)
            yield RecipeError(
                f"metric {metric.word!r} measures {fits} models; this one is a {spec.task}",
                where=recipe.located.place(("metrics", i)),
            )
        try:
            metric.check()
        except RecipeError as error:
            yield RecipeError(
                f"metric {metric.word!r}: {error.what}", where=recipe.located.place(("metrics", i)), fix=error.fix
            )
    given = {name for metric in recipe.metrics for name in metric.measurement_names(spec.task)}
    for budget in recipe.budgets:
        if given and budget.metric not in given:
            yield RecipeError(
                f"{budget.metric!r} is not measured of a {spec.task}",
                where=recipe.located.place(("budgets", budget.metric)),
                fix=nearest(budget.metric, given),
            )


def _over_profile(recipe: Recipe, metric: Metric) -> Iterator[tuple[str, int, int]]:
    """What a metric that runs the engine asks beyond TensorRT's shape ranges: option, asked, largest."""
    built = next((part for part in recipe.passes if part.word == "build"), None)
    if recipe.backend != "tensorrt" or built is None or metric.word not in RUNS_ENGINE:
        return
    from openclaw_opt.backends.trt_profiles import Profiles

    for name, default in (("batch", Profiles().batch), ("prompt", Profiles().prompt)):
        asked, largest = getattr(metric, name, None), (getattr(built, name, None) or default)[2]
        if name in metric.model_fields_set and isinstance(asked, int) and asked > largest:
            yield name, asked, largest


def _view(recipe: Recipe, spec: DecoderSpec | HfSpec, index: int, target: Target | None = None) -> View:
    chosen = target or recipe.target
    others = tuple(one for one in recipe.targets if one is not chosen)
    passes = recipe.passes
    return View(
        spec, chosen, recipe.backend, recipe.calibration, passes[:index], others, recipe.training, passes[index + 1 :]
    )


def _data_mistakes(recipe: Recipe, spec: DecoderSpec | HfSpec) -> Iterator[OptError]:
    evaluation = recipe.evaluation
    kind = "images" if spec.task == "vision" else "text"
    for role, source in recipe.sources.items():
        if source.kind != kind:
            where = recipe.located.place(("data", role))
            yield RecipeError(
                f"{role} data is {source.kind}, but the model is {MODEL_OF[spec.task]} and needs {kind}", where=where
            )
        elif source.image is not None and source.image != getattr(spec, "image", None):
            yield _wrong_images(role, source.image, getattr(spec, "image", None), recipe)
        elif (limit := _limit(recipe, spec, role)) is not None and source.length > limit[0]:
            yield RecipeError(
                f"{role} sequences of {source.length} tokens are longer than {limit[1]} of {limit[0]}",
                where=recipe.located.place(("data", role, "length")),
                fix=f"length: {limit[0]}",
            )
    if evaluation is None and any(metric.needs_data for metric in recipe.metrics):
        words = ", ".join(metric.word for metric in recipe.metrics if metric.needs_data)
        yield RecipeError(f"metrics {words} need `data.evaluation`", where=recipe.located.place(("metrics",)))
    if recipe.training is not None and not any("training" in part.reads for part in recipe.passes):
        where = recipe.located.place(("data", "training"))
        yield RecipeError("no pass reads `data.training`", where=where, fix="leave it out, or add distill")
    for first, second, fix in SEPARATE:
        if not (recipe.on_calibration and second == "evaluation"):
            yield from _shared(recipe, first, second, fix)


def _shared(recipe: Recipe, first: str, second: str, fix: str) -> Iterator[OptError]:
    a, b = recipe.sources.get(first), recipe.sources.get(second)
    try:
        shared = overlap(a, b) if a is not None and b is not None else None
    except OptError as error:
        yield error
        return
    if shared:
        where = recipe.located.place(("data", second))
        yield RecipeError(f"{first} and {second} data overlap: {shared}", where=where, fix=fix)


def _limit(recipe: Recipe, spec: DecoderSpec | HfSpec, role: str) -> tuple[int, str] | None:
    """The longest sequence that the model, or for evaluation the engine, takes; and whose limit that is."""
    shorter = fuse_context(recipe)
    if role == "evaluation" and shorter is not None:
        return shorter, "the context that `fuse` gives the engine"
    context = getattr(spec, "context", None)
    return None if context is None else (context, "the model's context")


def fuse_context(recipe: Recipe) -> int | None:
    """The context the recipe gives the engine, where it is not the checkpoint's own."""
    asked = [getattr(part, "context", None) for part in recipe.passes if part.word == "fuse"]
    return asked[0] if asked else None


def _wrong_images(role: str, given: tuple[int, ...], wanted: tuple[int, ...] | None, recipe: Recipe) -> OptError:
    there, taken = ("×".join(map(str, size)) for size in (given, wanted or ()))
    return RecipeError(
        f"{role} images are {there} (channels × height × width), the model takes {taken} (config.json: num_channels, image_size)",
        where=recipe.located.place(("data", role)),
        fix="a source of images of that size, or a model for these",
    )


def make_plan(recipe: Recipe, store: Store, until: str | None = None) -> Plan:
    """Check, then key every step.

    Args:
        until: the artifact that the build ends with, as `steps_until` takes it: what comes after needs no disk.

    Raises what `check_recipe` and `steps_until` raise, and MachineError when the disk is too small.
    """
    hashes = Hashes(store.root / "hashes.json")
    listing, spec = check_recipe(recipe)
    checkpoint = Checkpoint(listing.folder, listing.config, {path.name: hashes.of(path) for path in listing.weights})
    hashes.write()
    plan = Plan(recipe, listing, checkpoint, spec, ())
    plan = replace(plan, steps=keyed_steps(plan, store))
    _check_disk(replace(plan, steps=steps_until(plan, until)), store)
    return plan


def keyed_steps(plan: Plan, store: Store) -> tuple[Step, ...]:
    """The recipe's passes, each with its key."""
    recipe = plan.recipe
    steps: list[Step] = []
    files, config = plan.checkpoint.files, digest(plan.checkpoint.config)
    origin = {"files": files, "config": config, "assets": plan.listing.assets_digest()}
    before: dict[str, Any] = {"checkpoint": origin}
    for index, part in enumerate(recipe.passes):
        facts = {**before, **_ingredients(part, recipe, origin), **part.ingredients(_view(recipe, plan.spec, index))}
        ingredients = json.loads(json.dumps(facts))  # as the manifest gives them back: lists, no tuples
        key = digest(ingredients)
        steps.append(Step(index, part, key, ingredients, store.find(key) is not None))
        before = {"input": {"pass": part.word, "key": key}}
    return tuple(steps)


def _ingredients(part: Pass, recipe: Recipe, origin: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "pass": part.word,
        "options": part.model_dump(mode="json"),
        "seed": recipe.seed,
        "tools": {name: version_of(name) for name in part.tools},
        "openclaw_opt": source_digest(),
    }
    if "target" in part.reads:
        facts["target"] = asdict(recipe.target) | {"backend": recipe.backend, "hourly_usd": None}
        if recipe.others:
            facts["others"] = {one.name: asdict(one) | {"hourly_usd": None} for one in recipe.others}
    if "calibration" in part.reads:
        facts["calibration"] = source_facts(recipe.calibration)
    if "training" in part.reads:
        facts["training"] = source_facts(recipe.training)
    if "checkpoint" in part.reads:
        facts["checkpoint"] = origin
    return facts


def source_facts(source: Source | None) -> dict[str, Any]:
    """What decides the content of a data source, without reading it whole."""
    if source is None:
        return {}
    return {**source.described(), "identities": digest(sorted(source.identities())), "python": sys.version.split()[0]}


@cache
def source_digest() -> str:
    """Digest of this package's own code: another version must not serve this one's results."""
    files = {path.relative_to(ROOT): path for path in sorted(ROOT.rglob("*.py"))}
    counted = {str(name): path for name, path in files.items() if name.parts[0] not in ("report", "cli", "sweep")}
    return digest({name: digest(path.read_text(encoding="utf-8")) for name, path in counted.items()})[:16]


class Hashes:
    """sha256 of weight files; one of unchanged size and time comes from the list in `file`, so that 16 GB are read once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}

    def of(self, path: Path) -> str:
        stat = path.stat()
        tag = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
        self._known[tag] = self._known.get(tag) or sha256_file(path)
        return self._known[tag]

    def write(self) -> None:
        if not self._file.parent.is_dir():
            return  # the store is made by the first pass that runs
        part = self._file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(self._known))
        part.replace(self._file)


def why_redone(step: Step, last: Mapping[str, Any] | None) -> str:
    """What changed since the last build into this folder, e.g. `options.format: int8 → int4`."""
    if last is None:
        return "first build"
    old, new = dict(_flat(last)), dict(_flat(step.ingredients))
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if changed == ["input.key"]:
        return f"its input changed: `{step.ingredients['input']['pass']}` was redone"
    told = [f"{name}: {_short(old.get(name))} → {_short(new.get(name))}" for name in changed if name != "input.key"]
    return "; ".join(told[:3]) or "its result is no longer in the cache"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:8]}…"


def _check_disk(plan: Plan, store: Store) -> None:
    """Each pass that runs may write as much as the checkpoint in fp32; the sum must fit now, not after an hour."""
    missing = sum(not step.cached for step in plan.steps)
    need = missing * 2 * sum(path.stat().st_size for path in plan.listing.weights)
    folder = store.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need > free:
        raise MachineError(
            f"the cache needs up to {need / 2**30:.1f} GiB for {missing} passes and {free / 2**30:.1f} GiB are free",
            where=str(store.root),
            fix="free space, or --cache a folder on a larger disk",
        )


def steps_until(plan: Plan, until: str | None) -> tuple[Step, ...]:
    """The steps up to and with the last that gives the named artifact (`model`, `graph`, `engine`); all if None."""
    if until is None:
        return plan.steps
    if until not in UNTIL:
        raise RecipeError(f"--until {until}: unknown stage", fix=nearest(until, UNTIL))
    ends = [step.index for step in plan.steps if step.part.gives().__name__ == UNTIL[until]]
    if not ends:
        raise RecipeError(f"--until {until}: no pass of the recipe gives a {UNTIL[until]}", where=str(plan.recipe.file))
    return plan.steps[: ends[-1] + 1]


def output_folder(recipe: Recipe, output: Path | None) -> Path:
    return (output or Path("build") / recipe.name).absolute()
