"""Earlier builds of a history beside this one: those that may be compared, and how many may not, and why. Pure.

A build of another checkpoint or other evaluation data is left out whole. Of the others each number is kept that
`comparable.why_not` allows: times and memory only from the same target and machine, under the same options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.comparison.comparable import Provenance, why_not
from openclaw_opt.comparison.rows import metric_of
from openclaw_opt.errors import RecipeError
from openclaw_opt.history import Entry, data_digest, model_digest
from openclaw_opt.metrics import Metric
from openclaw_opt.records import EarlierBuild, HistoryRecord, LeftOut

MOST = 50
"""The newest comparable builds are kept: a picture of more is a cloud, and the history itself has them."""
CHECKPOINT, DATA = "another checkpoint", "other evaluation data"
OLD_LINE = "kept by an earlier version, without the machine's cores and the options of its metrics"


def earlier_builds(entries: Sequence[Entry], ours: Provenance, files: dict[str, str], path: str) -> HistoryRecord:
    """What the report keeps of a history, oldest first.

    Args:
        ours: of the build that is being made.
        files: its weight files' sha256 by name.

    Raises:
        RecipeError: every build of the history is of another checkpoint.
    """
    here = Entry(
        name="", started="", verdict="", target=ours.target, machine="", model=model_digest(files),
        data=data_digest(ours.evaluation), hardware=ours.machine, metrics={word: dict(one) for word, one in ours.metrics.items()},
    )  # fmt: skip
    apart = Counter(why for entry in entries if (why := _apart(entry, here)))
    alike = [entry for entry in entries if not _apart(entry, here)]
    if apart[CHECKPOINT] == len(entries):
        raise RecipeError(
            f"not comparable: all {len(entries)} builds of the history are of another checkpoint",
            where=f"--history {path}",
            fix="give the history of builds of this checkpoint",
        )
    if len(alike) > MOST:
        apart[f"older than the {MOST} newest"] = len(alike) - MOST
    known: dict[str, type[Metric] | None] = {}
    untimed: Counter[str] = Counter()
    builds = [_build(entry, here, known, untimed) for entry in alike[-MOST:]]
    return HistoryRecord(path=path, builds=tuple(builds), left_out=_counted(apart), untimed=_counted(untimed))


def _apart(entry: Entry, here: Entry) -> str:
    if entry.model != here.model:
        return CHECKPOINT
    return DATA if entry.data != here.data else ""


def _build(entry: Entry, here: Entry, known: dict[str, type[Metric] | None], untimed: Counter[str]) -> EarlierBuild:
    rows, whys = [], dict[str, None]()
    for name, level in entry.levels.items():
        if name not in known:
            known[name] = metric_of(name)
        why = _why_not(name, known[name], here, entry)
        if why:
            whys[why] = None
            continue
        facts = {"name": name, "value": level.value, "low": level.low, "high": level.high, "unit": level.unit}
        rows.append(Measurement.model_validate({**facts, "better": level.better}))
    untimed.update(list(whys)[:1])
    return EarlierBuild(
        name=entry.name,
        label=entry.label,
        started=entry.started,
        verdict=entry.verdict,
        target=entry.target,
        machine=entry.hardware or entry.machine,
        measurements=tuple(rows),
    )


def _why_not(name: str, metric: type[Metric] | None, here: Entry, entry: Entry) -> str:
    if metric is None or metric.depends_on == "artifact":
        return ""
    if not entry.hardware:
        return OLD_LINE
    return why_not(name, _provenance(here), _provenance(entry))


def _provenance(entry: Entry) -> Provenance:
    """Digests stand for what they are of: they are only compared."""
    return Provenance(frozenset({entry.model}), {"digest": entry.data}, entry.hardware, entry.target, entry.metrics)


def _counted(whys: Iterable[str] | Counter[str]) -> tuple[LeftOut, ...]:
    return tuple(LeftOut(why=why, builds=count) for why, count in Counter(whys).most_common())
