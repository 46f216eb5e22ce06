"""Errors that are the user's to mend: one clear line each, shown by the command line without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where (file, line, key or node), and what would be right."""


class ConfigError(UserError):
    """A hardware description, DRAM table or sweep value that cannot be used."""


def closest(name: object, options: Iterable[object]) -> str | None:
    """The option that ``name`` was most likely meant to be (case does not count), or None."""
    folded = {str(option).casefold(): str(option) for option in options}
    close = get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def nearest(name: object, options: Iterable[object]) -> str:
    """A suffix for an error message that names the valid option closest to ``name``, or lists all when none is close.

    >>> nearest("rowz", ["rows", "cols"])
    "; did you mean 'rows'?"
    """
    names = sorted({str(option) for option in options})
    close = closest(name, names)
    if close is not None:
        return f"; did you mean {close!r}?"
    return f"; valid: {', '.join(names)}" if names else ""
