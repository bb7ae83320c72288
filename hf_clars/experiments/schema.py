"""What a sweep's file may say: one schema for `hf-clars sweep`, `figure` and `tune`.

The keys are [W&B's](https://docs.wandb.ai/models/sweeps/define-sweep-configuration); `wandb sweep` takes a file with no
others. Ours, for more than W&B can do, are `settings`, `choices` of a parameter, `drawing`, `tuning` and `presets`.
`metric`, `name`, `description`, `project` and `entity` are W&B's business.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, StrictInt, model_validator

from ..configuration import with_numbers
from ..errors import UserError
from ..recipes.packaged import PROGRAM
from ..trainer.callbacks.layer_statistics import STATISTICS
from ..validation.schema import Section, one_of, said
from .results import CURVES

# How to draw from what W&B calls so.
_DRAWS: dict[str, Callable[..., float]] = {
    "uniform": lambda dice, min, max: dice.uniform(min, max),
    "int_uniform": lambda dice, min, max: dice.randint(min, max),
    "log_uniform": lambda dice, min, max: math.exp(dice.uniform(min, max)),
    "log_uniform_values": lambda dice, min, max: math.exp(dice.uniform(math.log(min), math.log(max))),
    "normal": lambda dice, mu=0.0, sigma=1.0: dice.gauss(mu, sigma),
    "log_normal": lambda dice, mu=0.0, sigma=1.0: math.exp(dice.gauss(mu, sigma)),
}
_DISTRIBUTIONS = (*_DRAWS, *(f"q_{kind}" for kind in _DRAWS if kind != "int_uniform"))  # `q_…`: in multiples of `q`


def _simple(value: Any) -> Any:
    if not isinstance(value, str | int | float):
        raise said(f"{value!r:.40} is nothing that W&B's flags can say: write a number, true, false, or JSON as text")
    return value


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(map(str, values))) < len(values) or not values:
        raise said(f"it needs values, none of them twice: {', '.join(map(str, values)) or 'there are none'}")
    return values


_Simple = Annotated[Any, AfterValidator(_simple)]
_Name = Annotated[str, Field(coerce_numbers_to_str=True)]  # YAML's keys may be numbers
_Settings = dict[str, Any]
_Distinct = AfterValidator(_distinct)


class Parameter(Section):
    """Either `value`, or `values`, or `choices`, some of which `values` may pick, or a distribution and its arguments.

    `choices` (name → settings) are ours: one value stands for several settings.
    """

    model_config = ConfigDict(extra="allow")

    value: _Simple = None
    values: Annotated[list[_Simple], _Distinct] | None = None
    choices: Annotated[dict[_Name, _Settings], Field(min_length=1)] | None = None
    distribution: Annotated[str, one_of(_DISTRIBUTIONS)] | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Parameter:
        given = self.model_fields_set
        if not given or any(getattr(self, name) is None for name in given):
            raise said("it needs a value, values, choices or a distribution, and null is none")
        if self.is_drawn:
            try:
                self.draw(random.Random(0))
            except UserError as error:
                raise said(str(error)) from None
        elif len(given) > 1 and given != {"values", "choices"}:
            raise said(f"{' and '.join(sorted(given))} do not go together")
        for value in self.values or ():
            if self.choices and str(value) not in self.choices:
                raise said(f"{value!r} is not among its choices {', '.join(self.choices)}")
        return self

    @property
    def is_drawn(self) -> bool:
        return not self.model_fields_set & {"value", "values", "choices"}

    def draw(self, dice: random.Random) -> float:
        """One value, with six digits; `UserError` for arguments that do not fit the distribution, or lead beyond it."""
        arguments = with_numbers(self.model_dump(exclude_unset=True))  # YAML 1.1 reads `1e-3` as text
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
        given = ", ".join(f"{name} {value!r:.40}" for name, value in sorted((self.model_extra or {}).items()))
        raise UserError(f"nothing can be drawn from {kind} with {given or 'nothing'}")

    def listed(self) -> list[Any]:
        """All values that it takes."""
        return self.values or list(self.choices or [self.value])


class Drawing(Section):
    """A picture: a column and a line for each of the values of some parameters; a row for each quantity of the curve,
    or statistic of layers, of which each has its line. Colours are of the first of `lines`, dashes of the second."""

    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: Annotated[list[Annotated[str, one_of((*CURVES, *STATISTICS))]], Field(min_length=1)]
    lines: Annotated[tuple[str, ...], Field(max_length=2)] = ()


class Tuning(Section):
    """A fair comparison, see `tuning.py`."""

    search: _Settings
    seeds: Annotated[list[StrictInt], _Distinct]
    trials: Annotated[dict[_Name, list[_Settings]], Field(min_length=1)]

    @model_validator(mode="after")
    def _fair(self) -> Tuning:
        for method, tried in self.trials.items():
            if both := self.search.keys() & {key for trial in tried for key in trial}:
                raise said(f"{min(both)} stands in search and in trials of {method}: one of them may have it")
        if len({len(tried) for tried in self.trials.values()}) > 1 or [] in self.trials.values():
            counts = ", ".join(f"{method} {len(tried)}" for method, tried in self.trials.items())
            raise said(f"every method needs as many trials: they have {counts}")
        return self


class SweepFile(Section):
    """The whole file, one of its presets laid over it. `settings` are of all runs, as in a `--config` file."""

    method: Annotated[str, one_of(("grid", "random"))]
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    program: str = PROGRAM
    command: list[str] = Field(default=["${program}", "${args}"])
    run_cap: Annotated[StrictInt, Field(ge=1)] | None = None
    settings: _Settings = Field(default={})
    drawing: Drawing | None = None
    tuning: Tuning | None = None
    presets: dict[str, _Settings | None] = Field(default={})
    metric: Any = None
    name: Any = None
    description: Any = None
    project: Any = None
    entity: Any = None

    @model_validator(mode="after")
    def _consistent(self) -> SweepFile:
        if Path(self.program).name != PROGRAM:
            raise said(f"program {self.program!r} is not our recipe, recipes/{PROGRAM}: use `wandb sweep` for it")
        if self.command[-2:] not in (["${program}", "${args}"], ["${program}", "${args_no_equals}"]):
            raise said("command must end in ${program}, ${args}: flags that all runs get are parameters")
        for name, parameter in self.parameters.items():
            if parameter.is_drawn and self.method == "grid":
                raise said(f"parameter {name!r}: a grid has values, and no distributions")
            if name in self.settings:
                raise said(f"{name!r} stands in settings and in parameters: one of them may have it")
        for name in (*self.drawing.columns, *self.drawing.lines) if self.drawing else ():
            if name not in self.parameters:
                raise said(f"drawing has {name!r}, which is no parameter: {', '.join(self.parameters)}")
        if self.tuning is not None:
            if self.run_cap is not None:
                raise said("run_cap would cut off some methods of a tuning: leave it out")
            methods = self.parameters["method"].listed() if "method" in self.parameters else []
            if (
                self.method != "grid"
                or not {str(method) for method in methods} <= self.tuning.trials.keys()
                or not methods
            ):
                raise said("tuning needs a grid with a parameter 'method', and trials for each of its values")
        return self
