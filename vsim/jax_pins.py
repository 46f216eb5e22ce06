"""Which JAX versions vsim runs on, and the refusal of those that compute wrong or pathologically slow results.

Pure of JAX: the check reads package metadata, so it can run before `import jax`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

REFUSED: dict[tuple[int, int, int], str] = {
    (0, 10, 2): "it computes wrong results on CPU (jax-ml/jax#39103)",
    (0, 11, 0): "it is reported to return wrong values on GPU (jax-ml/jax#40633)",
    (0, 11, 1): "a small write inside a loop copies the whole buffer on CPU (jax-ml/jax#40101)",
}
"""Versions that are refused, with the reason shown to the user."""

OLDEST: tuple[int, int, int] = (0, 10, 1)
"""Nothing older has been tested."""

ADVICE = "use jax 0.10.1 on Python 3.11, or jax 0.11.2 or later on Python 3.12 and later"


class JaxVersionError(ImportError):
    """The installed JAX or jaxlib cannot be trusted with a simulation."""


def release(text: str) -> tuple[int, int, int]:
    """The numeric release of a PEP 440 version: ``"0.11.2.dev3+g12"`` -> ``(0, 11, 2)``.

    A missing component counts as 0. Raises `JaxVersionError` if the text does not start with a number.
    """
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", text)
    if match is None:
        raise JaxVersionError(f"cannot read the version {text!r} of JAX; {ADVICE}")
    major, minor, micro = (int(part or 0) for part in match.groups())
    return major, minor, micro


def check_jax_version(installed: Callable[[str], str] = version) -> None:
    """Raise `JaxVersionError` unless both jax and jaxlib are installed in versions known to be sound.

    ``installed`` maps a distribution name to its version text (a parameter so that tests can ask about others).
    """
    for package in ("jax", "jaxlib"):
        try:
            text = installed(package)
        except PackageNotFoundError:
            raise JaxVersionError(f"{package} is not installed; {ADVICE}") from None
        number = release(text)
        if number in REFUSED:
            raise JaxVersionError(f"{package} {text} is refused: {REFUSED[number]}; {ADVICE}")
        if number < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise JaxVersionError(f"{package} {text} is refused: older than {oldest}, untested; {ADVICE}")
