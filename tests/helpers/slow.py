"""Tables of which the fast suite sees a part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any] | Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """The values as parameters of a test, of which those are slow that `quick` does not contain, or does not choose."""
    chosen = quick if callable(quick) else quick.__contains__
    cases = ((value, value if isinstance(value, tuple) else (value,)) for value in values)
    return [pytest.param(*case, marks=() if chosen(value) else pytest.mark.slow) for value, case in cases]
