"""Sweeps: the grid's grammar and its mistakes, what a point is, how the best is chosen, how a search is seeded and resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openclaw_opt.artifacts import Measurement
from openclaw_opt.cli import app
from openclaw_opt.cli.sweep_progress import point_line
from openclaw_opt.errors import MachineError, OptError, RecipeError
from openclaw_opt.plan import check_recipe
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import BudgetRecord
from openclaw_opt.report import read_report
from openclaw_opt.sweep.axes import combinations, name_of, parse
from openclaw_opt.sweep.decide import decided
from openclaw_opt.sweep.points import Base, check_points
from openclaw_opt.sweep.search import JOURNAL, Search, violation
from openclaw_opt.sweep.state import ObjectiveRecord, PointRecord, SweepRecord, read_state, write_state
from openclaw_opt.sweep.trial import Outcome
from tests.sweeps import AUTO, FORMATS, PRUNED, Inline, Remembering, Write, asked, by_name, run

FFN = "passes.prune.ffn=0,0.4"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def names(file: Path, *grid: str, skip_illegal: bool = False) -> list[str]:
    axes, _ = parse(grid, ())
    found = check_points(Base(file), combinations(axes), skip_illegal=skip_illegal)
    return [point.name for point in found.legal]


def refused(file: Path, *grid: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        names(file, *grid)
    return [str(one) for one in caught.value.mistakes]


# ---- grammar


def test_values_are_yaml_and_lists_stand_in_brackets() -> None:
    axes, ranges = parse(
        ["a.b=int8, 0.1,1e-3,true,off", "c=[head],[],[layers.0.*, head]", "d='off',{x: 1}"],
        ["e=0.05:0.3", "f=32:128:32"],
    )
    assert [value.value for value in axes[0].values[:4]] == ["int8", 0.1, 0.001, True]
    assert str(axes[0].values[4].value) == "Switch.OFF"
    assert [value.value for value in axes[1].values] == [["head"], [], ["layers.0.*", "head"]]
    assert [value.value for value in axes[2].values] == ["off", {"x": 1}]
    assert [(one.low, one.high, one.step, one.whole) for one in ranges] == [
        (0.05, 0.3, None, False),
        (32.0, 128.0, 32.0, True),
    ]
    assert len(combinations(axes)) == 5 * 3 * 2


def test_every_mistake_of_the_axes_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse(["a", "b=1,1", "b=2", "c=[1", "d=1],[2"], ["e=3:1", "f=x:y", "g=0:1:2"])
    assert [str(one).partition("\n")[0] for one in caught.value.mistakes] == [
        "--grid a: wants path=value,value",
        "--grid b=1,1: value '1' stands twice",
        "--grid c=[1: the values are no YAML: brackets or quotes do not match",
        "--grid d=1],[2: the values are no YAML: brackets or quotes do not match",
        "--range e=3:1: wants low < high, and a step that fits between them",
        "--range f=x:y: wants path=low:high or path=low:high:step",
        "--range g=0:1:2: wants low < high, and a step that fits between them",
        "--grid b=2: b is given twice",
    ]


def test_a_name_is_a_folder_of_its_own() -> None:
    axes, _ = parse(
        ["data.calibration.samples=8,16", "data.evaluation.samples=4", "passes.quantize.keep=[head],[a/b]"], ()
    )
    found = [name_of(choice) for choice in combinations(axes)]
    assert found[0] == "calibration.samples=8,evaluation.samples=4,keep=_head_-" + found[0][-8:]
    assert len(set(found)) == 4
    assert all("/" not in name for name in found)


# ---- points


def test_off_and_zero_take_a_pass_out_of_a_point(write_recipe: Write) -> None:
    file = write_recipe(PRUNED, AUTO)
    axes, _ = parse([FFN, "passes.quantize.format=off,int8"], ())
    found = check_points(Base(file), combinations(axes), skip_illegal=False).legal
    words = {point.name: [part.word for part in point.recipe.passes] for point in found}
    assert words == {
        "ffn=0,format=off": ["load", "export", "fuse", "build"],
        "ffn=0,format=int8": ["load", "quantize", "export", "fuse", "build"],
        "ffn=0.4,format=off": ["load", "prune", "export", "fuse", "build"],
        "ffn=0.4,format=int8": ["load", "prune", "quantize", "export", "fuse", "build"],
    }
    assert names(file, "passes.prune=off,on") == ["prune=off", "prune=on"]


def test_a_pass_with_something_left_to_do_stays(write_recipe: Write) -> None:
    file = write_recipe(("passes:\n", "passes:\n  - prune: {ffn: 0.4, query_heads: 0.5}\n"))
    axes, _ = parse([FFN], ())
    without, _ = check_points(Base(file), combinations(axes), skip_illegal=False).legal
    prune = without.recipe.passes[1]
    assert (prune.word, prune.model_dump()["ffn"], prune.model_dump()["query_heads"]) == ("prune", None, 0.5)


def test_off_on_another_option_is_its_default(write_recipe: Write) -> None:
    axes, _ = parse(["passes.quantize.algorithm=off,max"], ())
    found = check_points(Base(write_recipe()), combinations(axes), skip_illegal=False).legal
    assert [point.recipe.passes[1].model_dump()["algorithm"] for point in found] == ["auto", "max"]


def test_in_a_recipe_a_pass_that_does_nothing_stays_a_mistake(write_recipe: Write) -> None:
    with pytest.raises(RecipeError, match="greater than 0"):
        load_recipe(write_recipe(PRUNED), settings=["passes.prune.ffn=0"])


def test_points_of_one_recipe_are_built_once(write_recipe: Write) -> None:
    file = write_recipe(PRUNED)
    axes, _ = parse(["passes.prune=off,on", "passes.prune.ffn=0.4,0.5"], ())
    found = check_points(Base(file), combinations(axes), skip_illegal=False)
    assert [point.name for point in found.legal] == ["prune=off,ffn=0.4", "prune=on,ffn=0.4", "prune=on,ffn=0.5"]
    assert found.same == (("prune=off,ffn=0.5", "prune=off,ffn=0.4"),)


def test_mistakes_come_before_work_each_once_with_the_nearest_word(write_recipe: Write) -> None:
    file = write_recipe(PRUNED)
    assert refused(file, "passes.quantize.fromat=int8,int4", FFN, "passes.prnue.ffn=0.1", "targt=l4") == [
        "--grid passes.prnue.ffn=0.1: the recipe has no 'prnue' in `passes`; it has: prune, quantize, export, fuse, build",
        "--grid passes.quantize.fromat=int8,int4: unknown key 'fromat'\n  fix: did you mean 'format'?",
        "--grid targt=l4: unknown key 'targt'\n  fix: did you mean 'target'?",
    ]
    assert refused(file, "passes.quantize.format=int8,int9", "passes.prune.ffn=0.1,2") == [
        "--grid passes.prune.ffn=0.1,2: ffn: input should be less than 1; got 2",
        "--grid passes.quantize.format=int8,int9: format: 'int9' is not legal\n  fix: did you mean 'int8'?",
    ]
    assert "--grid seed=off: 'seed' cannot be off" in refused(file, "seed=off", FFN)
    assert "--grid passes.prune.ffn=on: `on` is for whole passes\n  fix: passes.prune=off,on" in refused(
        file, "passes.prune.ffn=on"
    )
    assert "pass `fuse` takes a Graph, but `quantize` before it gives a Model" in refused(file, "passes.export=off")[0]


def test_illegal_points_are_told_with_the_reason_and_skipped_if_asked(write_recipe: Write) -> None:
    file = write_recipe(PRUNED)
    told = refused(file, "passes.quantize.format=int8,int4", FFN)
    assert told[0].endswith(
        "quantize: max is no algorithm for int4 [2 of 4 points: format=int4,ffn=0; format=int4,ffn=0.4]\n  fix: legal: awq, awq_full, awq_gptq, gptq, rtn"
    )
    assert told[1] == "2 of 4 points cannot be done\n  fix: --skip-illegal goes on without them"
    assert names(file, "passes.quantize.format=int8,int4", FFN, skip_illegal=True) == [
        "format=int8,ffn=0",
        "format=int8,ffn=0.4",
    ]
    with pytest.raises(RecipeError, match="no algorithm for int4"):
        names(file, "passes.quantize.format=int4,nvfp4", skip_illegal=True)


# ---- the command line


def invoke(*arguments: str) -> tuple[int, OptError | None, str]:
    done = CliRunner().invoke(app, ["sweep", *arguments])
    error = done.exception if isinstance(done.exception, OptError) else None
    if done.exception is not None and error is None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return (error.exit_code if error else done.exit_code), error, done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "nothing varies"),
        (("--range", "passes.prune.ffn=0.1:0.4"), "a range has no end of values: it is for --search"),
        (("--grid", FFN, "--objective", "size_mb"), "--objective: no metric of this recipe measures 'size_mb'"),
        (("--grid", "passes.quantize.fromat=int8,int4"), "unknown key 'fromat'\n  fix: did you mean 'format'?"),
        (("--grid", FFN, "--recipe", "other.yaml"), "two recipes"),
    ],
)
def test_usage_errors(write_recipe: Write, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    code, error, _ = invoke(str(write_recipe(PRUNED)), *arguments, "-o", str(tmp_path / "out"))
    assert code == 2
    assert told in str(error)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_no_sweep_is_left_alone(write_recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="holds files and no sweep"):
        run(asked(write_recipe(PRUNED), FFN), tmp_path / "cache", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_recipe_that_measures_nothing(write_recipe: Write, tmp_path: Path) -> None:
    file = write_recipe(
        ("metrics: [perplexity, size]", "metrics: []"), ('budgets:\n  perplexity.recovery: ">= 0.5"\n', "")
    )
    with pytest.raises(RecipeError, match="nothing to compare the points by"):
        run(asked(file, FORMATS), tmp_path / "cache", tmp_path / "out")


# ---- whole sweeps, in this process


@pytest.mark.slow
def test_a_sweep_and_what_it_leaves(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    out, executor = tmp_path / "out", Inline()
    what = asked(write_recipe(PRUNED, AUTO), FORMATS, FFN)
    state = run(what, cache, out, executor)
    assert executor.ran == [point.name for point in state.points]
    assert {point.status for point in state.points} == {"done"}
    assert [one.metric for one in state.objectives] == ["perplexity.recovery", "size_mib"]
    assert state.exit_code == 0
    assert state.best in state.front
    assert set(state.front) <= set(state.contenders)
    assert state == read_state(out)
    for point in state.points:
        report = read_report(out / "points" / point.name)
        assert report.name == point.name
        size = next(m.value for m in report.measurements if m.name == "size_mib")
        assert point.values["size_mib"].value == size
    best = load_recipe(out / "best.yaml")
    check_recipe(best)
    assert (out / "best.yaml").read_text().startswith(f"# The best of the sweep of tiny: {state.best}\n# of the points")
    smallest = min(state.points, key=lambda point: point.values["size_mib"].value or math.inf)
    assert state.best == smallest.name
    assert {path.name for path in out.iterdir()} >= {"sweep.json", "report.json", "report.md", "best.yaml"}


def test_points_share_the_passes_they_have_in_common(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    state = run(asked(write_recipe(PRUNED, AUTO), FORMATS, FFN), cache, tmp_path / "out")
    points = by_name(state)
    one, other = points["format=int8,ffn=0.4"], points["format=int8_weight_only,ffn=0.4"]
    assert one.passes["1 load"] == other.passes["1 load"] == points["format=int8,ffn=0"].passes["1 load"]
    assert one.passes["2 prune"] == other.passes["2 prune"]
    assert one.passes["3 quantize"] != other.passes["3 quantize"]
    entries = [json.loads(file.read_text()) for file in cache.glob("*/done.json")]
    loads = [entry for entry in entries if entry.get("record", {}).get("word") == "load"]
    assert len(loads) == 1


@pytest.mark.slow
def test_a_second_run_redoes_nothing_and_a_larger_grid_only_what_is_new(
    write_recipe: Write, cache: Path, tmp_path: Path
) -> None:
    file, out = write_recipe(PRUNED, AUTO), tmp_path / "out"
    first = run(asked(file, FORMATS, FFN), cache, out)
    executor, watcher = Inline(), Remembering()
    assert run(asked(file, FORMATS, FFN), cache, out, executor, watcher) == first
    assert (executor.ran, watcher.taken) == ([], 4)
    larger = run(asked(file, "passes.quantize.format=off,int8,int8_weight_only", FFN), cache, out, executor)
    assert executor.ran == ["format=off,ffn=0", "format=off,ffn=0.4"]
    assert [point.name for point in larger.points][:2] == executor.ran
    smaller = run(asked(file, "passes.quantize.format=off", FFN), cache, out)
    assert "points of an earlier sweep stay in the folder" in smaller.notes[0]
    changed = Inline()
    run(asked(file, "passes.quantize.format=off", FFN, settings=["seed=3"]), cache, out, changed)
    assert len(changed.ran) == 2, "another seed is another result"


def test_no_point_within_budget(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    state = run(asked(write_recipe(PRUNED, AUTO, (">= 0.5", ">= 1.5")), FFN), cache, tmp_path / "out")
    assert (state.exit_code, state.best) == (4, None)
    assert state.rule == "no point is within all budgets: there is no best recipe"
    assert {point.verdict for point in state.points} == {"budget missed"}
    assert not (tmp_path / "out" / "best.yaml").exists()


def test_a_failed_point_does_not_end_the_sweep_and_is_tried_again(
    write_recipe: Write, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openclaw_opt.sweep import trial

    real = trial.build
    file, out = write_recipe(PRUNED, AUTO), tmp_path / "out"

    def failing(recipe: object, **rest: object) -> object:
        if "ffn=0.4" in str(getattr(recipe, "name", "")):
            raise MachineError("no room", fix="make room")
        return real(recipe, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(trial, "build", failing)
    state = run(asked(file, FFN), cache, out)
    points = by_name(state)
    assert [points[name].status for name in ("ffn=0", "ffn=0.4")] == ["done", "failed"]
    assert (points["ffn=0.4"].exit_code, points["ffn=0.4"].error) == (3, "no room\n  fix: make room")
    assert state.exit_code == 3
    assert state.best == "ffn=0"
    assert "failed (exit code 3): no room" in point_line(points["ffn=0.4"])
    monkeypatch.setattr(trial, "build", real)
    executor = Inline()
    again = run(asked(file, FFN), cache, out, executor)
    assert executor.ran == ["ffn=0.4"]
    assert again.exit_code == 0


def test_json_is_the_state_and_nothing_else(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file, out = write_recipe(PRUNED, AUTO), tmp_path / "out"
    run(asked(file, FORMATS, FFN), cache, out)
    arguments = (str(file), "--grid", FORMATS, "--grid", FFN, "--cache", str(cache), "-o", str(out))
    code, _, printed = invoke(*arguments, "--json")
    assert code == 0
    assert SweepRecord.model_validate_json(printed) == read_state(out)
    code, _, printed = invoke(*arguments)
    last = printed.splitlines()[-1]
    assert last.startswith("4 points built; best: format=int8_weight_only,ffn=0.4 (of the points within all budgets")
    assert last.endswith(f"openclaw-opt build --recipe {out}/best.yaml")


# ---- deciding


def row(name: str, value: float | None, low: float | None = None, high: float | None = None) -> Measurement:
    why = "" if value is not None else "no engine"
    return Measurement(name=name, value=value, unit="", better="lower", low=low, high=high, not_measured=why)


def budget(metric: str = "accuracy", **changes: object) -> BudgetRecord:
    facts = {"metric": metric, "rule": ">= 0.9", "got": 0.95, "result": "met", "bound": 0.9} | changes
    return BudgetRecord.model_validate(facts)


def state_of(
    *points: tuple[str, float, float | None], budgets: Sequence[BudgetRecord] = (), verdict: str = "within budget"
) -> SweepRecord:
    made = [
        PointRecord(
            name=name, choices={}, status="done", exit_code=0, verdict=verdict, budgets=tuple(budgets),
            values={"accuracy": row("accuracy", accuracy, accuracy - 0.01, accuracy + 0.01), "cost": row("cost", cost)},
        )
        for name, accuracy, cost in points
    ]  # fmt: skip
    ways = (ObjectiveRecord(metric="accuracy", better="higher"), ObjectiveRecord(metric="cost", better="lower"))
    return SweepRecord(name="s", recipe="s.yaml", mode="grid", axes=(), seed=0, objectives=ways, points=tuple(made))


POINTS = (("exact", 1.0, 9.0), ("good", 0.98, 4.0), ("near", 0.975, 4.5), ("poor", 0.7, 3.0), ("bad", 0.6, 8.0))


def test_with_an_accuracy_budget_the_cheapest_is_best() -> None:
    found = decided(state_of(*POINTS, budgets=[budget()]))
    assert (found.front, found.contenders) == (("exact", "good", "poor"), ("exact", "good", "near", "poor"))
    assert (found.best, found.exit_code) == ("poor", 0), "a budget that is met has said that it is enough"
    assert "best cost" in found.rule


def test_without_one_the_knee_is_best() -> None:
    found = decided(state_of(*POINTS))
    assert found.best == "good"
    assert "the knee of the front" in found.rule


def test_what_was_not_measured_is_not_on_the_front() -> None:
    found = decided(state_of(("a", 1.0, None), ("b", 0.9, 2.0)))
    assert (found.front, found.best) == (("b",), "b")
    assert decided(state_of(("a", 1.0, None))).rule == "no point was measured: there is no best recipe"


@pytest.mark.parametrize(
    ("codes", "verdict", "code"),
    [((), "within budget", 0), ((2,), "within budget", 2), ((2, 3), "within budget", 3), ((3, 5), "within budget", 5),
     ((5, 1, 3), "within budget", 1), ((139,), "within budget", 3), ((), "budget missed", 4), ((), "not finished", 3)],
)  # fmt: skip
def test_the_exit_code(codes: tuple[int, ...], verdict: str, code: int) -> None:
    state = state_of(*POINTS, verdict=verdict)
    failed = [PointRecord(name=f"f{one}", choices={}, status="failed", exit_code=one) for one in codes]
    assert decided(state.model_copy(update={"points": (*state.points, *failed)})).exit_code == code


def test_the_state_is_read_back_and_a_damaged_one_refused(tmp_path: Path) -> None:
    state = decided(state_of(*POINTS))
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
    text = (tmp_path / "sweep.json").read_text()
    (tmp_path / "sweep.json").write_text(text[:100])
    with pytest.raises(RecipeError, match=r"sweep\.json is damaged"):
        read_state(tmp_path)
    (tmp_path / "sweep.json").write_text(text.replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(RecipeError, match="schema version 99, and this openclaw-opt reads up to 1"):
        read_state(tmp_path)


# ---- searching, with results by formula


OBJECTIVES = (ObjectiveRecord(metric="accuracy", better="higher"), ObjectiveRecord(metric="cost", better="lower"))


class Formula:
    """A search whose points are not built: accuracy and cost follow from the choices. A budget wants accuracy >= 0.8."""

    def __init__(self, file: Path, folder: Path, *, number: int = 12, width: int = 1, seed: int = 0) -> None:
        axes, ranges = parse(["passes.quantize.format=int8,int8_weight_only"], ["passes.prune.ffn=0.05:0.6"])
        self.known: dict[str, PointRecord] = {}
        self.search = Search(
            Base(file), axes, ranges, objectives=OBJECTIVES, number=number, width=width, seed=seed, folder=folder, made_of="x"
        )  # fmt: skip

    def result(self, name: str, choices: dict[str, str]) -> PointRecord:
        ffn = float(choices["passes.prune.ffn"])
        accuracy = 1 - ffn - 0.05 * (choices["passes.quantize.format"] == "int8_weight_only")
        missed = accuracy < 0.8
        values = {"accuracy": row("accuracy", accuracy)} | ({} if missed else {"cost": row("cost", 2 - ffn)})
        result = "missed" if missed else "met"
        found = budget(got=accuracy, bound=0.8, result=result)
        return PointRecord(
            name=name, choices=choices, status="pruned" if missed else "done", values=values, budgets=(found,)
        )

    def go(self, steps: int = 1000) -> list[str]:
        """Up to so many generations; the names in order."""
        for _ in range(steps):
            points = self.search.ask(self.known)
            if not points:
                break
            for point in points:
                self.known[point.name] = self.result(point.name, point.choices)
            self.search.tell(self.known)
        return list(self.known)


@pytest.fixture
def searched(write_recipe: Write) -> Path:
    """Channels in fours: every fraction of 96 from 0.05 on removes some."""
    return write_recipe(("passes:\n", "passes:\n  - prune: {ffn: 0.4, round_to: 4}\n"), AUTO)


def folder_of(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_a_seed_gives_the_same_points_and_another_others(searched: Path, tmp_path: Path) -> None:
    first = Formula(searched, folder_of(tmp_path, "a")).go()
    assert len(first) == 12
    assert Formula(searched, folder_of(tmp_path, "b")).go() == first
    assert Formula(searched, folder_of(tmp_path, "c"), seed=1).go() != first


@pytest.mark.parametrize("width", [1, 3])
def test_a_search_goes_on_as_if_it_had_not_been_stopped(searched: Path, tmp_path: Path, width: int) -> None:
    whole = Formula(searched, folder_of(tmp_path, "whole"), width=width).go()
    folder = folder_of(tmp_path, "killed")
    first = Formula(searched, folder, width=width)
    first.go(2)
    asked_for = first.search.ask(first.known)  # and killed here, before any result
    (folder / f"{JOURNAL}.lock").symlink_to(folder / JOURNAL)
    with (folder / JOURNAL).open("a") as journal:
        journal.write('{"op_code": 4, "wor')  # in the middle of a line
    second = Formula(searched, folder, width=width)
    second.known = dict(first.known)
    assert second.go() == whole
    assert {point.name for point in asked_for} <= set(whole)


def test_missed_budgets_steer_the_search(searched: Path, tmp_path: Path) -> None:
    """Accuracy 0.8 allows ffn up to 0.2 of 0.05 … 0.6: a quarter by chance; later points keep to it more often than not."""
    found = Formula(searched, folder_of(tmp_path, "a"), number=24)
    late = [found.known[name].status for name in found.go()[12:]]
    assert late.count("done") > len(late) / 2


def test_illegal_suggestions_are_named_and_do_not_end_the_search(write_recipe: Write, tmp_path: Path) -> None:
    """By 32 channels, a fraction below a third removes nothing: what the budget asks for is not legal there."""
    found = Formula(write_recipe(PRUNED, AUTO), folder_of(tmp_path, "a"), number=9)
    assert len(found.go()) == 9
    assert found.search.illegal
    assert all("removes nothing at multiples of 32" in str(point.why) for point in found.search.illegal)


def test_a_space_that_is_used_up_ends_the_search(searched: Path, tmp_path: Path) -> None:
    axes, ranges = parse(["passes.quantize.format=int8,int8_weight_only"], [])
    found = Formula(searched, folder_of(tmp_path, "other"))
    found.search = Search(
        Base(searched), axes, ranges, objectives=OBJECTIVES, number=5, width=1, seed=0, folder=folder_of(tmp_path, "a"), made_of="x"
    )  # fmt: skip
    found.result = lambda name, choices: PointRecord(  # type: ignore[method-assign]
        name=name, choices=choices, status="done", values={"accuracy": row("accuracy", 1), "cost": row("cost", 1)}
    )
    assert sorted(found.go()) == ["format=int8", "format=int8_weight_only"]
    assert found.search.note == "the space has no more points: 2 of 5 were found"


def test_another_search_in_the_same_folder_is_refused(searched: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a")
    Formula(searched, folder).go(2)
    with pytest.raises(RecipeError, match="holds a search with other seed"):
        Formula(searched, folder, seed=1)


def test_a_violation_is_above_zero_exactly_when_a_budget_is_missed() -> None:
    assert violation(budget(result="missed", got=0.85)) == pytest.approx(0.05)
    assert violation(budget(result="met", got=0.95)) == pytest.approx(-0.05)
    assert violation(budget(result="missed", got=0.9)) > 0
    assert violation(budget(result="missed", bound=None)) == 1.0
    assert violation(budget(result="undecided", got=None)) == 0.0


def test_a_search_ends_points_early_that_cannot_meet_their_budget(
    write_recipe: Write, cache: Path, tmp_path: Path
) -> None:
    top1 = ("metrics: [perplexity, size]", "metrics: [agreement, size]")
    file = write_recipe(PRUNED, AUTO, top1, ('perplexity.recovery: ">= 0.5"', 'agreement.top1: ">= 0.8"'))
    out, watcher = tmp_path / "out", Remembering()
    what = asked(file, FFN, "passes.quantize.format=int8", search=2)
    state = run(what, cache, out, watcher=watcher)
    points = by_name(state)
    ended = points["ffn=0.4,format=int8"]
    assert (ended.status, ended.exit_code) == ("pruned", 4)
    assert ended.error.startswith("after `quantize` agreement.top1 is 0.")
    assert not (out / "points" / "ffn=0.4,format=int8").exists()
    assert points["ffn=0,format=int8"].status == "done"
    assert state.best == "ffn=0,format=int8"
    executor = Inline()
    assert by_name(run(what, cache, out, executor)) == points
    assert executor.ran == []


def test_without_optuna_a_search_says_what_to_install(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    code, error, _ = invoke(str(write_recipe(PRUNED)), "--grid", FFN, "--search", "2", "-o", str(tmp_path / "out"))
    assert code == 3
    assert str(error) == "--search needs optuna\n  fix: pip install 'openclaw-opt[sweep]'"


def test_lines_of_points() -> None:
    done = PointRecord(
        name="a=1", choices={}, status="done", verdict="within budget", seconds=2.0, values={"x": row("x", 0.5)}
    )
    assert point_line(done) == "a=1  within budget  x 0.5  (2.0 s)"
    failed = PointRecord(
        name="a=1", choices={}, status="failed", exit_code=139, error="the process was ended by SIGSEGV: x\ny"
    )
    assert point_line(failed) == "a=1  failed (exit code 139): the process was ended by SIGSEGV: x"


def test_outcomes_travel() -> None:
    import pickle

    outcome = Outcome("a", "done", 0, 1.0, rows=(row("x", 1.0),), budgets=(budget(),))
    assert pickle.loads(pickle.dumps(outcome)) == outcome
