"""lm-eval over our sessions: the scores of its own Hugging Face model, whatever runs the checkpoint; and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from openclaw_opt.artifacts import Checkpoint, Engine, Graph
from openclaw_opt.backends.engines import open_session
from openclaw_opt.backends.genai_sessions import GenaiDecoder
from openclaw_opt.backends.torch_eager import open_eager
from openclaw_opt.cli.progress import Silent
from openclaw_opt.errors import RecipeError
from openclaw_opt.harness.run import Result, Score, evaluate
from openclaw_opt.harness.tasks import check_tasks, digest_of, named_in
from openclaw_opt.metrics.lm_eval import LmEval, result_rows
from openclaw_opt.pipeline import build
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import Report
from openclaw_opt.store import Store

ROOT = Path(__file__).parent.parent
TINY, TASKS = ROOT / "examples" / "tiny-llama", ROOT / "examples" / "tasks"
NAMES = ("python_next_line", "python_text", "python_generate")
LIMIT = 12
CONTEXT = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks of the box, and one that generates."""
    made = tmp_path_factory.mktemp("tasks")
    for file in TASKS.glob("python_*"):
        shutil.copy(file, made)
    (made / "python_generate.yaml").write_text(
        "task: python_generate\ndataset_path: json\ndataset_kwargs: {data_files: {test: python_next_line.jsonl}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{before}}'\n"
        "doc_to_target: '{{lines[answer].strip()}}'\ngeneration_kwargs: {until: [\"\\n\\n\"], do_sample: false, max_gen_toks: 12}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\nmetadata: {version: 1}\n"
    )
    return made


def checkpoint() -> Checkpoint:
    return Checkpoint(TINY, json.loads((TINY / "config.json").read_text()), {})


def scored(session: Any, folder: Path, context: int = CONTEXT) -> Result:
    with session:
        return evaluate(session, TINY, context, NAMES, task_folder=folder, limit=LIMIT)


def numbers(result: Result) -> dict[str, float]:
    return {f"{score.task} {score.metric}": score.value for score in result.scores}


@pytest.fixture(scope="module")
def from_torch(folder: Path) -> Result:
    return scored(open_eager(checkpoint()), folder)


@pytest.mark.slow
def test_the_checkpoint_scores_what_lm_evals_own_model_gives_it(
    folder: Path, from_torch: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(folder)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(TINY), device="cpu", dtype="float32", batch_size=8)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=list(NAMES), task_manager=manager, limit=LIMIT, bootstrap_iters=0
    )
    ours = numbers(from_torch)
    theirs = {
        f"{task} {key.split(',')[0]}": value
        for task, row in found["results"].items()
        for key, value in row.items()
        if key.endswith(",none") and "stderr" not in key
    }
    assert ours.keys() == theirs.keys()
    assert len(ours) == 5
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Path, Report]:
    """The checkpoint unquantized on ONNX Runtime: it must score as PyTorch does."""
    base = tmp_path_factory.mktemp("lm-eval")
    file = base / "fp32.yaml"
    metric = f"{{lm-eval: {{tasks: [python_next_line], folder: {folder}, limit: {LIMIT}}}}}"
    budgets = "{lm_eval.accuracy.recovery: '>= 0.99', lm_eval.accuracy: '>= 0.01'}"
    file.write_text(
        f"model: {TINY}\ntarget: host\npasses: [export, fuse, build]\nmetrics: [size, {metric}]\nundecided: pass\nbudgets: {budgets}\n"
    )
    return base / "out", build(load_recipe(file), store=Store(base / "cache"), output=base / "out", hooks=Silent())


@pytest.mark.slow
def test_the_fp32_graph_and_genai_score_the_same(folder: Path, from_torch: Result, built: tuple[Path, Report]) -> None:
    engine = built[0]
    by_graph = scored(open_session(Graph(engine)), folder)
    by_engine = scored(open_session(Engine(engine)), folder)
    by_genai = scored(GenaiDecoder(engine, CONTEXT), folder)
    for other in (by_graph, by_engine, by_genai):
        assert numbers(other) == pytest.approx(numbers(from_torch), rel=1e-5)
        assert [one.documents for one in other.scores] == [one.documents for one in from_torch.scores]


