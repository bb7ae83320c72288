"""What a sweep's `program` and `command` start: it has to be our recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

PROGRAM = "imagenet_clars.py"
_DEFAULT = ("${env}", "${interpreter}", "${program}", "${args}")
_PYTHON = ("${env}", "${interpreter}", "/usr/bin/env", "python", "python3")
_ARGS = ("${args}", "${args_no_equals}")


def read_command(file: Path, content: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Words in front of the recipe, such as `accelerate launch`, and flags that all runs get after it.

    Raises:
        UserError: another program, no `${args}`, or words that are no flags after the program.
    """
    program, command = content.get("program"), content.get("command", list(_DEFAULT))
    if not isinstance(command, list) or not command:
        raise UserError(f"{file}: command must be a list of words, not {command!r}")
    words = list(map(str, command))
    for start in (["${program}"], ["hf-clars", "train"]):
        if (at := _index(words, start)) is not None:
            break
    else:
        raise UserError(f"{file}: command has neither ${{program}} nor hf-clars train in it")
    if start == ["${program}"] and Path(str(program)).name != PROGRAM:
        raise UserError(f"{file}: program {program!r} is not our recipe, recipes/{PROGRAM}: use `wandb sweep` for it")
    rest = [word for word in words[at + len(start) :] if word not in _ARGS]
    if len(words) - at - len(start) == len(rest):
        raise UserError(f"{file}: command must end in ${{args}}, which are the run's settings as flags")
    return [word for word in words[:at] if word not in _PYTHON], _flags(file, rest)


def _index(words: list[str], wanted: list[str]) -> int | None:
    return next((i for i in range(len(words)) if words[i : i + len(wanted)] == wanted), None)


def _flags(file: Path, words: list[str]) -> dict[str, Any]:
    """`--key value` and `--key=value`."""
    flags: dict[str, Any] = {}
    while words:
        key, equals, value = words.pop(0).partition("=")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        name = key.removeprefix("--").replace("-", "_")
        if not key.startswith("--") or not name.isidentifier() or not value or "${" in value:
            raise UserError(f"{file}: command has {key!r} after the program: write --key value")
        flags[name] = value
    return flags
