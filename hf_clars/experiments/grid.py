"""A set of runs as YAML: settings that all have in common, and axes whose values are combined."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration import with_numbers
from ..errors import UserError
from ..runtime.provenance import HOUSEKEEPING
from ..safety.yaml_files import read_yaml

_SECTIONS = {"base", "axes", "choices", "presets", "tuning"}


@dataclass(frozen=True)
class Run:
    """One run of a grid.

    Attributes:
        place: axis → value: where in the grid it is.
        settings: keys of the recipe, as in its YAML files.
    """

    place: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Eight hexadecimal digits that change with any setting that changes what is computed.

        The data set counts under the name that the settings have for it, wherever `--data_dir` finds it.
        """
        computed = {k: _plain(v) for k, v in self.settings.items() if k not in HOUSEKEEPING and v is not None}
        computed["dataset"] = str(computed.get("dataset", "")).rstrip("/")
        if self.settings.get("gradient_variance", "none") != "none":
            computed["per_device_eval_batch_size"] = self.settings.get("per_device_eval_batch_size")
        return hashlib.sha256(json.dumps(computed, sort_keys=True, default=str).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """For people: `resnet56_cifar lars B=8192 seed=0`."""
        return " ".join(v if isinstance(v, str) else f"{k}={v}" for k, v in self.place.items())

    @property
    def file_name(self) -> str:
        words = re.sub(r"[^\w.=-]+", "-", self.title.replace(" ", "_"))
        return f"{words[:120]}-{self.key}"

    def flags(self) -> list[str]:
        """The settings as command-line flags of the recipe."""
        return [text for key, value in self.settings.items() if value is not None for text in _flag(key, value)]


@dataclass(frozen=True)
class Grid:
    """What a grid's YAML says, one preset chosen.

    The file has `base` (settings of all runs), `axes` (name → list of values; the runs are all combinations, the last
    axis changing fastest) and `choices` (axis → value → settings, for axes that are no key of the recipe), and may
    have `presets` (name → the same, which are laid over the file's own; axes replace axes of that name) and `tuning`
    (see `tuning.py`).
    """

    base: Mapping[str, Any]
    axes: Mapping[str, Sequence[Any]]
    choices: Mapping[str, Mapping[str, Mapping[str, Any]]]
    tuning: Mapping[str, Any]

    def runs(
        self, only: Mapping[str, Sequence[str]] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[Run]:
        """All runs, or those whose values are among `only` (as text); `settings` go over those of `base`.

        Raises:
            UserError: an axis or value that the grid does not have; a setting that is an axis' to decide.
        """
        axes = dict(self.axes)
        for axis, wanted in (only or {}).items():
            if axis not in axes:
                raise UserError(f"there is no axis {axis!r}: the axes are {', '.join(axes)}")
            values = {str(value): value for value in axes[axis]}
            unknown = [value for value in wanted if value not in values]
            if unknown:
                raise UserError(f"{axis} is never {unknown[0]!r}: it is {', '.join(values)}")
            axes[axis] = [values[value] for value in dict.fromkeys(wanted)]
        places = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        extra = dict(settings or {})
        for place in places:
            for key in self._chosen(place).keys() & extra.keys():
                raise UserError(f"{key} is what the grid's axes vary: choose with --only, or edit the grid's file")
        return [Run(place, {**self.base, **extra, **self._chosen(place)}) for place in places]

    def _chosen(self, place: Mapping[str, Any]) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for axis, value in place.items():
            chosen |= self.choices[axis][str(value)] if axis in self.choices else {axis: value}
        return chosen


def read_grid(file: Path, preset: str | None = None) -> Grid:
    """The grid of a YAML file.

    Raises:
        UserError: no such file or preset, no YAML mapping, an unknown section, an axis that is no list, or a value that
            is not among the choices of its axis.
    """
    content = read_mapping(file, "axes: name → list of values")
    presets = _section(file, content, "presets")
    if preset is not None and preset not in presets:
        raise UserError(f"{file.name} has no preset {preset!r}: it has {', '.join(presets) or 'none'}")
    base: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    choices: dict[str, dict[str, dict[str, Any]]] = {}
    tuning: dict[str, Any] = {}
    for layer in [content] + ([_section(file, presets, preset)] if preset is not None else []):
        for section in layer:
            if section not in _SECTIONS:
                raise UserError(f"{file}: unknown section {section!r}: the sections are {', '.join(sorted(_SECTIONS))}")
        base |= _section(file, layer, "base")
        axes |= _section(file, layer, "axes")
        tuning |= _section(file, layer, "tuning")
        for axis, values in _section(file, layer, "choices").items():
            for value in _section(file, layer["choices"], axis):
                settings = _section(file, values, value)
                choices.setdefault(str(axis), {}).setdefault(str(value), {}).update(settings)
    if not axes:
        raise UserError(f"{file} must hold axes: name → list of values")
    for axis, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{file}: axis {axis!r} must be a list of values, not {values!r}")
        if len(set(map(str, values))) < len(values):
            raise UserError(f"{file}: axis {axis!r} has a value twice: {', '.join(map(str, values))}")
        for value in values:
            if axis in choices and str(value) not in choices[axis]:
                raise UserError(f"{file}: {axis} {value!r} is not among its choices {', '.join(choices[axis])}")
    return Grid(base, axes, choices, tuning)


def read_mapping(file: Path, wanted: str) -> dict[str, Any]:
    """A YAML file that holds keys and values; raises `UserError` with what is `wanted` in it where it does not."""
    content = read_yaml(file, str(file))
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold {wanted}")
    return content


def _section(file: Path, content: Mapping[Any, Any], name: Any) -> dict[Any, Any]:
    """A mapping in a mapping; empty where there is none."""
    section = content.get(name)
    if section is not None and not isinstance(section, dict):
        raise UserError(f"{file}: {name!r} must hold keys and values, not {section!r}")
    return section or {}


def _plain(value: Any) -> Any:
    """Numbers as numbers: YAML 1.1 reads `1e-3` as text, and 1 is 1.0."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    try:
        return float(value) if isinstance(value, str | int) and not isinstance(value, bool) else value
    except ValueError:
        return value


def _flag(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}", "true" if value else "false"]
    if isinstance(value, Mapping):
        return [f"--{key}", json.dumps(with_numbers(value))]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", str(value)]
