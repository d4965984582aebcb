"""YAML → a frozen Recipe, or every mistake at once, each with its line, what is legal and the nearest word.

The grammar is the pydantic models below and those of the parts (passes, metrics, data sources): an unknown key anywhere is
a mistake. A recipe is data: nothing in it is imported by a dotted path or run. Reading one imports no torch.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from openclaw_opt.artifacts import Checkpoint
from openclaw_opt.data import Source, parse_source
from openclaw_opt.errors import OptError, RecipeError, nearest
from openclaw_opt.metrics import Metric
from openclaw_opt.parts import part_named
from openclaw_opt.passes import Pass
from openclaw_opt.recipe_budgets import budget_of, choice_of, preset_budgets
from openclaw_opt.recipe_changes import Change, apply, override
from openclaw_opt.recipe_grammar import PRESET, Budget, BudgetChoice, Grammar, TargetChoice
from openclaw_opt.recipe_mistakes import Place, lower_first, meaning_of, told, unique, wanted
from openclaw_opt.recipe_model import resolve_model
from openclaw_opt.recipe_yaml import Located, Path_, read_located
from openclaw_opt.targets import Target, not_one_job, target_named, target_names

Part = TypeVar("Part", bound=BaseModel)


@dataclass(frozen=True)
class Recipe:
    """What was asked, whole: every default filled in, every name resolved."""

    name: str
    description: str
    file: Path
    model: str
    """Absolute path of the checkpoint folder, or a hub id."""
    target: Target
    backend: str
    calibration: Source | None
    evaluation: Source | None
    passes: tuple[Pass, ...]
    metrics: tuple[Metric, ...]
    budgets: tuple[Budget, ...]
    undecided: Literal["fail", "pass"]
    seed: int
    located: Located = field(compare=False, repr=False)
    """Where everything stands in the file, for messages that come after reading."""
    on_calibration: bool = False
    """A trial that looks at calibration data where a build looks at evaluation data. Never set by a recipe."""
    others: tuple[Target, ...] = ()
    """Further targets of the same job, built by the same backend; `target` is the first."""
    training: Source | None = None

    @property
    def sources(self) -> dict[str, Source]:
        """Every data source by its role."""
        roles = {"calibration": self.calibration, "training": self.training, "evaluation": self.evaluation}
        return {role: source for role, source in roles.items() if source is not None}

    @property
    def targets(self) -> tuple[Target, ...]:
        return (self.target, *self.others)

    def place_of(self, index: int, option: str = "") -> str:
        """`file:line` of pass `index` (of `self.passes`) or of one option of it."""
        word = self.passes[index].word
        for i, item in enumerate(self.located.data.get("passes", [])):
            if word == (next(iter(item), "") if isinstance(item, dict) else item):
                path: Path_ = ("passes", i, word, option) if option else ("passes", i)
                return self.located.place(path)
        return self.located.place(("passes",))


def load_recipe(
    file: Path,
    *,
    settings: Sequence[str] = (),
    model: str | None = None,
    target: str | None = None,
    changes: Sequence[Change] = (),
) -> Recipe:
    """Read, override, check. Raises RecipeError that holds every mistake found.

    Args:
        settings: `path=value` of `--set`.
        changes: what a point of a sweep chooses; applied last.
    """
    located = override(read_located(file), settings)
    if model is not None:
        _command_line(located, "model", _from_here(model))
    if target is not None:
        _command_line(located, "target", target.split(",") if "," in target else target)
    apply(located, changes)
    return _Reader(located, file).recipe()


def recipe_name(file: Path) -> str:
    """The file's name; of the resolved recipe in a build's folder the folder's, which is what that build was called."""
    name = file.name.removesuffix(".yaml").removesuffix(".resolved")
    return file.absolute().parent.name if file.name == "recipe.resolved.yaml" else name


def _command_line(located: Located, key: str, value: str | list[str]) -> None:
    located.data[key] = value
    located.places[(key,)] = f"--{key} {','.join(value) if isinstance(value, list) else value}"


def _from_here(model: str) -> str:
    """A path on the command line is relative to the working folder, not to the recipe."""
    return str(Path(model).expanduser().absolute()) if Path(model).expanduser().exists() else model


