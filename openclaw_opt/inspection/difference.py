"""What changed between two artifacts: kernels by what they are, element types, memory, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from openclaw_opt.artifacts import Facts
from openclaw_opt.backends.trt_kernels import ProfileLayers
from openclaw_opt.inspection import Inspection
from openclaw_opt.inspection.show import signature


class Change(Facts):
    """One fact, there and here; None where it does not exist."""

    what: str
    """Profile, `graph` or `artifact`."""
    name: str
    before: int | str | None
    after: int | str | None

    def line(self) -> str:
        if self.before is None:
            return f"+ {self.name}: {_number(self.after)}"
        if self.after is None:
            return f"- {self.name}: {_number(self.before)}"
        return f"~ {self.name}: {_number(self.before)} → {_number(self.after)}"


def difference(before: Inspection, after: Inspection) -> list[Change]:
    """Everything that differs, artifact first, then profile by profile, then the graph; empty if nothing does."""
    found = list(_changes("artifact", _facts(before), _facts(after)))
    old, new = ({table.profile: table for table in one.profiles} for one in (before, after))
    for profile in dict.fromkeys([*old, *new]):
        found += _changes(profile, _table(old.get(profile)), _table(new.get(profile)))
    return [*found, *_changes("graph", _graph(before), _graph(after))]


def lines(changes: list[Change]) -> list[str]:
    """Grouped under what they belong to."""
    if not changes:
        return ["no difference"]
    told: list[str] = []
    for what in dict.fromkeys(change.what for change in changes):
        told += [f"{what}:", *(f"  {change.line()}" for change in changes if change.what == what)]
    return told


def _facts(found: Inspection) -> dict[str, int | str]:
    words = {
        "kind": found.kind,
        "family": found.family,
        "dtype": found.dtype,
        "backend": found.backend,
        "tool": found.tool,
    }
    more = {"targets": ", ".join(found.targets), "compute capabilities": ", ".join(found.compute)}
    missed = sum(not row.ok for row in found.receipt)
    sizes = {f"bytes of {name}": size for name, size in found.files.items()}
    asked = Counter(f"layers {row.asked} as {row.realised}" for row in found.receipt)
    return {**words, **more, "layers not realised": missed, **asked, **sizes}


def _table(table: ProfileLayers | None) -> dict[str, int | str]:
    if table is None:
        return {}
    sizes = {"bytes of activations": table.activation_bytes, "bytes of weights": table.weight_bytes}
    types = Counter(f"kernels with {kernel.weights} weights" for kernel in table.kernels if kernel.weights)
    known = {name: size for name, size in sizes.items() if size is not None}
    return {"kernels": len(table.kernels), **known, **types, **Counter(signature(one) for one in table.kernels)}


def _graph(found: Inspection) -> dict[str, int | str]:
    if found.graph is None:
        return {}
    held = {f"bytes of {one.name} initializers": one.bytes for one in found.graph.initializers}
    return {"opset": found.graph.opset, **{one.name: one.count for one in found.graph.operators}, **held}


def _changes(what: str, old: Mapping[str, int | str], new: Mapping[str, int | str]) -> Iterator[Change]:
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if before != after:
            yield Change(what=what, name=name, before=before, after=after)


def _number(value: int | str | None) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value) or "none"
