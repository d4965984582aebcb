"""What docs/design.md claims of the code's shape: imports go down, parts are files, facts are rows, starting is light.

What does not hold yet stands in KNOWN with its reason: a new violation fails, and so does an entry that is no longer true.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from openclaw_opt.artifacts import Checkpoint, Engine, Graph, Model
from openclaw_opt.backends.trt_log import WANTED
from openclaw_opt.data import Source, source_class, source_names
from openclaw_opt.field_docs import described
from openclaw_opt.formats import FORMATS, Format
from openclaw_opt.metrics import Metric
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.passes import Pass
from openclaw_opt.passes._caching import FLOAT
from openclaw_opt.passes.candidates import AUTO
from openclaw_opt.passes.quantize import ALGORITHMS, Quantize
from openclaw_opt.targets import TARGETS, Target

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "openclaw_opt"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "transformers",
    "modelopt",
    "tensorrt_rtx",
    "tensorrt",
)
LONGEST = 400
MARKS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\bNotImplementedError\b")

KNOWN: dict[str, str] = {}
KNOWN_CYCLES: list[set[str]] = []


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


# ---- imports go down


def order() -> list[set[str]]:
    """Groups of top-level modules from above to below, as docs/design.md states them."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## Import order")[1]
    block = re.search(r"```text\n(.*?)```", text, flags=re.DOTALL)
    assert block is not None
    return [set(line.split(", ")) for line in block[1].splitlines()]


def imported(source: str) -> Iterator[str]:
    """Dotted names below openclaw_opt that a source imports anywhere, but for those under TYPE_CHECKING."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides its place in the order"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("openclaw_opt.") for name in names if name.startswith("openclaw_opt."))


def module_of(dotted: str) -> str:
    """The file behind `plan.Step` is `plan`; what is no file (`__version__`) is the package itself, empty."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:end])
    return ""


def upward(file: str, source: str) -> list[str]:
    """Imports of `file` (relative to the package) that do not go down."""
    place = {word: i for i, group in enumerate(order()) for word in group}
    own = file.removesuffix(".py").split("/")[0]
    targets = {module.split(".")[0] for name in imported(source) if (module := module_of(name))}
    return [f"{file} imports {other}" for other in sorted(targets - {own}) if place[other] <= place[own]]


def test_the_order_names_every_module_once() -> None:
    listed = [word for group in order() for word in group]
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(listed) == sorted(there - {"__init__"})


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_down(file: Path) -> None:
    if file.parent == PACKAGE and file.stem == "__init__":
        assert list(imported(file.read_text())) == []
    else:
        assert upward(str(file.relative_to(PACKAGE)), file.read_text()) == []


def test_an_import_that_goes_up_is_found() -> None:
    assert upward("numerics/stats.py", "def f():\n    from openclaw_opt.plan import Step\n") != []
    assert upward("graph/to_tensorrt.py", "import openclaw_opt.models.spec\n") != []
    assert upward("plan.py", "if TYPE_CHECKING:\n    from openclaw_opt.pipeline import Hooks\n") == []
    assert upward("pipeline.py", "from openclaw_opt.plan import Step\n") == []


def test_files_import_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {module_of(one) for one in imported(file.read_text())} - {name}

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += graph.get(one, ())
        return found

    reach = {name: reached(name) for name in graph}
    circles = {frozenset(m for m in graph if m in reach[n] and n in reach[m]) for n in graph if n in reach[n]}
    assert sorted(map(sorted, circles)) == sorted(map(sorted, KNOWN_CYCLES))


