"""What a sweep may draw a parameter from, under W&B's names."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from ..configuration import with_numbers
from ..errors import UserError

_DRAWS: dict[str, Callable[..., float]] = {
    "uniform": lambda dice, min, max: dice.uniform(min, max),
    "int_uniform": lambda dice, min, max: dice.randint(min, max),
    "log_uniform": lambda dice, min, max: math.exp(dice.uniform(min, max)),
    "log_uniform_values": lambda dice, min, max: math.exp(dice.uniform(math.log(min), math.log(max))),
    "normal": lambda dice, mu=0.0, sigma=1.0: dice.gauss(mu, sigma),
    "log_normal": lambda dice, mu=0.0, sigma=1.0: math.exp(dice.gauss(mu, sigma)),
}
DISTRIBUTIONS = (*_DRAWS, *(f"q_{kind}" for kind in _DRAWS if kind != "int_uniform"))  # `q_…`: in multiples of `q`


def draw(spec: Mapping[str, Any], dice: random.Random) -> float:
    """One value, with six digits.

    Raises:
        UserError: arguments that the distribution lacks, or that are missing, out of its range, or lead beyond it.
    """
    spec = with_numbers(dict(spec))  # YAML 1.1 reads `1e-3` as text
    arguments = {name: value for name, value in spec.items() if name not in ("distribution", "q")}
    whole = all(isinstance(spec.get(name), int) for name in ("min", "max"))
    kind = spec.get("distribution") or ("int_uniform" if whole else "uniform")  # as W&B does
    try:
        if any(isinstance(value, bool) for value in arguments.values()):
            raise TypeError
        value = _DRAWS[kind.removeprefix("q_")](dice, **arguments)
        if kind.startswith("q_"):
            value = round(value / spec.get("q", 1.0)) * spec.get("q", 1.0)
        sensible = spec.get("min", 0) <= spec.get("max", math.inf) and spec.get("sigma", 1) > 0
        if math.isfinite(value) and sensible and (kind.startswith("q_") or "q" not in spec):
            return value if isinstance(value, int) else float(f"{value:.6g}")
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        pass  # said below, with what was given
    given = (
        ", ".join(f"{name} {value!r:.40}" for name, value in sorted(spec.items()) if name != "distribution")
        or "nothing"
    )
    raise UserError(f"nothing can be drawn from {kind} with {given}")