class _Reader:
    """Reads one recipe, collecting mistakes; each method takes one section."""

    def __init__(self, located: Located, file: Path) -> None:
        self.located, self.file = located, file
        self.mistakes: list[OptError] = list(located.mistakes)

    def recipe(self) -> Recipe:
        top = self._top()
        targets = self._targets()
        passes = self._passes()
        calibration, evaluation = self._source("calibration"), self._source("evaluation")
        training = self._source("training")
        metrics = self._metrics()
        budgets = self._budgets(metrics)
        model = self._model()
        if self.mistakes or top is None or not targets:
            raise RecipeError("the recipe has mistakes", where=str(self.file), mistakes=unique(self.mistakes))
        return Recipe(
            name=recipe_name(self.file),
            description=top.description,
            file=self.file,
            model=model,
            target=targets[0],
            backend=_backend(passes, targets[0]),
            calibration=calibration,
            evaluation=evaluation,
            passes=tuple(passes),
            metrics=tuple(metrics),
            budgets=tuple(budgets),
            undecided=top.undecided,
            seed=top.seed,
            located=self.located,
            others=tuple(targets[1:]),
            training=training,
        )

    def _top(self) -> Grammar | None:
        return self._validated(Grammar, self.located.data, ())

    def _targets(self) -> list[Target]:
        value = self.located.data.get("target", "host")
        if not isinstance(value, list):
            return [found for found in [self._target(value, ("target",))] if found is not None]
        if not value:
            self._add("`target` is an empty list", ("target",), nearest("", target_names()))
        read = [self._target(item, ("target", index)) for index, item in enumerate(value)]
        found = [target for target in read if target is not None]
        for index, what, fix in not_one_job(found):
            self._add(what, ("target", index), fix)
        return found

    def _target(self, value: Any, path: Path_) -> Target | None:
        choice = {"name": value} if isinstance(value, str) else value
        if not isinstance(choice, dict):
            self._add(f"`target` wants a name, or {{name: …, hourly_usd: …}}; got {value!r}", path)
            return None
        parsed = self._validated(TargetChoice, choice, path)
        if parsed is None:
            return None
        try:
            return target_named(parsed.name, parsed.hourly_usd)
        except RecipeError as error:
            self._add(error.what, path if isinstance(value, str) else (*path, "name"), error.fix)
            return None

    def _model(self) -> str:
        value = self.located.data.get("model")
        if not isinstance(value, str):
            return ""
        try:
            return resolve_model(value, self._folder_of(("model",)))
        except RecipeError as error:
            self._add(error.what, ("model",), error.fix)
            return ""

    def _folder_of(self, path: Path_) -> Path:
        """Folder of the file a value came from: with `extends`, a path is relative to the file that names it."""
        file = self.located.place(path).rsplit(":", 1)[0]
        return Path(file).parent if file and Path(file).is_file() else self.file.parent

    def _passes(self) -> list[Pass]:
        found: list[tuple[int, Pass]] = []
        for index, (word, options, path) in enumerate(self._items("passes")):
            made = self._part("passes", Pass, word, options, path)  # type: ignore[type-abstract]
            if made is not None:
                found.append((index, made))
        passes = [made for _, made in found]
        if not passes or passes[0].takes() is not Checkpoint:
            passes.insert(0, part_named("passes", "load", Pass)())
            found.insert(0, (-1, passes[0]))
        self._check_order(found)
        return passes

    def _check_order(self, found: Sequence[tuple[int, Pass]]) -> None:
        for (earlier, before), (index, after) in itertools.pairwise(found):
            if (
                index == earlier + 1 and before.gives() is not after.takes()
            ):  # a pass between that was not read explains it
                self._add(
                    f"pass `{after.word}` takes a {after.takes().__name__}, "
                    f"but `{before.word}` before it gives a {before.gives().__name__}",
                    ("passes", index),
                    fix=f"put `{after.word}` after a pass that gives a {after.takes().__name__}",
                )

    def _metrics(self) -> list[Metric]:
        items = [self._part("metrics", Metric, word, options, path) for word, options, path in self._items("metrics")]  # type: ignore[type-abstract]
        return [item for item in items if item is not None]

    def _items(self, section: str) -> list[tuple[str, dict[str, Any], Path_]]:
        """(word, options, path of the options) of each item of a list of parts."""
        items = self.located.data.get(section)
        found: list[tuple[str, dict[str, Any], Path_]] = []
        for i, item in enumerate(items if isinstance(items, list) else []):
            if isinstance(item, str):
                found.append((item, {}, (section, i)))
            elif isinstance(item, dict) and len(item) == 1:
                word, options = next(iter(item.items()))
                self._item(section, i, str(word), options, found)
            else:
                self._add(f"wants a name, or one name with its options; got {item!r}", (section, i))
        return found

    def _item(
        self, section: str, i: int, word: str, options: Any, found: list[tuple[str, dict[str, Any], Path_]]
    ) -> None:
        if options is not None and not isinstance(options, dict):
            self._add(f"the options of {word!r} are a mapping; got {options!r}", (section, i, word))
            return
        found.append((word, options or {}, (section, i, word)))

    def _part(self, folder: str, base: type[Part], word: str, options: Mapping[str, Any], path: Path_) -> Part | None:
        try:
            cls = part_named(folder, word, base)
        except RecipeError as error:
            self._add(error.what, path[:2], error.fix)
            return None
        return self._validated(cls, options, path)

    def _source(self, role: str) -> Source | None:
        section = self.located.data.get("data")
        value = section.get(role) if isinstance(section, dict) else None
        if value is None:
            return None
        path: Path_ = ("data", role)
        if not isinstance(value, (str, dict)):
            self._add(f"`{role}` wants a data source with its options; got {value!r}", path)
            return None
        try:
            return parse_source(value, folder=self._folder_of((*path, "path")))
        except RecipeError as error:
            for one in error.mistakes or (error,):
                what = one.what if one.where in one.what else f"{one.where}: {one.what}"
                self._add(what, (*path, *(one.where.split(".") if one.where else ())), one.fix)
            return None

    def _budgets(self, metrics: Sequence[Metric]) -> list[Budget]:
        section, declared = self.located.data.get("budgets"), self.located.data.get("metrics", [])
        whole = isinstance(declared, list) and len(metrics) == len(declared)  # else the metric's own mistake is enough
        numbers = {number.name: number for metric in metrics for number in metric.numbers if not number.by}
        found: dict[str, Budget] = {}
        for name, value in section.items() if isinstance(section, dict) else ():
            path: Path_ = ("budgets", name)
            try:
                if name == PRESET:
                    found = (preset_budgets(value, numbers) if whole else {}) | found
                    continue
                choice = choice_of(value)
                made = choice if isinstance(choice, BudgetChoice) else self._validated(BudgetChoice, choice, path)
                if made is not None and (whole or name in numbers):
                    found[name] = budget_of(name, made, numbers)
            except RecipeError as error:
                self._add(error.what, (*path, error.where) if error.where else path, error.fix)
        return list(found.values())

    def _validated(self, cls: type[Part], value: Mapping[str, Any], path: Path_) -> Part | None:
        try:
            # Through JSON, so that strict mode takes a list for a tuple but never a string for a number.
            context = {"folder": self._folder_of((*path, "folder"))}
            return cls.model_validate_json(json.dumps(value), context=context)
        except ValidationError as error:
            for one, at in told(cls, error.errors()):
                # At the top level, what fits no kind is explained by the reader of that section, once and better.
                if at.choice is None or cls is not Grammar:
                    self._explain(one, at, path)
        except RecipeError as error:
            self._add(error.what, (*path, error.where) if error.where else path, error.fix)
            if error.where in value:  # it hid the mistakes of the other options
                self._validated(cls, {name: one for name, one in value.items() if name != error.where}, path)
        except (TypeError, ValueError) as error:
            self._add(f"cannot be read: {error}", path)
        return None

    def _explain(self, one: ErrorDetails, at: Place, path: Path_) -> None:
        """One pydantic error as a sentence with place, value and what would be legal."""
        kind, got, whole = one["type"], one.get("input"), (*path, *at.keys)
        name = ".".join(str(part) for part in at.keys)
        last = str(at.keys[-1]) if at.keys else ""
        if kind == "extra_forbidden":
            self._add(f"unknown key {last!r}", whole, nearest(last, at.legal))
        elif kind == "missing":
            self._add(f"key {last!r} is missing", whole[:-1], meaning_of(at.owner, last))
        elif kind == "literal_error":
            words = re.findall(r"'([^']+)'", one["ctx"]["expected"])
            self._add(f"{last}: {got!r} is not legal", whole, nearest(str(got), words))
        elif kind == "kinds":
            self._add(f"{name}: {got!r} is not legal", whole, f"legal: {wanted(at.owner, last)}")
        elif kind == "value_error" and isinstance(one["ctx"].get("error"), OptError):
            inner = one["ctx"]["error"]
            self._add(inner.what, whole, inner.fix)
        else:
            said = lower_first(one["msg"]).replace("a valid array", "a list").replace("an object", "a mapping")
            self._add(f"{name + ': ' if name else ''}{said}; got {got!r}", whole)

    def _add(self, what: str, path: Path_, fix: str = "") -> None:
        self.mistakes.append(RecipeError(what, where=self.located.place(path) or str(self.file), fix=fix))


def _backend(passes: Sequence[Pass], target: Target) -> str:
    for item in passes:
        asked = getattr(item, "backend", "auto")
        if asked != "auto":
            return str(asked)
    return target.backend


def _choice_of(target: Target) -> dict[str, Any]:
    price = target.hourly_usd
    return {"name": target.name} | ({"hourly_usd": price} if price is not None else {})


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default, as YAML that loads back to the same recipe."""
    data: dict[str, Any] = {"description": recipe.description} if recipe.description else {}
    data["model"] = recipe.model
    named = [_choice_of(target) for target in recipe.targets]
    data["target"] = named if recipe.others else named[0]
    data["data"] = {role: source.described() for role, source in recipe.sources.items()}
    data["passes"] = [{item.word: item.model_dump(mode="json")} for item in recipe.passes]
    data["metrics"] = [{item.word: item.model_dump(mode="json")} for item in recipe.metrics]
    data["budgets"] = {budget.metric: budget.written() for budget in recipe.budgets}
    data["undecided"], data["seed"] = recipe.undecided, recipe.seed
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    return text
