"""Runs that differ by their seed alone, as groups."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..configuration import with_numbers
from ..errors import UserError
from ..experiments.grid import HOUSEKEEPING
from .runs import AXIS, ComparedRun

SEEDS = ("seed", "data_seed")

# Settings that people name first; the order in which the default grouping tries them.
_FIRST = (
    "dataset", "model_name", "total_batch_size", "optim", "norm_mode", "warmup_epochs", "warmup_steps", "learning_rate",
    "gamma_scale", "eta", "base_learning_rate",
)  # fmt: skip

# Beside what grids count as housekeeping: where a run was made.
_PLACE = frozenset({"commit", "hardware"})
_TECHNICAL = HOUSEKEEPING | {
    *SEEDS, "_n_gpu", "_name_or_path", "deepspeed", "hub_model_id", "hub_token", "local_rank", "logging_dir",
    "model/num_parameters", "num_classes", "project",
    "push_to_hub", "trackio_space_id", "transformers_version",
}  # fmt: skip
_FROM_BATCH_SIZE = frozenset({"gradient_accumulation_steps", "per_device_train_batch_size"})


@dataclass(frozen=True)
class Group:
    """Runs with the same values of the settings that are compared.

    Attributes:
        name: for people: `clars, total_batch_size=1024`.
        settings: key → value of the settings that it was grouped by.
        runs: of whatever seeds and states.
    """

    name: str
    settings: Mapping[str, Any]
    runs: Sequence[ComparedRun]

    def sharing(self) -> dict[str, Any]:
        """The settings that have one value in all of its runs."""
        first, *rest = (run.config for run in self.runs)
        return {k: v for k, v in first.items() if all(_same(v, config.get(k)) for config in rest)}

    def mixed(self) -> list[str]:
        """The settings, apart from seeds and housekeeping, that differ between its runs; first those of which runs say
        different things, then those of which some say nothing."""
        keys = compared_settings(varying(self.runs))
        unsaid = {key for key in keys if len({_plain(r.config[key]) for r in self.runs if key in r.config}) < 2}
        return sorted(keys, key=lambda key: (key in unsaid, _rank(key), key))


def seed_of(run: ComparedRun) -> Hashable | None:
    """The value of `seed` as one to compare; None where the run does not know it."""
    seed = run.config.get("seed")
    return None if seed is None else _plain(seed)


def varying(runs: Iterable[ComparedRun]) -> list[str]:
    """The settings that have more than one value among runs, a missing one counting as None; sorted."""
    runs = list(runs)
    keys = sorted({key for run in runs for key in run.config})
    return [key for key in keys if len({_plain(run.config.get(key)) for run in runs}) > 1]


def compared_settings(keys: Iterable[str]) -> list[str]:
    """Without seeds and housekeeping."""
    return [key for key in keys if key not in _TECHNICAL and not key.startswith(("_", AXIS))]


def group_runs(runs: Sequence[ComparedRun], keys: Sequence[str] | None = None) -> list[Group]:
    """Groups in the order of their first run, by the settings `keys` or by `default_keys(runs)`.

    Raises:
        UserError: a key that no run has.
    """
    for key in keys or ():
        _check_key("--group-by", key, runs)
    keys = default_keys(runs) if keys is None else list(dict.fromkeys(keys))
    members: dict[tuple[str, ...], list[ComparedRun]] = defaultdict(list)
    for run in runs:
        members[tuple(_plain(run.config.get(key)) for key in keys)].append(run)
    groups = [{key: group[0].config.get(key) for key in keys} for group in members.values()]
    names = [_name(settings) for settings in groups]
    names = [f"{n} ({names[:i].count(n) + 1})" if n in names[:i] else n for i, n in enumerate(names)]
    return [Group(*group) for group in zip(names, groups, members.values(), strict=True)]


def default_keys(runs: Sequence[ComparedRun]) -> list[str]:
    """The settings that tell runs apart, but for seeds, housekeeping, and those that add nothing to the ones before.

    They are tried in the order data set, model, batch size, optimizer, its settings, all others by name; one that
    splits no group any further (η, where it goes with the optimizer) is left out, but listed in the report.
    """
    apart = _TECHNICAL | _PLACE
    if all("total_batch_size" in run.config for run in runs):
        apart |= _FROM_BATCH_SIZE
    candidates = [key for key in varying(runs) if key not in apart and not key.startswith(("_", AXIS))]
    candidates.sort(key=lambda key: (_rank(key), key))
    chosen: list[str] = []
    places: list[tuple[str, ...]] = [()] * len(runs)
    for key in candidates:
        split = [(*place, _plain(run.config.get(key))) for place, run in zip(places, runs, strict=True)]
        if len(set(split)) > len(set(places)):
            chosen.append(key)
            places = split
    return sorted(chosen, key=lambda key: key != "optim")  # which people read first


def where(runs: Sequence[ComparedRun], conditions: Mapping[str, Sequence[str]]) -> list[ComparedRun]:
    """The runs whose settings are among `conditions`, key → values as text.

    Raises:
        UserError: a key that no run has, or nothing is left.
    """
    for key, wanted in conditions.items():
        _check_key("--where", key, runs)
        texts = {_plain(value) for value in wanted}
        there = list(dict.fromkeys(shown(run.config.get(key)) for run in runs))
        runs = [run for run in runs if _plain(run.config.get(key)) in texts]
        if not runs:
            raise UserError(f"--where {key}={','.join(wanted)}: no run is left; {key} is {_listed(there)}")
    return list(runs)


def remarks(groups: Sequence[Group]) -> list[str]:
    """Lines about groups of which runs differ by more than their seed, or where a seed comes twice."""
    found: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        if mixed := group.mixed():
            found[f"runs differ in more than the seed: {_listed(mixed)}"].append(group.name)
        seeds = Counter(seed for run in group.runs if (seed := seed_of(run)) is not None)
        if twice := [shown(json.loads(str(seed))) for seed, count in seeds.items() if count > 1]:
            found[f"seed {_listed(twice)} more than once, so seeds do not pair with others'"].append(group.name)
    return [
        f"{names[0]}{f' and {len(names) - 1} other groups' if len(names) > 1 else ''}: {text}"
        for text, names in found.items()
    ]


def shown(value: Any) -> str:
    """A setting for people."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _rank(key: str) -> int:
    return _FIRST.index(key) if key in _FIRST else len(_FIRST)


