"""A YAML file and command-line flags into dataclasses; the flags win."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from .command_line import Parser, refuse
from .errors import UserError, one_line
from .recipes.packaged import TRAININGS, find
from .safety.yaml_files import read_yaml

# What says the same in other words: a flag takes the place of these in the file.
_IN_PLACE_OF = {
    "warmup_epochs": ("warmup_steps",), "warmup_steps": ("warmup_epochs",),
    "learning_rate": ("base_learning_rate", "base_batch_size"),
    "base_learning_rate": ("learning_rate",), "base_batch_size": ("learning_rate",),
}  # fmt: skip
_EXPONENTIAL = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def parse(argv: list[str], *kinds: type, defaults: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """`--config FILE.yaml --key value …` → one instance of each dataclass.

    Keys of the file and flags have the names of the dataclasses' fields. A flag wins over its key, and over one that
    says the same in other words: `warmup_epochs` over the file's `warmup_steps`. `--key null` is YAML's null, for
    fields that are None by default: it takes the file's key out. `defaults` go over those of the dataclasses.

    Raises:
        UserError: neither such a file nor such a recipe, no YAML mapping, unknown keys or flags (the nearest name is
            given), one that stands twice, unreadable values, empty text.
    """
    head = Parser(add_help=False, allow_abbrev=False)
    head.add_argument("--config", action="append", default=[])
    given, flags = head.parse_known_args(argv)
    if len(given.config) > 1:
        raise UserError(f"--config {given.config[1]}: one file is read, and {given.config[0]} is given, too")
    known = {f.name: f for kind in kinds for f in fields(kind) if f.init}
    values = read_config(given.config[0], *kinds) if given.config else {}

    parser = HfArgumentParser(list[Any](kinds), add_help=False)
    parser.add_argument("--config")
    parser.error = refuse  # type: ignore[method-assign]
    found: dict[str, str] = {}
    nulls: set[int] = set()
    for place, flag in enumerate(flags):
        if not flag.startswith("--"):
            continue
        word, equals, value = flag.partition("=")
        name = word.removeprefix("--").replace("-", "_").removeprefix("no_")
        if name not in known:
            raise UserError(f"unknown flag {flag}{_hint(name, known)}")
        if name in found:
            raise UserError(
                f"{word}: {found[name]} is given before it, and one of them would be ignored: leave one out"
            )
        found[name] = word
        words = [value] if equals else flags[place + 1 : place + 2]
        if words == ["null"] and known[name].default is None:
            values.pop(name, None)
            nulls |= {place} if equals else {place, place + 1}
            continue
        if words and _is_empty(known[name], words[0]):
            raise UserError(f"{word} is empty: give it a value, or leave it out")
        for other in _IN_PLACE_OF.get(name, ()):
            values.pop(other, None)
    flags = [flag for place, flag in enumerate(flags) if place not in nulls]
    parser.set_defaults(**(defaults or {}))
    parser.set_defaults(**{key: _as_typed(known[key], value) for key, value in values.items()})
    try:
        *instances, stray = parser.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError) as error:  # transformers' own checks
        if isinstance(error, UserError):
            raise
        raise UserError(one_line(error)) from error
    if stray:
        raise UserError(f"unexpected argument {stray[0]!r}: values follow a --flag")
    return tuple(instances[: len(kinds)])


def read_config(path: str | Path, *kinds: type, called: Path | None = None) -> dict[str, Any]:
    """What a `--config` file says, as YAML has it; keys are fields of the dataclasses.

    Where there is no file `path`, it is the name of one of the package's recipes. A folder that the file gives for
    `dataset` is one beside the file, if there is one of that name, whatever the working folder holds; else one in the
    working folder; else a name on the Hub.

    Args:
        called: what the name of a data set beside the file begins with; the file's folder by default.

    Raises:
        UserError: as `parse`.
    """
    known = {f.name: f for kind in kinds for f in fields(kind) if f.init}
    file = find(str(path), TRAININGS, f"--config {path}")
    values = read_yaml(file, f"--config {path}") or {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold keys and values, not a {type(values).__name__}")
    for key in values:
        if key not in known:
            raise UserError(f"--config {path}: unknown key {key!r}{_hint(str(key), known)}")
        if isinstance(values[key], str) and _is_empty(known[key], values[key]):
            raise UserError(f"--config {path}: {key} is empty: give it a value, or leave it out")
    dataset = values.get("dataset")
    if isinstance(dataset, str) and dataset and os.path.isdir(os.path.join(file.parent, dataset)):
        values["dataset"] = os.path.join(file.parent if called is None else called, dataset)
    return values


def _is_empty(field: Any, text: str) -> bool:
    """W&B chooses an empty `run_name` itself; any other text is empty by mistake, unless that is the default."""
    return not text.strip() and field.name != "run_name" and field.default != ""


def _as_typed(field: Any, value: Any) -> Any:
    """A YAML value as it would be typed on the command line, so that argparse converts both alike.

    YAML 1.1 reads `1e-2` as text and `no` as False.
    """
    if value is None or isinstance(value, (str, list, dict)):
        return with_numbers(value) if isinstance(value, dict) else value
    if isinstance(value, bool) and not isinstance(field.default, bool):
        return "yes" if value else "no"
    return str(value)


def with_numbers(value: Any) -> Any:
    """The same with `"1e-4"` as a number, which YAML 1.1 takes for text, in mappings and lists at any depth."""
    if isinstance(value, dict):
        return {key: with_numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [with_numbers(v) for v in value]
    return float(value) if isinstance(value, str) and _EXPONENTIAL.fullmatch(value) else value


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
