"""The documents say what the code does: generated pages are in step, links and names lead somewhere, commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from openclaw_opt.cli import app
from openclaw_opt.formats import FORMATS
from openclaw_opt.interrupts import Interrupted
from openclaw_opt.metrics import Metric
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.passes import Pass
from openclaw_opt.recipe_reference import INTERRUPTED as INTERRUPTED_IN_REFERENCE
from openclaw_opt.recipe_reference import recipe_reference
from openclaw_opt.recipe_schema import recipe_schema
from openclaw_opt.targets import TARGETS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAGES = sorted({*DOCS.glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md")})
TUTORIAL = DOCS / "first-change.md"
NEW_FILES = {"openclaw_opt/metrics/worse.py", "tests/test_worse.py"}
"""What a reader of the tutorial writes."""
AGAIN = "python -m openclaw_opt.recipe_reference > docs/recipe.md"
SCHEMA_AGAIN = "openclaw-opt schema --output docs/recipe.schema.json"
VERBS = ("check", "list", "schema")
"""Commands of the documents that need no work and are run."""


def number_names() -> list[str]:
    return [name for word in part_names("metrics") for name in part_named("metrics", word, Metric).measurement_names()]


# ---- pages made from the code


def test_the_reference_is_in_step() -> None:
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == recipe_reference(), f"make it again: {AGAIN}"


def test_the_reference_names_everything_a_recipe_can_name() -> None:
    text = recipe_reference()
    words = [*part_names("passes"), *part_names("metrics"), *FORMATS, *TARGETS, *number_names()]
    fields = [f for word in part_names("passes") for f in part_named("passes", word, Pass).model_fields]
    assert [word for word in [*words, *fields] if f"`{word}`" not in text] == []
    sources = {row.source for row in [*FORMATS.values(), *TARGETS.values()]}
    assert [link for link in sources if f"]({link})" not in text] == []


def test_the_reference_states_the_exit_code_of_an_interrupt() -> None:
    assert Interrupted(2).exit_code == INTERRUPTED_IN_REFERENCE


def test_the_reference_has_no_empty_meaning() -> None:
    empty = [line for line in recipe_reference().splitlines() if line.endswith("|  |")]
    assert empty == [], "an option without a docstring"


def test_the_schema_is_in_step() -> None:
    printed = CliRunner().invoke(app, ["schema"]).stdout
    assert (DOCS / "recipe.schema.json").read_text(encoding="utf-8") == printed, f"make it again: {SCHEMA_AGAIN}"


# ---- the schema, by a validator that is not ours


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.stem))
def test_shipped_recipes_are_valid(validator: Any, file: Path) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(file.read_text()))] == []


def test_the_recipe_of_the_reference_is_valid(validator: Any) -> None:
    recipe = yaml.safe_load(fenced(DOCS / "recipe.md", "yaml")[0])
    assert [error.message for error in validator.iter_errors(recipe)] == []


def test_every_form_of_a_budget_is_valid(validator: Any) -> None:
    budgets = yaml.safe_load(fenced(DOCS / "recipe.md", "yaml")[1])
    assert len(budgets["budgets"]) == 7
    assert [error.message for error in validator.iter_errors({"extends": "int8-cpu.yaml", **budgets})] == []


def test_a_recipe_that_extends_another_is_valid(validator: Any) -> None:
    assert validator.is_valid({"extends": "int8-cpu.yaml", "target": "l4"})


BROKEN: list[dict[str, Any]] = [
    {"modle": "x"},
    {"target": "h1000"},
    {"target": {"name": "l4", "price": 1}},
    {"seed": -1},
    {"passes": [{"quantize": {"format": "int5"}}]},
    {"passes": [{"quantize": {"format": "int8", "alpha": "0.5"}}]},
    {"passes": [{"quantize": {"format": "int8"}, "export": {}}]},
    {"passes": [{"build": {"batch": [1, 2]}}]},
    {"passes": ["exprot"]},
    {"metrics": [{"latency": {"batch": 0}}]},
    {"budgets": {"speedup": "at least 2"}},
    {"budgets": {"speedup": 2}},
    {"budgets": {"speedup": ">= 2 %"}},
    {"budgets": {"speedup": {"rul": ">= 2"}}},
    {"budgets": {"speedup": {"rule": "at least 2"}}},
    {"budgets": {"speedup": {"against": "main"}}},
    {"budgets": {"speedup": {"against": "baseline", "tolerance": "some"}}},
    {"budgets": {"preset": "mlperf-98"}},
    {"data": {"calibration": {"source": "python-stdlib"}}},
    {"data": {"calibration": {"source": "python-stdlib", "split": "train", "sample": 4}}},
    {"undecided": "maybe"},
]


@pytest.mark.parametrize("change", BROKEN, ids=json.dumps)
def test_broken_recipes_are_not_valid(validator: Any, change: dict[str, Any]) -> None:
    whole = yaml.safe_load((ROOT / "recipes" / "int8-cpu.yaml").read_text())
    assert validator.is_valid(whole)
    assert not validator.is_valid(whole | change)


# ---- what the documents name exists


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", link):
                yield page, link


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, punctuation dropped, spaces to hyphens."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    wrong = []
    for page, link in links():
        file, _, anchor = link.partition("#")
        to = (page.parent / file) if file else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            wrong.append(f"{page.relative_to(ROOT)}: {link}")
    assert wrong == []


def test_files_that_are_named_exist() -> None:
    named = re.compile(r"(?:openclaw_opt|tests|docs|recipes|examples)/[\w./-]*\w\.(?:py|md|json|yaml)\b")
    wrong = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in named.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / name).is_file() and name not in NEW_FILES
    }
    assert wrong == set()


def test_tests_that_are_named_exist() -> None:
    named = [ref for page in PAGES for ref in re.findall(r"(tests/\w+\.py)::(\w+)", page.read_text(encoding="utf-8"))]
    assert named, "the log names its evidence"
    assert [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()] == []


def test_every_measurement_is_defined_and_no_other() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    tables = [line for line in text.splitlines() if line.startswith("| `")]
    defined = [name for line in tables for name in re.findall(r"`([\w.]+)`", line.split("|")[1])]
    assert sorted(defined) == sorted(number_names())


def test_details_of_passes_are_named() -> None:
    """`Done.details` refers to this table; what a pass writes there is read from its source."""
    table = (DOCS / "design.md").read_text(encoding="utf-8").split("`Done.details`")[1].split("## ")[0]
    sources = [ROOT / "openclaw_opt/passes" / f"{word}.py" for word in part_names("passes")]
    sources.append(ROOT / "openclaw_opt/models/quantizing.py")
    written = {
        key
        for file in sources
        for block in re.findall(r"details ?= ?\{(.*?)\n? *\}[,)\n]", file.read_text(), flags=re.DOTALL)
        for key in re.findall(r'^ *"(\w+)":', block, flags=re.MULTILINE) or re.findall(r'"(\w+)":', block)
    }
    assert len(written) > 10
    assert {key for key in written if f"`{key}`" not in table} == set()


def test_tolerances_are_those_of_the_code() -> None:
    from openclaw_opt import verify
    from openclaw_opt.passes import ROUNDING
    from openclaw_opt.passes.load import Load

    section = (DOCS / "design.md").read_text(encoding="utf-8").split("## Verification")[1].split("\n## ")[0]
    assert f"({Pass.tolerance:g}".replace("0.001", "1e-3") in section
    assert f"{Load.tolerance:g} for `load`".replace("0.0001", "1e-4") in section
    assert ROUNDING == {"float32": 0.0, "float16": 2e-2, "bfloat16": 1e-1}
    assert "2e-2 float16, 1e-1 bfloat16" in " ".join(section.split())
    assert f"largest within {verify.MOST:g}" in " ".join(section.split())
    assert f"({verify.FLIPPED * 127:g}/127)" in section


def test_no_document_names_a_private_place() -> None:
    private = re.compile(r"/work/|/home/|/root/|/tmp/")
    assert [page.name for page in PAGES if private.search(page.read_text(encoding="utf-8"))] == []


# ---- what the documents tell the reader to do


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Lines of consoles and of indented blocks that call our verbs which do no work."""
    text = re.sub(r" \\\n *", " ", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^(?:\$ | {4})(openclaw-opt .+)$", text, flags=re.MULTILINE)
    return [line for line in lines if shlex.split(line, comments=True)[1] in VERBS and "--output" not in line]


COMMANDS = [(page, line) for page in PAGES if page != TUTORIAL for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page.stem}: {line}" for page, line in COMMANDS])
def test_commands_run(page: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the tutorial's files have been written."""
    folder = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("openclaw_opt", "recipes", "examples/tiny-llama"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    written = set()
    for block in fenced(TUTORIAL, "python"):
        name = block.splitlines()[0].removeprefix("# ")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(block.partition("\n")[2])
        written.add(name)
    assert written == NEW_FILES
    return folder


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tutorials_commands_run(tutorial: Path) -> None:
    told = dict.fromkeys(commands(TUTORIAL))
    assert len(told) >= 2
    for line in told:
        output = run(tutorial, "-m", "openclaw_opt", *shlex.split(line)[1:])
        assert "worse" in output, line


@pytest.mark.slow
def test_the_tutorials_test_passes_and_can_fail(tutorial: Path) -> None:
    pytest_line = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_worse.py")
    assert "1 passed" in run(tutorial, *pytest_line)
    file = tutorial / "openclaw_opt/metrics/worse.py"
    text = file.read_text()
    try:
        file.write_text(text.replace("score.nll > score.reference_nll", "score.nll >= score.reference_nll"))
        with pytest.raises(AssertionError, match="1 failed"):
            run(tutorial, *pytest_line)
    finally:
        file.write_text(text)


def test_the_tutorials_files_are_clean(tutorial: Path) -> None:
    config = str(ROOT / "pyproject.toml")
    for verb in (("check",), ("format", "--check")):
        run(tutorial, "-m", "ruff", *verb, "--no-cache", "--config", config, *sorted(NEW_FILES))
    assert [line for line in AGAIN_LINES if line not in TUTORIAL.read_text()] == []


AGAIN_LINES = (AGAIN, SCHEMA_AGAIN)
