"""Which of several layers stand for all of them."""

from __future__ import annotations


def evenly(count: int, of: int) -> tuple[int, ...]:
    """`count` of the indices 0 … of − 1, evenly spaced, the first and the last among them; one alone is the first.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= count <= of:
        raise ValueError(f"{count} of {of}")
    gaps = max(1, count - 1)
    return tuple((i * (of - 1) + gaps // 2) // gaps for i in range(count))


def matched(count: int, of: int) -> tuple[int, ...]:
    """For each of `count` layers of a student the teacher's layer that ends as far along the depth; the last meets the last."""
    return tuple((i + 1) * of // count - 1 for i in range(count))
