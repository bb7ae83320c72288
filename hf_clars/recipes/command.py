"""`hf-clars recipes`: list them, show them, copy them."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from ..errors import UserError
from ..safety.texts import printable
from .copying import copy, everything
from .packaged import USES, named, recipes

_HINT = """\
`hf-clars recipes NAME` shows one. With `--to FOLDER` it is copied, with all it names: to be edited, and for what
takes a FILE."""


def run(options: Namespace) -> None:
    """Print the list, the texts of those that are named, or the paths of their copies."""
    if options.overwrite and options.to is None:
        raise UserError("--overwrite is for --to FOLDER: add it")
    files = [named(name) for name in options.names]
    if options.to is not None:
        for path in copy(files or everything(), Path(os.path.expanduser(options.to)), options.overwrite):
            print(printable(path))
    elif files:
        print("\n".join(file.read_text(encoding="utf-8") for file in files), end="")
    else:
        print(_listed())


def _listed() -> str:
    width = max(map(len, recipes())) - min(map(len, USES))
    sections = []
    for folder, use in USES.items():
        rows = [f"  {name.partition('/')[2]:{width}}{_purpose(file)}" for name, file in recipes([folder]).items()]
        sections.append("\n".join([f"{folder}: {use}", *rows]))
    return "\n\n".join([*sections, _HINT])


def _purpose(file: Path) -> str:
    """The first line of comment, after a script's `#!`."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
