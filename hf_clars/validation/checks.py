"""What a user gave, checked: each returns the value or says in one line what is wrong with it."""

import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import UserError


def per_layer(name: str, values: Iterable[float], check: Callable[[str, float], float]) -> list[float]:
    try:
        entries = list(values)
    except TypeError:
        entries = []
    if not entries:
        raise UserError(f"{name} must be a sequence of numbers, one per layer, got {values!r}")
    return [check(f"every entry of {name}", entry) for entry in entries]


def number(name: str, value: float, wanted: str, holds: Callable[[float], bool]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor with several elements
        number = math.nan  # which no condition holds for
    if not holds(number):
        raise UserError(f"{name} must be {wanted}, got {value!r}")
    return number


def positive(name: str, value: float) -> float:
    return number(name, value, "positive and finite", lambda x: 0 < x < math.inf)


def non_negative(name: str, value: float) -> float:
    return number(name, value, "finite and not negative", lambda x: 0 <= x < math.inf)


def factor(name: str, value: float) -> float:
    """An `M_k`; `gradient_variance` gives an infinite one where the mean gradient vanishes."""
    return number(name, value, "a number that is not negative", lambda x: x >= 0)


def count(name: str, value: int) -> float:
    return number(name, value, "a whole number of at least 1", lambda x: x >= 1 and x.is_integer())


def momentum(value: float) -> float:
    return number("momentum", value, "in [0, 1)", lambda x: 0 <= x < 1)


def writable_folder(name: str, path: str | Path) -> Path:
    """The folder, made if need be, and tried out."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{name} {path} cannot be written: {error.strerror or error}") from None
    return Path(path)
