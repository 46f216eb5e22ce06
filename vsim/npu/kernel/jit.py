"""How the kernel's functions are compiled, and the bit operations that NumPy does not have.

`step.advance` is compiled once and for all shapes, because no size is part of a type (`structs`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core import config as numba_config
from numba.extending import intrinsic, overload

from vsim import devices
from vsim.npu.kernel.structs import StructType
from vsim.npu.types import TenantSchedule

_OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy"}
"""`_nrt`: nothing is allocated, so no references are counted. `error_model`: no division is checked for zero."""
_INLINED: Any = {"forceinline": True, **_OPTIONS}
part: Any = numba.njit(**_INLINED)
"""Decorator of a part of the kernel. Calls would cost a fifth of the time."""
rare: Any = numba.njit(**_OPTIONS)
"""Decorator of a part that few ticks need: it stays a function, which is compiled sooner."""


def either(of_program: Any, of_mix: Any) -> Any:
    """A part that has two forms: the second where an argument is the state of a mix of tenants."""

    def rule(*arguments: Any) -> Any:
        raise NotImplementedError("compiled code only")

    @overload(rule, jit_options=_INLINED)
    def choose(*arguments: Any) -> Callable[..., Any]:
        form = of_mix if any(map(_is_of_mix, arguments)) else of_program

        def chosen(*arguments: Any) -> Any:
            return form(*arguments)

        return chosen

    return rule


def _is_of_mix(kind: Any) -> bool:
    return isinstance(kind, StructType) and getattr(kind.types.get("schedule"), "title", "") == TenantSchedule.__name__


def whole(function: Callable[..., Any]) -> Any:
    """Decorator of the kernel itself: compiled at its first call, and kept for later processes.

    Numba notices that a function's own file changed, but not one that it calls: the folder is named after all sources.
    """
    config: Any = numba_config
    folder, before = devices.kept_programs(f"kernel-{_sources()}"), config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")
    try:
        return numba.njit(cache=folder is not None, **_OPTIONS)(function)
    finally:
        config.CACHE_DIR = before


def _sources() -> str:
    """Digest of the sources that the kernel is made of."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    lowering = here.parents[2] / "lowering"
    for source in sorted([*here.glob("*.py"), *here.parent.glob("*.py"), lowering / "program.py", lowering / "mix.py"]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@intrinsic
def _trailing_zeros(typing: Any, word: Any) -> Any:
    """Number of the lowest bit set in an int64; 64 where none is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, 0))

    return types.int64(types.int64), generate


@intrinsic
def _ones(typing: Any, word: Any) -> Any:
    """Number of bits set in an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.int64), generate


trailing_zeros: Any = _trailing_zeros
ones: Any = _ones
