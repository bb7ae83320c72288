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
    arguments = with_numbers(dict(spec))  # YAML 1.1 reads `1e-3` as text
    low, high, sigma = arguments.get("min", 0), arguments.get("max", math.inf), arguments.get("sigma", 1)
    whole = isinstance(low, int) and isinstance(high, int)
    kind = arguments.pop("distribution", None) or ("int_uniform" if whole else "uniform")  # as W&B does
    step = arguments.pop("q", 1.0) if kind.startswith("q_") else None
    try:
        value = _DRAWS[kind.removeprefix("q_")](dice, **arguments)
        value = value if step is None else round(value / step) * step
        if math.isfinite(value) and low <= high and sigma > 0 and bool not in map(type, arguments.values()):
            return value if isinstance(value, int) else float(f"{value:.6g}")
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        pass  # said below, with what was given
    given = ", ".join(f"{name} {value!r:.40}" for name, value in sorted(spec.items()) if name != "distribution")
    raise UserError(f"nothing can be drawn from {kind} with {given or 'nothing'}")
