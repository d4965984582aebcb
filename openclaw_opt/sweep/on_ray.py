"""Trials on the nodes of a Ray cluster: each on a node that has its target's card, `host` on any.

Before any work every target must have a node, and every node must see the sweep's folder (shared storage) and run this very
code. In a node's worker the trial has a process of its own, as on one machine, so its crash is a failed point. When a
node is lost its trials run again on another one; when the last node of a target is lost its trials fail after
`PATIENCE_S`: Ray itself would wait for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from openclaw_opt import interrupts
from openclaw_opt.errors import MachineError
from openclaw_opt.plan import source_digest
from openclaw_opt.sweep.local import Local
from openclaw_opt.sweep.trial import Job, Outcome
from openclaw_opt.targets import Target, ray_resources

RETRIES = 3
POLL_S = 1.0
PATIENCE_S = 30.0
PROBE_S = 120.0
LEAVING_S = 15.0
SHARE = 0.001
"""Of a node's accelerator resource: it says where to run; the GPU itself is taken whole."""


class OnRay:
    """Runs trials through a cluster that is up: the one of RAY_ADDRESS, or the one this machine belongs to.

    Args:
        width: trials at once; None for as many as the cluster has CPUs.
        note: told when a node is lost.
    """

    def __init__(self, width: int | None, note: Callable[[str], None]) -> None:
        self._width, self._note = width, note
        self._connected = False
        self._lost: set[str] = set()

    @property
    def width(self) -> int:
        return self._width or max(1, int(sum(node["Resources"].get("CPU", 0) for node in _alive())))

    def prepare(self, targets: Sequence[Target]) -> None:
        """Connect. Raises MachineError: no ray, no cluster, or a target that no node has."""
        try:
            import ray
        except ImportError as error:
            raise MachineError("--executor ray needs ray", fix="pip install 'openclaw-opt[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level="ERROR")
            except ConnectionError as error:
                raise MachineError(
                    "no Ray cluster is running",
                    fix="ray start --head on this machine, or RAY_ADDRESS=HOST:PORT",
                ) from error
            self._connected = True
            interrupts.install()  # ray.init takes SIGTERM
        nodes = _alive()
        missing = {target.name: target for target in targets if _place(target.name, nodes) is None}
        if missing:
            titles = ", ".join(f"{name} ({target.title})" for name, target in missing.items())
            words = " or ".join(repr(word) for name in missing for word in ray_resources(name))
            raise MachineError(
                f"no node of the Ray cluster has what is built for: {titles}",
                where=f"{len(nodes)} nodes, {_offers(nodes)}",
                fix=f"start a node with that card; it is known by the resource {words}",
            )

    def close(self) -> None:
        """Leave the cluster, if this joined it."""
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome]:
        import ray

        waiting = iter(jobs)
        running: dict[Any, tuple[Job, float]] = {}
        probed, helpless = False, dict[str, float]()
        try:
            while True:
                while len(running) < self.width and (job := next(waiting, None)) is not None:
                    if not probed:
                        _probe(job.output.parent)
                        probed = True
                    running[_submit(job)] = (job, time.monotonic())
                if not running:
                    self._tell_losses()
                    return
                ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
                interrupts.check()
                self._tell_losses()
                for reference in ready:
                    job, began = running.pop(reference)
                    yield _outcome_of(reference, job, began)
                for reference in _given_up(running, helpless):
                    ray.cancel(reference, force=True)
                    job, began = running.pop(reference)
                    why = f"no node of the Ray cluster has {job.target} any more"
                    yield Outcome(job.name, "failed", MachineError.exit_code, time.monotonic() - began, error=why)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _tell_losses(self) -> None:
        import ray

        for node in ray.nodes():
            if not node["Alive"] and node["NodeID"] not in self._lost:
                self._lost.add(node["NodeID"])
                self._note(
                    f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]}) was lost; its points run elsewhere"
                )


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _place(target: str, nodes: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Ray's options that put a trial of this target on a fitting node; None if there is none."""
    with_cpu = [node["Resources"] for node in nodes if node["Resources"].get("CPU", 0) >= 1]
    words = ray_resources(target)
    if not words:
        return {"num_cpus": 1} if with_cpu else None
    for word in words:
        for resources in with_cpu:
            if resources.get(word, 0) > 0:
                gpus = {"num_gpus": 1} if resources.get("GPU", 0) >= 1 else {}
                return {"num_cpus": 1, "resources": {word: SHARE}, **gpus}
    return None


def _offers(nodes: Sequence[dict[str, Any]]) -> str:
    plain = ("CPU", "GPU", "memory", "object_store_memory")
    words = {word for node in nodes for word in node["Resources"] if word not in plain and not word.startswith("node:")}
    return "which offer " + (", ".join(sorted(words)) or "no card")


def _submit(job: Job) -> Any:
    import ray

    options = _place(job.target, _alive()) or {"num_cpus": 1, "resources": {ray_resources(job.target)[-1]: SHARE}}
    return ray.remote(_on_node).options(max_retries=RETRIES, name=job.name, **options).remote(job)


def _on_node(job: Job) -> Outcome:
    """In a worker of the node: the trial in a process of its own."""
    (outcome,) = Local(1, lambda name, fraction, text: None).run([job])
    return outcome


def _outcome_of(reference: Any, job: Job, began: float) -> Outcome:
    import ray

    try:
        found: Outcome = ray.get(reference)
        return found
    except ray.exceptions.RayTaskError as error:  # our own code in the worker: a bug, with its traceback
        code, why = 1, str(error)
    except ray.exceptions.RayError as error:
        code, why = MachineError.exit_code, f"lost after {RETRIES} more tries: {error}"
    return Outcome(job.name, "failed", code, time.monotonic() - began, error=why)


def _given_up(running: dict[Any, tuple[Job, float]], helpless: dict[str, float]) -> list[Any]:
    """Trials whose target has had no node for too long; `helpless` remembers since when, by target."""
    nodes, now = _alive(), time.monotonic()
    for target in {job.target for job, _ in running.values()}:
        if _place(target, nodes) is not None:
            helpless.pop(target, None)
        else:
            helpless.setdefault(target, now)
    late = {target for target, since in helpless.items() if now - since > PATIENCE_S}
    return [reference for reference, (job, _) in running.items() if job.target in late]


def _probe(folder: Path) -> None:
    """Raise MachineError for a node that does not see the folder or runs other code."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = folder / f".seen-{uuid4().hex}"
    token.write_text("", encoding="utf-8")
    try:
        asked = {
            node["NodeID"]: ray.remote(_seen)
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False),
            )
            .remote(token)
            for node in _alive()
        }
        for node, reference in asked.items():
            try:
                sees, code = ray.get(reference, timeout=PROBE_S)
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.TaskUnschedulableError) or _has_left(node):
                    continue  # lost meanwhile: nothing will run there
                why = str(error).strip().splitlines()[-1]
                raise MachineError(
                    f"openclaw-opt does not run on node {node[:8]}: {why}", fix="install it on every node"
                ) from error
            if not sees:
                raise MachineError(
                    f"node {node[:8]} does not see the sweep's folder",
                    where=str(folder),
                    fix="--output on storage that all nodes share",
                )
            if code != source_digest():
                raise MachineError(
                    f"node {node[:8]} runs another version of openclaw-opt", fix="install the same on every node"
                )
    finally:
        token.unlink(missing_ok=True)


def _has_left(node: str) -> bool:
    """Whether the node is lost; the cluster takes some seconds to notice."""
    until = time.monotonic() + LEAVING_S
    while time.monotonic() < until:
        if all(one["NodeID"] != node for one in _alive()):
            return True
        time.sleep(POLL_S)
    return False


def _seen(token: Path) -> tuple[bool, str]:
    return token.is_file(), source_digest()
