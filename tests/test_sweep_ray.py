"""Sweeps on a real Ray cluster of several nodes on this machine: where points run, a node that is lost, a card no node has."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openclaw_opt.errors import MachineError
from openclaw_opt.sweep import on_ray
from openclaw_opt.sweep.on_ray import OnRay
from openclaw_opt.sweep.state import read_state
from openclaw_opt.targets import RAY_TYPES, TARGETS, ray_resources
from tests.sweeps import AUTO, FORMATS, PRUNED, Remembering, Write, asked, by_name, run

ray = pytest.importorskip("ray", reason="package ray is not installed: pip install 'openclaw-opt[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
FFN = "passes.prune.ffn=0,0.4"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, two nodes that say they have an A100, one that says it has an RTX 4090. CPUs and cards are names here."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        made.a100 = [made.add_node(num_cpus=1, resources={"accelerator_type:A100-80G": 1}) for _ in range(2)]
        made.rtx = made.add_node(num_cpus=1, resources={"rtx4090": 1})
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_every_target_has_a_name_in_ray() -> None:
    assert set(RAY_TYPES) == set(TARGETS)
    assert ray_resources("l4") == ("l4", "accelerator_type:L4")
    assert ray_resources("host") == ()


def test_a_target_that_no_node_has_is_an_error_at_once(cluster: Any, write_recipe: Write, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(MachineError) as caught:
        run(asked(write_recipe(AUTO), "target=host,h100-sxm"), tmp_path / "cache", tmp_path / "out", OnRay(None, print))
    assert time.monotonic() - began < 20
    assert caught.value.exit_code == 3
    assert caught.value.what == "no node of the Ray cluster has what is built for: h100-sxm (NVIDIA H100 SXM)"
    assert caught.value.where == "4 nodes, which offer accelerator_type:A100-80G, rtx4090"
    assert "'h100-sxm' or 'accelerator_type:H100'" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_each_point_is_built_where_its_card_is(cluster: Any) -> None:
    nodes = on_ray._alive()
    assert on_ray._place("a100-80", nodes) == {"num_cpus": 1, "resources": {"accelerator_type:A100-80G": 0.001}}
    assert on_ray._place("rtx4090", nodes) == {"num_cpus": 1, "resources": {"rtx4090": 0.001}}
    assert on_ray._place("host", nodes) == {"num_cpus": 1}
    assert on_ray._place("b200", nodes) is None

    def where() -> str:
        return str(ray.get_runtime_context().get_node_id())

    for target, wanted in (("a100-80", {n.node_id for n in cluster.a100}), ("rtx4090", {cluster.rtx.node_id})):
        options = on_ray._place(target, nodes)
        assert options is not None
        assert ray.get(ray.remote(where).options(**options).remote()) in wanted


def test_a_node_that_is_killed_in_the_middle_loses_no_trial(cluster: Any, write_recipe: Write, tmp_path: Path) -> None:
    """Two nodes take the points; one is killed while both work. Its trial runs again on the other.

    The engines are left to finish, since no card is really there: exit code 3, and everything else is done.
    """
    out, watcher = tmp_path / "out", Remembering()
    lost: list[str] = []
    executor = OnRay(2, lost.append)
    done = threading.Event()

    def kill_one() -> None:
        while not done.is_set():
            state = read_state(out)
            running = [p for p in state.points if p.status == "running"] if state is not None else []
            if len(running) == 2 and len(list((out / "logs").glob("*.log"))) >= 2:
                cluster.remove_node(cluster.a100.pop(), allow_graceful=False)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        what = asked(write_recipe(PRUNED, AUTO), FORMATS, FFN, settings=["target=a100-80"])
        state = run(what, tmp_path / "cache", out, executor, watcher)
    finally:
        done.set()
        killer.join()
    assert len(cluster.a100) == 1, "a node was killed"
    assert [point.status for point in state.points] == ["done"] * 4, [point.error for point in state.points]
    assert {(point.exit_code, point.verdict) for point in state.points} == {(3, "not finished")}
    until = time.monotonic() + 60
    while not lost and time.monotonic() < until:  # the cluster may notice later than the trial's own connection
        executor._tell_losses()
        time.sleep(0.5)
    assert any("was lost; its points run elsewhere" in note for note in lost)
    assert set(by_name(state)) == {path.name for path in (out / "points").iterdir() if path.is_dir()}


def test_a_card_that_goes_away_is_told_and_not_waited_for(
    cluster: Any, write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "PATIENCE_S", 3.0)
    out, done = tmp_path / "out", threading.Event()

    def kill_the_last() -> None:
        while not done.is_set():
            state = read_state(out)
            if state is not None and any(point.status == "running" for point in state.points):
                cluster.remove_node(cluster.rtx, allow_graceful=False)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_the_last)
    killer.start()
    try:
        what = asked(write_recipe(AUTO), FORMATS, settings=["target=rtx4090"])
        state = run(what, tmp_path / "cache", out, OnRay(1, print))
    finally:
        done.set()
        killer.join()
    assert {(point.status, point.exit_code, point.error) for point in state.points} == {
        ("failed", 3, "no node of the Ray cluster has rtx4090 any more")
    }
    assert state.exit_code == 3


def test_without_a_cluster_it_says_how_to_start_one(
    cluster: Any, write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(**options: object) -> None:
        raise ConnectionError("none")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", absent)
    with pytest.raises(MachineError, match="no Ray cluster is running") as caught:
        run(asked(write_recipe(AUTO), FORMATS), tmp_path / "cache", tmp_path / "out", OnRay(None, print))
    assert "ray start --head" in caught.value.fix
    assert os.environ.get("RAY_ADDRESS") is None
