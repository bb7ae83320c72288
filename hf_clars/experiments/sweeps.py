"""Sweeps as `wandb sweep` has them, read as grids, so that one file serves both.

Taken of [W&B's format](https://docs.wandb.ai/models/sweeps/define-sweep-configuration) are `program`, `command`,
`method` (grid or random), `run_cap`, and `parameters` with `value`, `values` or a distribution. `metric`, `name`,
`description`, `project` and `entity` are W&B's business. What cannot be done here is said in one line.
"""

from __future__ import annotations

import difflib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration import read_config
from ..errors import UserError
from .distributions import check, named, sample
from .grid import Grid, Run, read_mapping
from .sweep_command_line import read_command

_KEYS = (
    "program", "command", "method", "parameters", "metric", "name", "description", "project", "entity", "run_cap",
)  # fmt: skip
_NOT_HERE = ("controller", "early_terminate", "image_uri", "job", "launch", "scheduler")
_OF_AGENTS = ("output_dir", "report_to")
ELSEWHERE = "`hf-clars sweep` cannot do that, `wandb sweep` can"


@dataclass(frozen=True)
class Sweep:
    """What a sweep's YAML says.

    Attributes:
        grid: parameters with values; of a random sweep, values to choose from.
        distributions: parameters that are drawn otherwise, in a random sweep.
        is_random: whether runs are draws, not all combinations.
        run_cap: how many draws, if the file says so.
        launch: words in front of the program: `accelerate launch …`.
    """

    grid: Grid
    distributions: Mapping[str, Mapping[str, Any]]
    is_random: bool
    run_cap: int | None
    launch: Sequence[str]

    def runs(
        self,
        only: Mapping[str, Sequence[str]] | None = None,
        settings: Mapping[str, Any] | None = None,
        count: int | None = None,
        seed: int = 0,
    ) -> list[Run]:
        """All runs, or the first `count` (by default `run_cap`) draws of `seed`; more draws begin with the same ones.

        Raises:
            UserError: as `Grid.runs`; draws whose number is not stated, or a number that a grid is given.
        """
        if not self.is_random:
            if count is not None:
                raise UserError(f"--count {count} is for sweeps with method: random; take a part of a grid with --only")
            return self.grid.runs(only, settings)
        count = self.run_cap if count is None else count
        if count is None or count < 1:
            raise UserError("a random sweep is as long as you say: --count 20, or run_cap: 20 in its file")
        for key in self.distributions.keys() & {*(only or {}), *(settings or {})}:
            raise UserError(f"{key} is what the sweep draws: edit its file")
        return list(itertools.islice(self._draws(self.grid.runs(only, settings), random.Random(seed)), count))

    def _draws(self, points: Sequence[Run], dice: random.Random) -> Iterator[Run]:
        while True:
            point = dice.choice(points)
            drawn = {name: sample(dice, spec) for name, spec in self.distributions.items()}
            yield Run({**point.place, **drawn}, {**point.settings, **drawn})


def read_sweep(file: Path) -> Sweep:
    """The sweep of a YAML file.

    A parameter `config` names YAML files of the recipe: their settings are the run's, where the sweep has none of that
    name, and the axis has the files' names without `.yaml`. Paths are looked up in the working folder, then in those
    around the sweep's file. `report_to` and `output_dir`, of the sweep or of such a file, are for W&B's agents.

    Raises:
        UserError: no such file, keys that are not known, parameters that are missing, empty or nothing that a flag can
            say, a program that is not the recipe, or what W&B can do and we cannot.
    """
    content = read_mapping(file, "a sweep: program, method, parameters")
    for key in map(str, content):
        if key in _NOT_HERE:
            raise UserError(f"{file} has {key!r}: {ELSEWHERE}")
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f": a sweep has {', '.join(_KEYS)}"
            raise UserError(f"{file}: unknown key {key!r}{hint}")
    method, cap = content.get("method"), content.get("run_cap")
    if method not in ("grid", "random"):
        other = f": {ELSEWHERE}" if method == "bayes" else ", which must be grid or random"
        raise UserError(f"{file} has method {method!r}{other}")
    if cap is not None and (type(cap) is not int or cap < 1):
        raise UserError(f"{file}: run_cap must be a whole number of at least 1, not {cap!r}")
    launch, fixed = read_command(file, content)
    given = {name: {"values": [value]} for name, value in fixed.items()}
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"{file} needs parameters: name → value, values or a distribution")
    for name, spec in parameters.items():
        try:
            given[str(name)] = _parameter(spec, method == "random")
        except UserError as error:
            raise UserError(f"{file}: parameter {name!r}: {error}") from None
    values = {name: spec["values"] for name, spec in given.items() if "values" in spec and name not in _OF_AGENTS}
    distributions = {name: spec for name, spec in given.items() if "values" not in spec}
    return Sweep(_grid(file, values, set(given)), distributions, method == "random", cap, launch)


