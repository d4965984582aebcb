"""What of a `prune` cannot be done, from sizes alone: cuts that round to nothing, goals that are met or out of reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openclaw_opt.models.spec import HfSpec
from openclaw_opt.passes import Complaint
from openclaw_opt.passes._goal import Goal
from openclaw_opt.passes._widths import least, remaining
from openclaw_opt.targets import Target

if TYPE_CHECKING:
    from openclaw_opt.models.spec import Sized
    from openclaw_opt.passes.prune import Prune


def family_complaints(prune: Prune, spec: Sized, target: Target) -> list[Complaint]:
    """What this family or target does not allow."""
    if isinstance(spec, HfSpec):
        return [*_encoder_complaints(prune), *_bandwidth_complaints(prune, target)]
    found = []
    if prune.hidden is not None and spec.norm == "layer":
        what = f"{spec.family} has layer norms, whose mean over all channels no smaller norm gives back"
        found.append(Complaint(what, "hidden", "leave hidden out"))
    if prune.to is not None and prune.to.infer_ms is not None:
        what = "infer_ms is the time of an encoder's text; a decoder's goal is the time of a token"
        found.append(Complaint(what, "to", f"to: {{decode_ms: {prune.to.infer_ms:g}}}"))
    return [*found, *_bandwidth_complaints(prune, target)]


def _encoder_complaints(prune: Prune) -> list[Complaint]:
    """Options that mean nothing for an encoder."""
    fix = "legal for an encoder: ffn, heads, layers, to"
    found = []
    if prune.hidden is not None:
        what = "an encoder has layer norms, whose mean over all channels no smaller norm gives back"
        found.append(Complaint(what, "hidden", fix))
    if prune.query_heads is not None:
        what = "each head of an encoder has a key and a value of its own, so no query head goes alone"
        found.append(Complaint(what, "query_heads", f"heads: {prune.query_heads:g}, or: {fix}"))
    if prune.vocabulary is not None:
        what = "tokens are taken out of byte-level BPE tokenizers of decoders alone"
        found.append(Complaint(what, "vocabulary", fix))
    if prune.to is not None and prune.to.decode_ms is not None:
        what = "an encoder decodes no tokens; its goal is the time of a text"
        found.append(
            Complaint(what, "to", f"to: {{infer_ms: {prune.to.decode_ms:g}}}, {{parameters: …}} or {{gib: …}}")
        )
    return found


def _bandwidth_complaints(prune: Prune, target: Target) -> list[Complaint]:
    found = []
    timed = prune.to is not None and prune.to.kind in ("decode_ms", "infer_ms")
    if timed and (target.bandwidth is None or not target.peak):
        what = f"bandwidth and peak rate of {target.title} are not known before they are measured"
        found.append(Complaint(what, "to", "to: {parameters: …} or {gib: …}, or another target"))
    return found


def size_complaints(prune: Prune, spec: Sized, target: Target, backend: str) -> list[Complaint]:
    """Parts of which rounding leaves everything, more layers than there are, and goals that are met or out of reach."""
    found, multiple = [], prune.multiple(target)
    encoder = isinstance(spec, HfSpec)
    if prune.layers is not None and prune.layers >= len(spec.layers):
        what = f"{prune.layers} layers cannot be removed from {len(spec.layers)}"
        found.append(Complaint(what, "layers", f"layers: {max(1, len(spec.layers) - 1)}"))
    for option, title, counts, rounded in (
        ("ffn", "channels", [layer.ffn for layer in spec.layers], True),
        ("heads", "heads" if encoder else "key/value groups", [layer.kv_heads for layer in spec.layers], False),
        ("query_heads", "query heads a group", [layer.q_heads // layer.kv_heads for layer in spec.layers], False),
        ("hidden", "hidden channels", [spec.hidden or 0], True),
    ):
        fraction = getattr(prune, option)
        if fraction is not None:
            why = f"{title} removes " + (f"nothing at multiples of {multiple}" if rounded else "none")
            found += _no_cut(option, fraction, counts, multiple if rounded else 1, why)
    if prune.to is not None and not found and prune.vocabulary is None:  # how much that takes out, only data says
        found += _reachable(prune, prune.to, spec, target, backend)
    return found


def _reachable(prune: Prune, goal: Goal, spec: Sized, target: Target, backend: str) -> list[Complaint]:
    cut = prune.cut(spec, range(len(spec.layers) - (prune.layers or 0)), target)
    limit, widest = goal.limit(spec), goal.measure(cut, target, backend)
    if widest <= limit:
        who = "the model fits already" if cut == spec else "the other cuts alone fit already"
        what = f"{who}: {goal.told(widest)}, and {goal.told(limit)} are allowed"
        return [Complaint(what, "to", "ask for less, or leave `to` out")]
    closest = goal.measure(least(cut, prune.multiple(target)), target, backend)
    alike = len({(layer.q_heads, layer.kv_heads, layer.ffn) for layer in spec.layers}) == 1
    if closest > limit and (alike or prune.layers is None):
        return [unreachable(goal, limit, closest)]
    return []  # which layers go decides, and only data says which


def unreachable(goal: Goal, limit: float, closest: float) -> Complaint:
    """That no width of the FFN meets the goal, and what the narrowest would be."""
    what = f"{goal.told(limit)} cannot be reached by FFN channels alone: the narrowest has {goal.told(closest)}"
    return Complaint(what, "to", "ask for more, or take out layers, heads or hidden channels as well")


def _no_cut(option: str, fraction: float, counts: list[int], multiple: int, why: str) -> list[Complaint]:
    """A complaint where rounding leaves everything in every layer, with the least fraction (in hundredths) that does not."""
    if any(remaining(count, fraction, multiple) < count for count in counts):
        return []
    most = max(counts)
    enough = (i / 100 for i in range(1, 100) if remaining(most, i / 100, multiple) < most)
    least = next(enough, None)
    fix = f"{option}: {least:g}" if least is not None else f"leave {option} out"
    return [Complaint(f"{option}: {fraction:g} of {most} {why}", option, fix)]
