"""Compiles the planner's inner loops to machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit

_P = ParamSpec("_P")
_R = TypeVar("_R")


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, compiled at its first call for the types it is called with.

    The machine code is kept beside the source, or in the user's cache folder, so that only the first process after an upgrade
    compiles. An installation where neither can be written works too: there each process compiles for itself.

    What is kept is made anew when the function's own file changes, and only then. So a compiled function calls only functions, and
    reads only constants that may change, of its own module.
    """
    try:
        kernel: Any = njit(cache=True)(function)
    except RuntimeError:  # Numba found no folder to keep it in.
        kernel = njit(function)
    return cast(Callable[_P, _R], kernel)
