"""Command lines as argparse has them, with errors and help of ours. No import of torch, so that help is quick."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field
from enum import Enum
from functools import partial
from typing import Any, NoReturn

from .errors import UserError, one_line


def refuse(message: str) -> NoReturn:
    """argparse's errors as ours."""
    raise UserError(one_line(message))


class Parser(ArgumentParser):
    """Whose errors are ours. A flag of several words is taken with hyphens for underscores, too."""

    def add_argument(self, *names: str, **options: Any) -> Action:
        action = super().add_argument(*names, **options)
        for name in names:
            if name.startswith("--") and "_" in name:
                hidden = {**options, "dest": action.dest, "help": SUPPRESS}
                super().add_argument(f"--{name[2:].replace('_', '-')}", **hidden)
        return action

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """argparse's; empty text, which as a path would be the working folder, is refused."""
        found, rest = super().parse_known_args(*args, **kwargs)
        for action in self._actions:
            given = getattr(found, action.dest, None)
            texts = given if isinstance(given, list) else [given]
            if any(isinstance(text, str) and not text.strip() for text in texts):
                name, *_ = (*action.option_strings, action.metavar or action.dest)
                refuse(f"{name} is empty: give it a value, or leave it out")
        return found, rest

    def error(self, message: str) -> NoReturn:
        refuse(message)


def asks_for_help(argv: list[str]) -> bool:
    return "--help" in argv or "-h" in argv


def page(usage: str, about: str, topics: Mapping[str, Iterable[Field[Any]]], examples: str) -> str:
    """Help on the fields of dataclasses, which are flags: one line for each as far as 120 columns allow it.

    Args:
        topics: heading → fields; `metadata["help"]` says what they mean.
    """
    formatter: Any = partial(RawDescriptionHelpFormatter, max_help_position=34, width=120)
    parser = ArgumentParser(usage=usage, description=about, epilog=examples, formatter_class=formatter, add_help=False)
    for topic, flags in topics.items():
        group = parser.add_argument_group(topic)
        for flag in flags:
            group.add_argument(f"--{flag.name}", metavar="", help=_meaning(flag).replace("%", "%%"))
    return parser.format_help()


def _meaning(flag: Field[Any]) -> str:
    text, default = str(flag.metadata.get("help", "")).removesuffix("."), flag.default
    if default is MISSING or default is None:
        return text
    if isinstance(default, Enum):
        choices, default = ", ".join(str(member.value) for member in type(default)), default.value
        text += f": {choices}"
    return f"{text} [{str(default).lower() if isinstance(default, bool) else default}]"
