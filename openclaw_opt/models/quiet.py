"""Keeps libraries from printing while we do their reporting ourselves."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Within it, warnings, standard output and what `loggers` say below an error are dropped."""
    named = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in named]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            for logger in named:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(named, levels, strict=True):
                logger.setLevel(level)
