"""Sweep files as runs: all combinations of their parameters' values, or draws."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration import read_config
from ..errors import UserError
from ..safety.yaml_files import read_yaml
from ..validation.schema import read_as
from .grid import Run
from .schema import Parameter, SweepFile

_MOST_RUNS = 10_000
_OF_AGENTS = ("output_dir", "report_to")
_PYTHON = ("${env}", "${interpreter}", "/usr/bin/env", "python", "python3")


class Sweep(SweepFile):
    """What a sweep's file asks for, its files read: `settings` of all runs, and `parameters` in which they differ."""

    @property
    def launch(self) -> list[str]:
        """Words in front of the program: `accelerate launch …`."""
        return [word for word in self.command[:-2] if word not in _PYTHON]

    def runs(
        self,
        only: Mapping[str, Sequence[str]] | None = None,
        settings: Mapping[str, Any] | None = None,
        count: int | None = None,
        seed: int | None = None,
    ) -> list[Run]:
        """All combinations, the last parameter changing fastest; or draws, of which more begin with the same ones.

        Args:
            only: parameter → values, as text: a part of the runs. Of a grid with `run_cap`, of its first ones.
            settings: over those of all runs; none that parameters decide.
            count, seed: of the draws; `run_cap` and 0 by default.
        """
        given, axes = settings or {}, {n: p.listed() for n, p in self.parameters.items() if not p.is_drawn}
        whole = [*axes.values()]
        for axis, wanted in (only or {}).items():
            if axis not in axes:
                raise UserError(f"there is no axis {axis!r}: the axes are {', '.join(axes)}")
            values = {str(value): value for value in axes[axis]}
            if unknown := [value for value in wanted if value not in values]:
                raise UserError(f"{axis} is never {unknown[0]!r}: it is {', '.join(values)}")
            axes[axis] = [values[value] for value in dict.fromkeys(wanted)]
        number = math.prod(map(len, axes.values()))
        combinations: Iterable[tuple[Any, ...]] = itertools.product(*axes.values())
        if self.method == "grid" and self.run_cap is not None:
            number = min(number, self.run_cap)
            first = itertools.islice(itertools.product(*whole), self.run_cap)
            combinations = (v for v in first if all(one in axis for one, axis in zip(v, axes.values(), strict=True)))
        if number > _MOST_RUNS:
            raise UserError(f"these are {number:,} runs, and at most {_MOST_RUNS:,} are made: choose with --only")
        places = [dict(zip(axes, values, strict=True)) for values in combinations]
        if not places:
            raise UserError(f"none of the first {self.run_cap} runs, which run_cap leaves, is one of these")
        if self.method == "random":
            places = self._draws(places, count, seed)
        elif count is not None or seed is not None:
            raise UserError("--count and --seed are for sweeps with method: random; --only makes a part of a grid")
        return [Run(place, {**self.settings, **given, **self._chosen(place, given)}) for place in places]

    def _draws(self, places: Sequence[dict[str, Any]], count: int | None, seed: int | None) -> list[dict[str, Any]]:
        number = self.run_cap if count is None else count
        if number is None or not 1 <= number <= _MOST_RUNS:
            raise UserError(f"a random sweep is as long as you say, up to {_MOST_RUNS:,}: --count 20, or run_cap: 20")
        dice = random.Random(seed or 0)
        drawn = {name: parameter for name, parameter in self.parameters.items() if parameter.is_drawn}
        return [dice.choice(places) | {name: p.draw(dice) for name, p in drawn.items()} for _ in range(number)]

    def _chosen(self, place: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that stand for the values of parameters."""
        chosen: dict[str, Any] = {}
        for axis, value in place.items():
            choices = self.parameters[axis].choices
            its_own = {axis: value} if choices is None else choices[str(value)]
            for key in its_own.keys() & {**chosen, **settings}.keys():
                raise UserError(f"{key} is what {axis} varies: choose with --only, or edit the sweep's file")
            chosen |= its_own
        return chosen


def read_sweep(file: Path, preset: str | None = None) -> Sweep:
    """The sweep of a YAML file; raises `UserError` for what `SweepFile` does not take, or no such file or preset.

    A parameter `config` names YAML files of the recipe: their settings are the run's, where the sweep has none of that
    name, and its values are the files' names without `.yaml`. `report_to` and `output_dir`, of parameters or of such a
    file, are for W&B's agents.

    Paths, of `command` too, are looked up in the folders around the sweep's file, from the inside out, then in the
    working folder; a config that is nowhere is a recipe of the package. Data keep the name that the files have for
    them, and are looked up when a run is made (see `Runner`): a run is the same one wherever the program is started.
    """
    content = read_yaml(file, str(file))
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a sweep: method, parameters")
    if preset is not None:
        presets = content.get("presets")
        if not isinstance(presets, dict) or preset not in presets:
            known = ", ".join(map(str, presets)) if isinstance(presets, dict) else "none"
            raise UserError(f"{file} has no preset {preset!r}: it has {known}")
        content = _laid_over(content, presets[preset] or {})
    said: SweepFile = read_as(SweepFile, content, str(file))
    settings, parameters = dict(said.settings), {}
    for name, parameter in said.parameters.items():
        listed = parameter.choices is None and not parameter.is_drawn
        if name == "config" and listed:
            configs = _configs(file, parameter.listed(), {*said.parameters, *said.settings, *_OF_AGENTS})
            first, *others = configs.values()
            settings |= {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}
            choices = {stem: {k: v for k, v in c.items() if k not in settings} for stem, c in configs.items()}
            if parameter.value is None:
                parameters[name] = Parameter(choices=choices)
        elif listed and name not in _OF_AGENTS:
            if parameter.value is None:
                parameters[name] = Parameter(values=parameter.listed())
            else:
                settings[name] = parameter.value
        elif not listed:
            parameters[name] = parameter
    if not parameters and settings:  # one run, which wants a name
        name = "seed" if "seed" in settings else next(reversed(settings))
        parameters = {name: Parameter(values=[settings.pop(name)])}
    command = [located(file, word) if word.endswith(".yaml") else word for word in said.command]
    found = {"settings": settings, "parameters": parameters, "command": command}
    return Sweep.model_construct(**{**dict(said), **found})


def _laid_over(below: Any, above: Any) -> Any:
    """Mappings are merged at every depth; else what lies above stands."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _laid_over(below[key], v) if key in below else v for key, v in above.items()}}


def _configs(file: Path, paths: Sequence[Any], not_theirs: set[str]) -> dict[str, dict[str, Any]]:
    """Name → settings that the sweep does not have itself."""
    from ..image_classification.arguments import RecipeArguments
    from ..trainer import ClarsTrainingArguments

    configs: dict[str, dict[str, Any]] = {}
    for path in map(str, paths):
        there = located(file, path)
        called = Path(path).parent if Path(there).exists() else None  # a recipe of the package is anywhere
        settings = read_config(there, RecipeArguments, ClarsTrainingArguments, called=called)
        if Path(path).stem in configs:
            raise UserError(f"{file}: two configs have the name {Path(path).stem}, which their results would share")
        configs[Path(path).stem] = {k: v for k, v in settings.items() if k not in not_theirs}
    return configs


def located(file: Path, path: str) -> str:
    """`path` where it exists: around the sweep's file, whatever the working folder holds, or in that; else as it is."""
    places = (folder / path for folder in file.resolve().parents)
    return next((str(place) for place in places if place.exists()), path)