def test_genai_opens_only_its_own_folders(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no genai_config\.json"):
        GenaiDecoder(tmp_path, CONTEXT)


@pytest.mark.slow
def test_what_does_not_fit_the_context_is_counted(folder: Path, from_torch: Result) -> None:
    assert from_torch.truncated == 0
    with open_eager(checkpoint()) as session:
        cut = evaluate(session, TINY, 64, ("python_next_line",), task_folder=folder, limit=4)
    assert cut.truncated > 0
    rows = result_rows(cut, cut)
    assert all(f"{cut.truncated} tokens did not fit the context" in row.note for row in rows if row.value is not None)


# ---- rows


def result(*right: float) -> Result:
    return Result((Score("a", "acc", sum(right) / len(right), "higher", tuple(right)),), 0)


def test_accuracy_is_paired_with_the_checkpoints() -> None:
    rows = {(row.name, row.subject): row for row in result_rows(result(*[1.0] * 30), result(*[1.0] * 24, *[0.0] * 6))}
    assert rows["lm_eval.accuracy", "engine"].value == pytest.approx(0.8)
    assert rows["lm_eval.accuracy", "reference"].value == 1.0
    recovery = rows["lm_eval.accuracy.recovery", "engine"]
    assert recovery.value == pytest.approx(0.8)
    assert recovery.low is not None
    assert recovery.low < 0.8
    assert recovery.items == (1.0,) * 24 + (0.0,) * 6
    assert rows["lm_eval.score", "engine"].at == {"task": "a acc"}


def test_too_few_right_answers_give_no_interval_and_none_no_ratio() -> None:
    few = {row.name: row for row in result_rows(result(1.0, 1.0, 0.0), result(1.0, 0.0, 0.0))}
    assert (few["lm_eval.accuracy.recovery"].value, few["lm_eval.accuracy.recovery"].low) == (0.5, None)
    none = {row.name: row for row in result_rows(result(0.0, 0.0), result(1.0, 0.0))}
    assert none["lm_eval.accuracy.recovery"].not_measured == "the checkpoint answers no document right"


def test_tasks_without_right_answers_say_so() -> None:
    text = Result((Score("t", "bits_per_byte", 2.0, "lower", ()),), 0)
    rows = {row.name: row for row in result_rows(text, text) if row.subject == "engine"}
    assert "`acc`" in rows["lm_eval.accuracy"].not_measured
    assert (rows["lm_eval.score"].value, rows["lm_eval.score"].better) == (2.0, "lower")


# ---- what is refused


def test_the_box_holds_two_tasks() -> None:
    assert sorted(named_in(TASKS)) == ["python_next_line", "python_text"]


@pytest.mark.parametrize(
    ("tasks", "what", "fix"),
    [
        (("python_nextline",), "no lm-eval task is called 'python_nextline'", "did you mean 'python_next_line'?"),
        (("python_text", "python_text"), "task 'python_text' is named twice", ""),
        ((), "lm-eval needs at least one task", "tasks: [python_next_line]"),
    ],
)
def test_names_are_checked(tasks: tuple[str, ...], what: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_tasks(tasks, TASKS, code=False)
    assert (caught.value.what, caught.value.fix) == (what, fix)


def test_lm_evals_own_tasks_are_known_without_a_folder() -> None:
    check_tasks(("hellaswag", "arc_easy"), None, code=False)
    with pytest.raises(RecipeError, match="no lm-eval task is called 'helaswag'") as caught:
        check_tasks(("helaswag",), None, code=False)
    assert caught.value.fix == "did you mean 'hellaswag'?"


def test_code_in_a_task_file_runs_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: own\nprocess_docs: !function own.docs\n")
    with pytest.raises(RecipeError, match=r"task 'own' runs Python code \(own.yaml: !function\)"):
        check_tasks(("own",), tmp_path, code=False)
    check_tasks(("own",), tmp_path, code=True)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("task: own\n  bad: [\n", "task 'own': own.yaml:2 is no YAML: mapping values are not allowed here"),
        (
            "task: own\ndataset_kwargs: {data_files: {test: [there.jsonl, nowhere.jsonl]}}\n",
            "task 'own': own.yaml reads 'nowhere.jsonl', which is not in the folder",
        ),
        ("- task: own\ntask: own\n", "task 'own': own.yaml:2 is no YAML: expected <block end>, but found '?'"),
    ],
)
def test_a_task_file_is_read_before_any_work(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "there.jsonl").write_text("{}\n")
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        check_tasks(("own",), tmp_path, code=False)
    assert caught.value.what == what


@pytest.mark.slow
def test_a_question_without_its_column_is_the_users_mistake(folder: Path, tmp_path: Path) -> None:
    task = (folder / "python_next_line.yaml").read_text().replace("{{before}}", "{{befor}}")
    (tmp_path / "own.yaml").write_text(task.replace("task: python_next_line", "task: own"))
    shutil.copy(folder / "python_next_line.jsonl", tmp_path)
    with (
        open_eager(checkpoint()) as session,
        pytest.raises(RecipeError, match="could not run own: 'befor' is undefined"),
    ):
        evaluate(session, TINY, CONTEXT, ("own",), task_folder=tmp_path, limit=1)


def test_the_folders_content_is_part_of_what_is_measured(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: own\n")
    first = LmEval(tasks=("own",), folder=str(tmp_path))
    assert first.sha256 == digest_of(tmp_path)
    (tmp_path / "own.yaml").write_text("task: own\nnum_fewshot: 1\n")
    with pytest.raises(ValueError, match="holds other files than the recipe says"):
        LmEval(tasks=("own",), folder=str(tmp_path), sha256=first.sha256)


@pytest.mark.slow
def test_a_recipe_is_judged_by_tasks(built: tuple[Path, Report]) -> None:
    folder, report = built
    rows = {(row.name, row.subject): row for row in report.measurements if not row.at}
    assert rows["lm_eval.accuracy", "engine"].value == rows["lm_eval.accuracy", "reference"].value
    assert rows["lm_eval.accuracy.recovery", "engine"].value == 1.0
    assert {budget.metric for budget in report.budgets} == {"lm_eval.accuracy.recovery", "lm_eval.accuracy"}
    assert "sha256" in (folder / "recipe.resolved.yaml").read_text()
    page = (folder / "report.html").read_text()
    assert "python_next_line acc_norm" in page


@pytest.mark.slow
def test_the_environment_is_as_before(folder: Path) -> None:
    before, here = dict(os.environ), Path.cwd()
    with open_eager(checkpoint()) as session:
        evaluate(session, TINY, CONTEXT, ("python_text",), task_folder=folder, limit=1)
    assert (dict(os.environ), Path.cwd()) == (before, here)