# ---- starting is light


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("build", "--help"),
        ("list",),
        ("schema",),
        ("check", "--recipe", str(ROOT / "recipes" / "int8-h100.yaml")),
        ("check", "--recipe", str(ROOT / "recipes" / "pruned-int8-l4.yaml")),
    ],
    ids=lambda arguments: " ".join(arguments[:2]) + (f" {Path(arguments[2]).stem}" if len(arguments) > 2 else ""),
)
def test_nothing_heavy_is_imported_before_work(arguments: tuple[str, ...]) -> None:
    done = python(ROOT, "-X", "importtime", "-m", "openclaw_opt", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = set(re.findall(r"^import time:.*\| +(\w[\w.]*)$", done.stderr, flags=re.MULTILINE))
    assert "openclaw_opt.cli" in loaded
    assert {name for name in loaded if name.split(".")[0] in HEAVY} == set()


def test_an_engine_that_runs_loads_neither_scipy_nor_torch() -> None:
    """They would be two thirds of its memory, and of the time to its first token."""
    code = "import sys, openclaw_opt.backends.onnxruntime; print([m for m in ('scipy', 'torch', 'transformers') if m in sys.modules])"
    assert python(ROOT, "-c", code).stdout.strip() == "[]"


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


# ---- behaviour is a file


def parts() -> list[Any]:
    """(folder, word, base, class) of every pass, metric and data source."""
    named = [
        (f, w, base, part_named(f, w, base))
        for f, base in (("passes", Pass), ("metrics", Metric))
        for w in part_names(f)
    ]
    sources = [("data", word, Source, source_class(word)) for word in source_names()]
    return [pytest.param(*one, id=f"{one[0]}/{one[1]}") for one in [*named, *sources]]


@pytest.mark.parametrize(("folder", "word", "base", "cls"), parts())
def test_a_part_is_one_class_in_the_file_of_its_word(folder: str, word: str, base: type[Any], cls: type[Any]) -> None:
    module = inspect.getmodule(cls)
    assert module is not None
    file = Path(inspect.getfile(cls))
    assert (file.parent.name, file.stem) == (folder, word.replace("-", "_"))
    own = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, base) and v.__module__ == module.__name__
    ]
    assert own == [cls]
    assert (module.__doc__ or "").strip()
    assert (cls.__doc__ or "").strip()
    assert cls.__doc__ != base.__doc__


@pytest.mark.parametrize(("folder", "word", "base", "cls"), [p for p in parts() if p.values[0] != "data"])
def test_a_part_states_what_its_base_wants(folder: str, word: str, base: type[Any], cls: type[Any]) -> None:
    assert "\n" not in cls.summary
    assert cls.summary == cls.summary.strip() != ""
    if folder == "metrics":
        assert cls().word == word
        assert cls.numbers
        assert all(one.meaning and one.better in ("higher", "lower", "neither") for one in cls.numbers)
    else:
        assert cls.__module__.rsplit(".", 1)[1].replace("_", "-") == word
        assert cls.kind in ("exact", "lossy")
        assert {cls.takes(), cls.gives()} <= {Checkpoint, Model, Graph, Engine}
        assert set(cls.reads) <= {"target", "calibration", "training", "checkpoint"}
        assert cls.run is not Pass.run


@pytest.mark.parametrize(("folder", "word", "base", "cls"), parts())
def test_every_option_says_what_it_means(folder: str, word: str, base: type[Any], cls: type[BaseModel]) -> None:
    assert [name for name, field in described(cls).model_fields.items() if not (field.description or "").strip()] == []


@pytest.mark.parametrize(("folder", "word", "base", "cls"), parts())
def test_an_unknown_option_is_refused(folder: str, word: str, base: type[Any], cls: type[BaseModel]) -> None:
    assert cls.model_config.get("extra") == "forbid"
    assert cls.model_config.get("frozen") is True


# ---- facts are rows


@pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: str(row.name))
def test_a_format_row_is_complete(row: Format) -> None:
    assert row.source.startswith("https://")
    assert row.title
    assert row.name.isidentifier()
    assert row.weight_bits > 0
    assert row.scale_bits > 0
    assert row.block is None or row.block > 0
    assert set(row.backends) <= {"onnxruntime", "tensorrt", "gguf", "openvino"}
    assert row.backends
    assert row.compute >= (7, 5)


@pytest.mark.parametrize("row", TARGETS.values(), ids=lambda row: str(row.name))
def test_a_target_row_is_complete(row: Target) -> None:
    assert row.source.startswith("https://")
    assert row.title
    assert row.memory > 10**9
    assert row.bandwidth is not None
    assert row.bandwidth > 10**9
    assert row.is_gpu
    assert row.module
    assert {"fp16", "int8"} <= row.peak.keys() <= {"fp16", "int8", "fp8", "fp4"}
    assert all(rate > 10**12 for rate in row.peak.values())
    assert row.interconnect[0]
    assert row.interconnect[1] > 0
    assert row.hourly_usd is None or row.hourly_usd > 0


