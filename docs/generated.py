"""What the reference says of settings and commands, read off the package: Markdown, by the name of the part."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, Field, fields
from enum import Enum
from io import StringIO
from typing import Any, get_type_hints
from unittest import mock

from pydantic import TypeAdapter

from hf_clars.cli import COMMANDS, main
from hf_clars.image_classification.arguments import DEFAULTS
from hf_clars.image_classification.fields import RecipeFields
from hf_clars.image_classification.help import Transformers, topics
from hf_clars.trainer.arguments.clars_fields import ClarsFields
from hf_clars.trainer.arguments.options import NOT_TAKEN, OPTIMIZERS, OptimizerOptions

_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false",
          "object": "mapping", "array": "list"}  # fmt: skip
_RANGE = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def arguments() -> str:
    """Every key of a `--config` file, which is a flag and an argument, too, by topic."""
    hints = _hints(RecipeFields, ClarsFields, Transformers)
    sections = []
    for topic, known in topics(everything=True).items():
        rows = [
            [f'<span id="{f.name}"></span>`{f.name}`', _default(f), _values(hints.get(f.name, Any)), _meaning(f)]
            for f in known
        ]
        sections += [f"## {topic[0].upper()}{topic[1:]}", _table(["argument", "default", "value", "meaning"], rows)]
    own = ", ".join(f"`{name}: {str(value).lower()}`" for name, value in DEFAULTS.items())
    return "\n\n".join([f"`hf-clars train` has some defaults of its own: {own}.", *sections])


def optimizer_options() -> str:
    """Every key of `optim_args`, with what each optimizer takes where it is silent."""
    meanings = {f.name: _meaning(f) for kind in (ClarsFields, Transformers) for f in fields(kind)}
    defaults = {optim: OptimizerOptions.in_force(optim, {}, {}) for optim in OPTIMIZERS}
    hints = _hints(ClarsFields, Transformers)
    rows = []
    for key in (f.name for f in fields(OptimizerOptions)):
        taken = ["–" if key in NOT_TAKEN[optim] else _word(getattr(defaults[optim], key)) for optim in OPTIMIZERS]
        rows.append([f'<span id="{key}"></span>`{key}`', *taken, _values(hints[key]), meanings[key]])
    return _table(["key", *(f"`{optim}`" for optim in OPTIMIZERS), "value", "meaning"], rows)


def command_line() -> str:
    """`--help` of every command."""
    sections = [_help()]
    for command in COMMANDS:
        sections += [f"## hf-clars {command}", _help(command)]
    return "\n\n".join(sections)


PARTS = {"arguments": arguments, "optim_args": optimizer_options, "command-line": command_line}


def _hints(*kinds: type) -> dict[str, Any]:
    return {name: hint for kind in kinds for name, hint in get_type_hints(kind, include_extras=True).items()}


def _help(*command: str) -> str:
    columns = mock.patch.dict(os.environ, COLUMNS="110", NO_COLOR="1")
    with columns, redirect_stdout(StringIO()) as printed, suppress(SystemExit):  # argparse's way to end
        main([*command, "--help"])
    return f"```text\n{printed.getvalue().strip()}\n```"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _default(setting: Field[Any]) -> str:
    return "" if setting.default is MISSING else _word(setting.default)


def _word(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, Enum):
        value = value.value
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(setting: Field[Any]) -> str:
    text = " ".join(str(setting.metadata.get("help", "")).split()).replace("%%", "%")  # which argparse wants

    def plain(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith("`") else f"\\{found[0]}"

    return re.sub(r"`[^`]*`|[\\*_\[\]<>|]", plain, text)


def _values(hint: Any) -> str:
    """What a setting may be, in words: `whole number, ≥ 1`."""
    if hint is Any:
        return ""
    schema: Mapping[str, Any] = TypeAdapter(hint).json_schema()
    return " or ".join(
        ", ".join([_WORDS[part["type"]], *(f"{sign} {part[key]}" for key, sign in _RANGE.items() if key in part)])
        for part in schema.get("anyOf", [schema])
        if part["type"] != "null"
    )