def _check_key(flag: str, key: str, runs: Sequence[ComparedRun]) -> None:
    if not any(key in run.config for run in runs):
        there = [name for name in varying(runs) if name not in HOUSEKEEPING]
        raise UserError(f"{flag} {key}: no run has that setting; those that differ are {_listed(there, 40)}")


def _name(settings: Mapping[str, Any]) -> str:
    """`clars, total_batch_size=1024`: an optimizer, a model and a data set are known by their names."""
    plain = {"optim", "model_name", "dataset"}
    parts = [
        shown(value) if key in plain and value is not None else f"{key}={shown(value)}"
        for key, value in settings.items()
        if key in plain or value is not None  # that others have it is no name
    ]
    return ", ".join(parts) or "all runs"


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + rest


def _same(a: Any, b: Any) -> bool:
    return _plain(a) == _plain(b)


def _plain(value: Any) -> str:
    """The same text for the same setting, whichever tool wrote it: `"1e-3"` is 0.001, 1 is 1.0, `"42"` is 42."""
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(with_numbers(value), sort_keys=True, default=str)
    return _plain_scalar(value)


@lru_cache(maxsize=100_000, typed=True)  # hundreds of runs have the same hundreds of settings
def _plain_scalar(value: Any) -> str:
    if isinstance(value, str):
        value = _read(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, default=str)


def _read(text: str) -> Any:
    """A number or truth value that was written as text, such as one of the command line."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("none", "null"):
        return None
    try:
        return float(text)
    except ValueError:
        return text