def test_rates_follow_from_the_compute_capability() -> None:
    """A card has FP8 rates from 8.9 on and FP4 rates from 10.0 on, as its formats are legal from there."""
    for row in TARGETS.values():
        assert ("fp8" in row.peak) == (row.compute >= FORMATS["fp8"].compute), row.name
        assert ("fp4" in row.peak) == (row.compute >= FORMATS["nvfp4"].compute), row.name


def test_the_places_of_a_format_agree() -> None:
    """docs/design.md lists where a format stands besides its row."""
    source = ast.parse((PACKAGE / "models" / "schemes.py").read_text())
    rows = next(
        n
        for n in source.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.target.id == "ROWS"
    )
    assert isinstance(rows.value, ast.Dict)
    modelopt = {ast.literal_eval(key) for key in rows.value.keys if key is not None}
    legal = set(get_args(Quantize.model_fields["format"].annotation)) - {AUTO, FLOAT}
    assert set(FORMATS) == legal == set(ALGORITHMS) == set(WANTED) == modelopt


def test_no_other_file_names_a_target() -> None:
    named = [
        f"{name_of(file)}:{node.lineno}: {node.value}"
        for file in FILES
        if file.name != "targets.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in TARGETS
    ]
    assert named == []


# ---- a row or a file is all it takes

FORMAT_ROW = 'Format("int2", "INT2 weights in blocks", "INT2", "", 2, 16, 64, (8, 9), ("tensorrt",), ONNX_SPEC),'
TARGET_ROW = (
    'Target("rtx3050", "GeForce RTX 3050", (8, 6), 8 * GB, 224e9, _peak(18.2, 72.8), PCIE4, "rtx", AMPERE, None),'
)
METRIC = '''"""tally: how many files the runtime loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from openclaw_opt.artifacts import Measurement
from openclaw_opt.metrics import Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Subject


class Tally(Metric):
    """Files."""

    summary: ClassVar[str] = "how many files the runtime loads"
    numbers: ClassVar[tuple[Number, ...]] = (Number("tally.files", "", "lower", "files the runtime loads"),)

    least: int = 0
    """Stated at least."""

    def measure(self, subject: Subject) -> list[Measurement]:
        return [self.row("tally.files", float(max(self.least, len(subject.files))))]
'''
PASS = '''"""copy: the model as it is."""

from __future__ import annotations

from typing import ClassVar

from openclaw_opt.artifacts import Model
from openclaw_opt.passes import Done, Kind, Pass, Work


class Copy(Pass):
    """Take the model as it is."""

    kind: ClassVar[Kind] = "exact"
    summary: ClassVar[str] = "take the model as it is"

    times: int = 1
    """How often."""

    def run(self, source: Model, work: Work) -> Done[Model]:
        return Done(source, "nothing", 0)
'''
SOURCE = '''"""`one-line`: one text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from openclaw_opt.data import Document, Source


class OneLine(Source):
    """One document."""

    splits: ClassVar[tuple[str, ...]] = ("all",)

    def identities(self) -> frozenset[str]:
        return frozenset({"one-line"})

    def documents(self) -> Iterator[Document]:
        yield Document("one-line", "a line")
'''
RECIPE = """\
model: {model}
target: rtx3050
data:
  calibration: {{source: one-line, split: all, samples: 64, length: 256}}
passes:
  - copy: {{times: 2}}
  - quantize: {{format: int8}}
  - export
  - fuse
  - build
metrics: [{{tally: {{least: 1}}}}]
budgets:
  tally.files: "<= 9"
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one row more in each table and one file more in each folder; nothing else is touched."""
    folder = tmp_path_factory.mktemp("grown")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "openclaw_opt", ignore=ignored)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for name, row in (("formats", FORMAT_ROW), ("targets", TARGET_ROW)):
        file = folder / "openclaw_opt" / f"{name}.py"
        before, rows, after = file.read_text().partition("_ROWS = (\n")
        assert rows
        file.write_text(f"{before}{rows}    {row}\n{after}")
    for name, text in (("metrics/tally", METRIC), ("passes/copy", PASS), ("data/one_line", SOURCE)):
        (folder / "openclaw_opt" / f"{name}.py").write_text(text)
    (folder / "grown.yaml").write_text(RECIPE.format(model=ROOT / "examples" / "tiny-llama"))
    return folder


