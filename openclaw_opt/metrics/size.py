"""size: what the engine takes on disk, and the share of the checkpoint's weights that is.

size_mib        every file the runtime loads, in MiB (2^20 bytes)
size.reduction  bytes of the checkpoint's weight files / bytes of what the runtime loads
size.cache_mib  decoders: keys and values of one sequence of the whole context, counted from the caches' shapes and type; what a
                runtime allocates beside it is in `memory`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from openclaw_opt.artifacts import GraphFacts, Measurement
from openclaw_opt.metrics import EVERY_TASK, Metric, Number

if TYPE_CHECKING:
    from openclaw_opt.metrics.subject import Subject

MIB = 2**20


class Size(Metric):
    """Bytes on disk."""

    summary: ClassVar[str] = "what the engine takes on disk"
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("size_mib", "MiB", "lower", "every file the runtime loads", EVERY_TASK, of_checkpoint=True),
        Number("size.reduction", "", "higher", "the checkpoint's weight files / what the runtime loads"),
        Number("size.cache_mib", "MiB", "lower", "key/value cache of one sequence of the whole context", ("decoder",)),
    )

    def measure(self, subject: Subject) -> list[Measurement]:
        return [*self._files(subject), *self._cache(subject.facts)]

    def _cache(self, facts: GraphFacts) -> list[Measurement]:
        if facts.task != "decoder":
            return []
        name = "size.cache_mib"
        if not facts.kv or facts.context is None:
            return [self.unmeasured(name, "the graph does not state its caches")]
        what = f"{facts.cache_format}: {facts.token_bytes:,.0f} bytes a token, {facts.context:,} tokens"
        return [self.row(name, facts.token_bytes * facts.context / MIB, note=what)]

    def _files(self, subject: Subject) -> list[Measurement]:
        if not subject.files:
            why = "there is no engine file yet"
            return [self.unmeasured(name, why) for name in ("size_mib", "size.reduction")]
        engine = sum(path.stat().st_size for path in subject.files)
        rows = [self.row("size_mib", engine / MIB)]
        original = sum(path.stat().st_size for path in subject.original_files)
        if not original:
            return [*rows, self.unmeasured("size.reduction", "the checkpoint's files are not known")]
        return [
            *rows,
            self.row("size_mib", original / MIB, subject="reference", note="the checkpoint's weight files"),
            self.row("size.reduction", original / engine),
        ]
