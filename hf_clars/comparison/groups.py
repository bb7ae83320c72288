"""Runs that differ by their seed alone, as groups."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pandas import DataFrame

from ..configuration import with_numbers
from ..errors import UserError
from ..runtime.provenance import HOUSEKEEPING
from .runs import AXIS, ComparedRun, listed, words

# Settings that people name first; the order in which the default grouping tries them.
_FIRST = (
    "dataset", "model_name", "total_batch_size", "optim", "mode", "warmup_epochs", "warmup_steps", "learning_rate",
    "gamma_scale", "eta", "base_learning_rate",
)  # fmt: skip
_KNOWN_BY_VALUE = ("optim", "model_name", "dataset")
_NOT_COMPARED = HOUSEKEEPING | {
    "seed", "data_seed", "_n_gpu", "_name_or_path", "deepspeed", "hub_model_id", "hub_token", "local_rank",
    "logging_dir", "model/num_parameters", "num_classes", "project", "push_to_hub", "trackio_space_id",
    "transformers_version",
}  # fmt: skip
_PLACE = frozenset({"commit", "hardware"})  # where a run was made
_FROM_BATCH_SIZE = frozenset({"gradient_accumulation_steps", "per_device_train_batch_size"})
_NONE = "null"


def settings_of(runs: Iterable[ComparedRun]) -> DataFrame:
    """A row for each run, a column for each setting; equal settings are equal texts, and what a run lacks is None."""
    rows = [{key: plain(value) for key, value in run.config.items()} for run in runs]
    return DataFrame(rows, range(len(rows)), dtype=object).fillna(_NONE)


def varying(settings: DataFrame) -> list[str]:
    return sorted(key for key in settings if settings[key].nunique() > 1)


def compared_settings(keys: Iterable[str]) -> list[str]:
    """Without seeds and housekeeping."""
    return [key for key in keys if key not in _NOT_COMPARED and not key.startswith(("_", AXIS))]


def grouping(runs: Sequence[ComparedRun], asked: Sequence[str] | None = None) -> list[str]:
    """The settings that were asked for (a `UserError` if no run has one), or else those that tell runs apart: tried in
    the order data set, model, batch size, optimizer, its settings, all others by name; one that splits no group any
    further (η, where it goes with the optimizer) is left out."""
    if asked is not None:
        _check_keys("--group_by", asked, runs)
        return list(dict.fromkeys(asked))
    settings = settings_of(runs)
    apart = _PLACE | (_FROM_BATCH_SIZE if all("total_batch_size" in run.config for run in runs) else frozenset())
    chosen: list[str] = []
    parts = 1
    for key in sorted(compared_settings(varying(settings)), key=_rank):
        if key not in apart and (split := settings.groupby([*chosen, key]).ngroups) > parts:
            chosen.append(key)
            parts = split
    return sorted(chosen, key=lambda key: key != "optim")  # which people read first


def group_names(runs: Sequence[ComparedRun], keys: Sequence[str]) -> list[str]:
    """Of each run, the name of the group of those that have the same values of `keys`: `clars, total_batch_size=1024`.
    Groups of which the names would look the same are numbered."""
    names: dict[tuple[str, ...], str] = {}
    places = [tuple(plain(run.config.get(key)) for key in keys) for run in runs]
    for run, place in zip(runs, places, strict=True):
        if place not in names:
            parts = []
            for key, value in ((key, run.config.get(key)) for key in keys):
                if key in _KNOWN_BY_VALUE and value is not None:
                    parts.append(shown(value))
                elif key in _KNOWN_BY_VALUE or value is not None:  # that others have a setting is no name
                    parts.append(f"{key}={shown(value)}")
            name = ", ".join(parts) or "all runs"
            candidates = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
            names[place] = next(candidate for candidate in candidates if candidate not in names.values())
    return [names[place] for place in places]


def where(runs: Sequence[ComparedRun], conditions: Mapping[str, Sequence[str]]) -> list[ComparedRun]:
    """The runs whose settings are among `conditions`, key → values as text; a `UserError` if none is."""
    _check_keys("--where", conditions, runs)
    for key, wanted in conditions.items():
        texts = set(map(plain, wanted))
        there = list(dict.fromkeys(shown(run.config.get(key)) for run in runs))
        runs = [run for run in runs if plain(run.config.get(key)) in texts]
        if not runs:
            raise UserError(f"--where {key}={','.join(wanted)}: no run is left; {key} is {listed(there)}")
    return list(runs)


def mixed(settings: DataFrame) -> list[str]:
    """What is compared and differs between the runs of one group; last that of which some say nothing."""
    unsaid = {key for key in settings if settings[key][settings[key] != _NONE].nunique() < 2}
    return sorted(compared_settings(varying(settings)), key=lambda key: (key in unsaid, _rank(key)))


def remarks(groups: Mapping[str, Sequence[ComparedRun]]) -> list[str]:
    """Lines about groups of which runs differ by more than their seed, or where a seed comes twice."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, runs in groups.items():
        if keys := mixed(settings_of(runs)):
            found[f"runs differ in more than the seed: {listed(keys)}"].append(name)
        if twice := [seed for seed, times in Counter(map(seed_of, runs)).items() if seed and times > 1]:
            found[f"seed {listed(twice)} more than once, so seeds do not pair with others'"].append(name)
    others = {text: f" and {len(names) - 1} other groups" if len(names) > 1 else "" for text, names in found.items()}
    return [f"{names[0]}{others[text]}: {text}" for text, names in found.items()]


def seed_of(run: ComparedRun) -> str | None:
    """The seed as text that is equal where it is; None where the run does not know it."""
    seed = run.config.get("seed")
    return None if seed is None else plain(seed)


def shown(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    if isinstance(value, str) and value.isprintable():
        return value
    return "–" if value is None else words(json.dumps(value, ensure_ascii=False, default=str))


def plain(value: Any) -> str:
    """The same text for the same setting, whichever tool wrote it: `"1e-3"` is 0.001, 1 is 1.0, `"42"` is 42."""
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(with_numbers(value), sort_keys=True, default=str)
    return _plain_scalar(value)


@lru_cache(maxsize=100_000, typed=True)  # hundreds of runs have the same hundreds of settings
def _plain_scalar(value: Any) -> str:
    if isinstance(value, str):
        words = {"true": True, "false": False, "none": None, "null": None}
        try:
            value = words[value.lower()] if value.lower() in words else float(value)
        except ValueError:
            return json.dumps(value)
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, default=str)


def _rank(key: str) -> tuple[int, str]:
    return _FIRST.index(key) if key in _FIRST else len(_FIRST), key


def _check_keys(flag: str, keys: Iterable[str], runs: Sequence[ComparedRun]) -> None:
    for key in keys:
        if not any(key in run.config for run in runs):
            there = [name for name in varying(settings_of(runs)) if name not in HOUSEKEEPING]
            differ = listed(there, 40) or "none"
            raise UserError(f"{flag} {key}: no run has that setting; those that differ are {differ}")