@pytest.fixture(scope="module")
def listed(grown: Path) -> str:
    done = python(grown, "-m", "openclaw_opt", "list")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "line",
    [
        r"int2 +2\.2 bits +SM 8\.9\+ +tensorrt +INT2 weights in blocks",
        r"rtx3050 +sm86 +8 GB +224 GB/s +tensorrt_rtx +int8, int8_weight_only, int4$",
        r"rtx4090 .*\bint2\b",
        r"tally +tally\.files",
        r"copy +Model → Model +exact +take the model as it is",
        r"one-line +One document\.",
    ],
)
def test_what_was_added_is_listed(listed: str, line: str) -> None:
    assert re.search(line, listed, flags=re.MULTILINE)


def test_what_was_added_can_be_named_in_a_recipe(grown: Path) -> None:
    done = python(grown, "-m", "openclaw_opt", "check", "--recipe", "grown.yaml")
    assert done.returncode == 0, done.stderr
    assert "for GeForce RTX 3050 by tensorrt" in done.stdout
    assert "passes: load → copy → quantize → export → fuse → build" in done.stdout
    assert "budgets: tally.files <= 9" in done.stdout


def test_legality_comes_from_the_row(grown: Path) -> None:
    done = python(grown, "-m", "openclaw_opt", "check", "--recipe", "grown.yaml", "--set", "passes.quantize.format=fp8")
    assert done.returncode == 2
    assert "GeForce RTX 3050: it needs compute capability 8.9, the target has 8.6" in done.stderr


def test_a_format_nobody_makes_is_refused(grown: Path) -> None:
    """A row makes a format known; for `quantize` to make it takes what docs/design.md lists."""
    done = python(
        grown, "-m", "openclaw_opt", "check", "--recipe", "grown.yaml", "--set", "passes.quantize.format=int2"
    )
    assert done.returncode == 2
    assert "format: 'int2' is not legal" in done.stderr


# ---- habits


def violations() -> set[str]:
    """`file: what` of everything the house rules forbid."""
    found = set()
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        if len(text.splitlines()) > LONGEST:
            found.add(f"{name_of(file)}: too long")
        found |= {f"{name_of(file)}: {match[0]}" for match in MARKS.finditer(text)}
        found |= {f"{name_of(file)}: {what}" for what in _broad(ast.parse(text))}
    return found


def _broad(tree: ast.Module) -> Iterator[str]:
    """Handlers of everything; one that cleans up and ends with a bare `raise` hides nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and not _raises_again(node):
            names = [ast.unparse(one) for one in getattr(node.type, "elts", [node.type]) if one is not None]
            yield from (
                ["bare except"]
                if node.type is None
                else (f"except {name}" for name in names if name in ("Exception", "BaseException"))
            )


def _raises_again(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_the_house_rules() -> None:
    found = violations()
    assert found - KNOWN.keys() == set(), "new"
    assert KNOWN.keys() - found == set(), "no longer true: take it out of KNOWN"


def test_broad_excepts_are_found() -> None:
    source = "try: pass\nexcept (OSError, Exception): pass\ntry: pass\nexcept: pass\ntry: pass\nexcept OSError: pass\n"
    source += "try: pass\nexcept BaseException:\n    clean()\n    raise\n"
    assert sorted(_broad(ast.parse(source))) == ["bare except", "except Exception"]


def test_only_the_command_line_prints() -> None:
    printing = [
        f"{name_of(file)}:{node.lineno}"
        for file in FILES
        if "cli" not in file.parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_every_file_says_what_it_is() -> None:
    silent = [name_of(f) for f in FILES if f.read_text().strip() and not ast.get_docstring(ast.parse(f.read_text()))]
    assert silent == []
