"""The page of the accuracy run and the way a peer's model is scored; the run itself is by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openclaw_opt.metrics.agreement import agreement_rows
from openclaw_opt.metrics.perplexity import perplexity_rows
from openclaw_opt.numerics.divergence import SequenceScore
from tests.peers import accuracy, accuracy_page, accuracy_rows
from tests.peers.accuracy_worker import TOOLS, Task, outputs
from tests.tiny import write_checkpoint

PEERS = [(kind, row) for kind, rows in accuracy_rows.PEERS.items() for row in rows]


def found(name: str, kl: float, *, own: bool = False, group: str = "w4-32") -> dict[str, Any]:
    """A row whose sequences differ a little, as measured ones do."""
    scores = tuple(
        SequenceScore(
            tokens=100,
            nll=100 + i % 7,
            reference_nll=100 + i % 7 - 0.1 * i % 3 * kl,
            kl=100 * kl * (1 + i % 3 / 9),
            agreed=95,
        )
        for i in range(32)
    )
    rows = [one.model_dump() for one in (*perplexity_rows(scores, 5000), *agreement_rows(scores))]
    made = {
        "seconds": 1.0,
        "peak_bytes": 2**30,
        "parameters": 10**6,
        "weights": 8 * 10**5,
        "machine": "a machine",
        "versions": {},
    }
    errors = {"output_sqnr_db": 30.0, "plain_output_sqnr_db": None}
    return {
        "name": name,
        "group": group,
        "bits": 4.5,
        "note": "",
        "ours": own,
        "tool": "",
        "rows": rows,
        "made": made,
        **errors,
    }


@pytest.mark.parametrize(
    ("ours", "said"),
    [(0.01, "better"), (0.03, "worse"), (0.0205, "equivalent (worse by less than 0.001)"), (0.02, "equivalent")],
)
def test_the_verdict_is_by_the_interval_of_the_pairs(ours: float, said: str) -> None:
    text, verdict = accuracy_page.verdict(found("a", ours, own=True), found("b", 0.02), "kl.mean")
    assert verdict == said
    assert text.startswith("+" if ours >= 0.02 else "-")


def test_the_page_names_who_is_better_and_what_was_not_measured() -> None:
    rows = [
        found("int4 a", 0.02, own=True),
        found("int4 b", 0.01, own=True),
        found("peer_x-1", 0.003),
        found("peer-2", 0.05),
    ]
    rows += [{"name": "peer-3", "group": "w4-32", "bits": 4.5, "note": "", "ours": False, "why": "it said no"}]
    text = accuracy_page.page({"decoder": rows})
    assert "| int4 b (4.5) | peer-x-1 (4.5) |" in text
    assert "- **peer-x-1 is better** than int4 b (mean KL, nat +0.0077" in text
    assert "peer-2 is better" not in text
    assert "- peer-3: not measured: it said no" in text
    assert "| 1.25 |" in text  # MB: 0.8 M weights at 4.5 bits, 0.2 M numbers at 32
    again = json.loads(accuracy_page.raw({"decoder": rows}))
    assert [one["name"] for one in again["decoder"]] == [one["name"] for one in rows]


def test_no_pair_without_both_sides() -> None:
    group = accuracy_rows.GROUPS["decoder"][0]
    assert accuracy_page.pair("decoder", group, [found("a", 0.01, own=True)]) is None


@pytest.mark.parametrize(("kind", "row"), PEERS, ids=[f"{kind} {row.name}" for kind, row in PEERS])
def test_every_peer_has_a_worker_a_pinned_home_and_a_group(kind: str, row: accuracy_rows.Row) -> None:
    source = Path(accuracy.HERE / f"{TOOLS[row.tool]}.py").read_text()
    assert f'"{row.name.split("-", 1)[1]}"' in source[source.rindex("ROWS = ") :]
    assert row.tool == "modelopt" or row.tool in accuracy_rows.HOMES
    assert row.group in {group.key for group in accuracy_rows.GROUPS[kind]} | {""}
    assert row.group or row.note, "a row that is compared with nothing says why"


def test_no_script_of_peers_hides_a_package() -> None:
    """A worker's folder comes first on its path: with a `kernels.py` there, transformers imported that for the package `kernels`."""
    scripts = {path.stem for path in Path(accuracy.__file__).parent.glob("*.py")}
    assert not scripts & {
        "kernels",
        "torch",
        "onnx",
        "transformers",
        "modelopt",
        "llmcompressor",
        "torchao",
        "openvino",
    }


def test_every_environment_is_pinned() -> None:
    assert all("==" in package for packages in accuracy_rows.VENVS.values() for package in packages)
    assert set(accuracy_rows.HOMES.values()) <= set(accuracy_rows.VENVS)


def test_every_row_of_ours_is_in_a_group_or_in_none() -> None:
    ours = accuracy_page.ours
    for kind in accuracy_rows.PEERS:
        groups = {group.key for group in accuracy_rows.GROUPS[kind]}
        made = {ours.group_of(name) for name in ours.rows(kind)}
        assert made - {""} <= groups
        assert groups <= made


def test_the_untouched_checkpoint_as_a_peer_keeps_everything(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "llama", "llama")
    stated = {"source": "python-stdlib", "samples": 8, "length": 32}
    task = accuracy.Task(
        "decoder", tmp_path / "task", checkpoint, {s: {**stated, "split": s} for s in ("calibration", "evaluation")}
    )
    worker = Task(tmp_path / "task", tmp_path / "work")
    from tests.peers.accuracy_worker import row

    made = row("torch-float32")(worker)
    given = outputs(made, worker)
    rows = {one.name: one.value for one in task.score(given) if one.subject != "reference"}
    assert rows["bits_per_byte.recovery"] == pytest.approx(1, abs=1e-6)
    assert rows["agreement.top1"] == 1
    assert rows["kl.mean"] == pytest.approx(0, abs=1e-5)
    other = {one.name: one.value for one in task.score(np.roll(given, 1, axis=-1))}
    assert other["kl.mean"] > 10 * abs(rows["kl.mean"] or 1e-5)


def test_the_page_is_made_of_the_json_alone_and_rows_are_merged_into_it() -> None:
    committed = Path(__file__).parent.parent / "docs" / "results"
    text = (committed / "accuracy.json").read_text(encoding="utf-8")
    before = accuracy_page.kept(text)
    assert accuracy_page.raw(before) == text
    assert accuracy_page.page(before) == (committed / "accuracy.md").read_text(encoding="utf-8")
    assert accuracy_page.merged(before, {}, accuracy.every_row()) == before


def test_a_merged_row_takes_the_place_of_the_old_one_and_says_its_machine() -> None:
    old = [found("a", 0.02, own=True), found("b", 0.03, own=True), found("gone", 0.01, own=True)]
    new = found("b", 0.01, own=True)
    new["made"] = {**new["made"], "machine": "another machine"}
    order = [{"name": "a", "group": "w8"}, {"name": "b", "group": "w4-32"}]
    made = accuracy_page.merged({"decoder": old}, {"decoder": [new]}, {"decoder": order})
    assert [(one["name"], one["group"]) for one in made["decoder"]] == [("a", "w8"), ("b", "w4-32")]
    assert made["decoder"][1]["rows"] == new["rows"]
    text = accuracy_page.page(made)
    assert "on a machine, shared" in text
    assert "Run later, on another machine, whose seconds are not those of the other rows: b." in text
    with pytest.raises(ValueError, match=r"neither in accuracy\.json nor run now: c"):
        accuracy_page.merged({"decoder": old}, {}, {"decoder": [*order, {"name": "c"}]})
