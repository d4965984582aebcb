"""What can go wrong through the user or the machine: one family, each with its exit code.

Anything else that escapes is a bug: it keeps its traceback and ends with exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class OptError(Exception):
    """What is wrong, where, and what to do about it.

    Args:
        what: one sentence that names the offending value.
        where: file and line, tensor name, node name; empty if there is none.
        fix: what would be legal, or what to run instead; empty if it is obvious.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"\n  fix: {self.fix}" if self.fix else ""
        return f"{place}{self.what}{remedy}"


class RecipeError(OptError):
    """The recipe, the command line or the user's data are at fault. Holds every mistake found, not the first."""

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "", mistakes: Sequence[OptError] = ()) -> None:
        super().__init__(what, where=where, fix=fix)
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes) if self.mistakes else super().__str__()


class MachineError(OptError):
    """This machine cannot do it: a package, a GPU, memory or disk is missing."""

    exit_code = 3


class BudgetMissed(OptError):
    """The build is whole, and a budget of the recipe was missed."""

    exit_code = 4


class VerificationError(OptError):
    """A pass did not do what it says: outputs disagree, nothing changed, or a precision was not realised."""

    exit_code = 5


def nearest(word: str, legal: Iterable[str]) -> str:
    """`did you mean 'x'?` for the legal word nearest to `word`, or every legal word when none is near."""
    words = sorted(legal)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"legal: {', '.join(words)}"
