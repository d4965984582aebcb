"""The CI examples, run as shell steps: a first build of main, a change held against it, and a budget that is missed.

What only the CI service has is stood in for: its artifact store by a folder, through programs named `gh` and `curl`. The
install step is left out: these tests run in what it would install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent / "examples" / "ci"
INSTALL = "python -m pip install -e ."
GH = """#!/bin/sh
if [ "$2" = list ]; then if [ -d "$STORE" ]; then echo 42; fi; exit 0; fi
test "$2" = download && cp -r "$STORE/." baseline/
"""
CURL = f"""#!/bin/sh
test -d "$STORE" || exit 22
cd "$STORE/.." && rm -rf zipped && mkdir zipped && cp -r "$STORE" zipped/build
cd zipped && {sys.executable} -m zipfile -c "$CI_PROJECT_DIR/baseline.zip" build
"""
Write = Callable[..., Path]


@dataclass
class Runner:
    """A checkout, and a store of artifacts that outlives it."""

    folder: Path
    store: Path
    environment: dict[str, str]

    def bash(self, script: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def keep(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.folder / "build", self.store)

    def clean(self) -> None:
        for name in ("build", "baseline"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


@pytest.fixture
def runner(write_recipe: Write, tmp_path: Path) -> Runner:
    """A repository with one recipe, and the services' programs on the path."""
    folder, programs = tmp_path / "repository", tmp_path / "bin"
    (folder / "recipes").mkdir(parents=True)
    programs.mkdir()
    write_recipe(name="model").rename(folder / "recipes" / "model.yaml")
    for name, text in (("gh", GH), ("curl", CURL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = dict(os.environ) | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RECIPE": "recipes/model.yaml",
        "STORE": str(tmp_path / "store"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_SHA": "0123456789abcdef",
        "CI_PROJECT_DIR": str(folder),
        "CI_COMMIT_SHORT_SHA": "01234567",
        "CI_DEFAULT_BRANCH": "main",
        "CI_JOB_TOKEN": "t",
        "CI_API_V4_URL": "https://gitlab.invalid/api/v4",
        "CI_PROJECT_ID": "1",
    }
    return Runner(folder, tmp_path / "store", environment)


def github_steps() -> list[dict[str, Any]]:
    text = (EXAMPLES / "github-actions.yml").read_text()
    steps: list[dict[str, Any]] = yaml.safe_load(text)["jobs"]["build"]["steps"]
    return [step for step in steps if "run" in step and step["run"].strip() != INSTALL]


def github(runner: Runner) -> tuple[int, str]:
    """Exit code of the job, and all it printed: after a failed step only those run that say so."""
    code, printed = 0, ""
    for step in github_steps():
        if code and step.get("if") != "always()":
            continue
        done = runner.bash(step["run"])
        printed += f"## {step['name']}\n{done.stdout}{done.stderr}"
        code = code or done.returncode
    return code, printed


def gitlab(runner: Runner) -> tuple[int, str]:
    job = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())["model"]
    assert job["before_script"] == [INSTALL]
    done = runner.bash("\n".join(job["script"]))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("service", [github, gitlab])
def test_a_build_of_main_a_change_and_a_missed_budget(
    runner: Runner, service: Callable[[Runner], tuple[int, str]]
) -> None:
    code, printed = service(runner)
    assert code == 0, printed
    assert "nothing to compare with" in printed
    assert (runner.folder / "build" / "history.jsonl").read_text().count("\n") == 1
    runner.keep()
    runner.clean()

    code, printed = service(runner)
    assert code == 0, printed
    assert "Earlier builds: 1 of 1 in" in (runner.folder / "build" / "model" / "report.md").read_text()
    assert "nothing is worse" in printed or "equivalent" in printed, printed
    assert (runner.folder / "build" / "history.jsonl").read_text().count("\n") == 2
    runner.clean()

    recipe = runner.folder / "recipes" / "model.yaml"
    recipe.write_text(recipe.read_text().replace('">= 0.5"', '">= 1.5"'))
    code, printed = service(runner)
    assert code == 4, printed
    assert "budget perplexity.recovery >= 1.5: missed" in printed
    assert "what would help: openclaw-opt explain" in printed
    if service is github:
        assert "perplexity.recovery" in (runner.folder / "summary.md").read_text()


def test_a_recipe_with_a_mistake_stops_the_job_before_any_build(runner: Runner) -> None:
    (runner.folder / "recipes" / "other.yaml").write_text("model: ./none\npasses: [exprot]\n")
    code, printed = github(runner)
    assert code == 2
    assert "did you mean 'export'?" in printed
    assert not (runner.folder / "build").exists()