def _parameter(spec: Any, is_random: bool) -> dict[str, Any]:
    """Either with `values`, or a distribution that was checked."""
    if not isinstance(spec, dict):
        raise UserError(f"write value: …, values: […] or a distribution, not {spec!r}")
    if "parameters" in spec:
        raise UserError(f"it is nested: {ELSEWHERE}")
    if not {"value", "values"} & spec.keys():
        if named(spec) is None:
            raise UserError("it has no value, no values and no distribution")
        if not is_random:
            raise UserError(f"a grid has values, and no distribution {named(spec)!r}")
        check(spec)
        return spec
    values = [spec["value"]] if "value" in spec else spec["values"]
    if "probabilities" in spec:
        raise UserError(f"it has probabilities: {ELSEWHERE}")
    if not isinstance(values, list) or not values:
        raise UserError(f"values must be a list with something in it, not {values!r}")
    for value in values:
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{value!r} is nothing that W&B's flags can say: write a number, true, false, or JSON as text"
            )
    if len(set(map(str, values))) < len(values):
        raise UserError(f"it has a value twice: {', '.join(map(str, values))}")
    return {"values": values}


def _grid(file: Path, values: dict[str, list[Any]], given: set[str]) -> Grid:
    """Parameters with several values are its axes; settings that all runs have in common, its base."""
    common: dict[str, Any] = {}
    choices: dict[str, dict[str, dict[str, Any]]] = {}
    if "config" in values:
        configs = _configs(file, values["config"], given)
        first, *others = configs.values()
        common = {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}
        if others:
            values = {**values, "config": list(configs)}
            choices["config"] = {
                name: {k: v for k, v in settings.items() if k not in common} for name, settings in configs.items()
            }
        else:
            values = {name: v for name, v in values.items() if name != "config"}
    if "dataset" in values:
        values = {**values, "dataset": [_found(file, str(name)) for name in values["dataset"]]}
    axes = {name: v for name, v in values.items() if len(v) > 1}
    if not axes and values:  # one run, which wants a name
        name = "seed" if "seed" in values else next(reversed(values))
        axes = {name: values[name]}
    base = {**common, **{name: v[0] for name, v in values.items() if name not in axes}}
    return Grid(base, axes, choices, {})


def _configs(file: Path, paths: Sequence[Any], given: set[str]) -> dict[str, dict[str, Any]]:
    """Name → settings that the sweep does not have itself."""
    from ..image_classification.arguments import RecipeArguments
    from ..trainer import ClarsTrainingArguments

    configs: dict[str, dict[str, Any]] = {}
    for path in map(str, paths):
        settings = read_config(_found(file, path), RecipeArguments, ClarsTrainingArguments)
        name = Path(path).stem
        if name in configs:
            raise UserError(f"{file}: two configs are called {name}: rename one, results are kept under these names")
        configs[name] = {k: v for k, v in settings.items() if k not in given and k not in _OF_AGENTS}
    return configs


def _found(file: Path, path: str) -> str:
    """`path` where it exists: in the working folder, or in one around the sweep's file; else as it is."""
    places = (Path(path), *(folder / path for folder in file.resolve().parents))
    return next((str(place) for place in places if place.exists()), path)
