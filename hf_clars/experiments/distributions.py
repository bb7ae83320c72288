"""What a sweep may draw a parameter from, under W&B's names."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError

_Draw = Callable[[random.Random, float, float], float]

# name → its two arguments, which of them must be positive, and how to draw. `q_…` is the same in multiples of `q`.
_KINDS: dict[str, tuple[tuple[str, str], tuple[str, ...], _Draw]] = {
    "uniform": (("min", "max"), (), lambda dice, low, high: dice.uniform(low, high)),
    "int_uniform": (("min", "max"), (), lambda dice, low, high: dice.randint(int(low), int(high))),
    "log_uniform_values": (
        ("min", "max"),
        ("min", "max"),
        lambda dice, low, high: math.exp(dice.uniform(math.log(low), math.log(high))),
    ),
    "log_uniform": (("min", "max"), (), lambda dice, low, high: math.exp(dice.uniform(low, high))),
    "normal": (("mu", "sigma"), ("sigma",), lambda dice, mu, sigma: dice.gauss(mu, sigma)),
    "log_normal": (("mu", "sigma"), ("sigma",), lambda dice, mu, sigma: math.exp(dice.gauss(mu, sigma))),
}
_DEFAULTS = {"mu": 0.0, "sigma": 1.0, "q": 1.0}


def named(spec: Mapping[str, Any]) -> str | None:
    """The distribution of a parameter, by its name or, as W&B does, by what `min` and `max` are."""
    if "distribution" in spec or not {"min", "max"} <= spec.keys():
        return spec.get("distribution")
    return "int_uniform" if all(type(spec[key]) is int for key in ("min", "max")) else "uniform"


def check(spec: Mapping[str, Any]) -> None:
    """Raises `UserError` for a distribution that is not known, or whose numbers are none or do not fit."""
    name = named(spec)
    kind = _KINDS.get(str(name).removeprefix("q_"))
    if kind is None:
        known = ", ".join([*_KINDS, *(f"q_{kind}" for kind in _KINDS if kind != "int_uniform")])
        raise UserError(f"distribution {name!r} cannot be drawn from here; these can: {known}")
    wanted = [*kind[0], *(["q"] if str(name).startswith("q_") else [])]
    values = _numbers(spec, wanted)
    for key in wanted:
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{name} needs a number for {key!r}, not {value!r}")
        if (key in kind[1] or key == "q") and value <= 0:
            raise UserError(f"{name} needs {key!r} above 0, not {value!r}")
    if "min" in values and values["min"] > values["max"]:
        raise UserError(f"min {values['min']} is above max {values['max']}")


def sample(dice: random.Random, spec: Mapping[str, Any]) -> float:
    """One value, with six digits; `spec` was checked."""
    name = str(named(spec))
    keys, _, draw = _KINDS[name.removeprefix("q_")]
    value = draw(dice, *_numbers(spec, keys).values())
    if name.startswith("q_"):
        q = _numbers(spec, ["q"])["q"]
        value = round(value / q) * q
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _numbers(spec: Mapping[str, Any], keys: Any) -> dict[str, Any]:
    """YAML 1.1 reads `1e-3` as text."""
    found = {key: spec.get(key, _DEFAULTS.get(key)) for key in keys}
    return {key: _number(value) for key, value in found.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
