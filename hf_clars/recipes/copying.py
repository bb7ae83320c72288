"""Recipes into a folder of the user's, with the files that they name."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from .packaged import PROGRAM, USES, root

_NAMED = re.compile(r"\brecipes/([\w./-]*\w)")


def everything() -> list[Path]:
    """All files of the recipes, data included."""
    folders = (file for folder in USES for file in (root() / folder).rglob("*"))
    return [root() / PROGRAM, *sorted(file for file in folders if file.is_file())]


def copy(files: Iterable[Path], folder: Path, overwrite: bool) -> list[Path]:
    """Copy recipes to `folder / "recipes"`, where their own paths (`recipes/…`) hold; returns all that is there then.

    What a recipe names goes with it, and so does the folder of its name: data, parts of a sweep. A file that is there
    already, with the same content, is left alone.

    Raises:
        UserError: another file is in the place of one and `overwrite` is false, before anything is copied; or a copy
            cannot be written.
    """
    copies = {file: folder / "recipes" / file.relative_to(root()) for file in _with_what_they_name(files)}
    try:
        new = {file: target for file, target in copies.items() if not _is_copy(file, target)}
        taken = [str(target) for target in new.values() if os.path.lexists(target)]
        if taken and not overwrite:
            more = f" and {len(taken) - 1} more" if taken[1:] else ""
            raise UserError(f"{taken[0]}{more}: another file is there; --overwrite replaces it")
        for file, target in new.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a link's own place, not where it leads
            shutil.copy(file, target)
    except OSError as error:
        raise UserError(f"--to {folder}: {error.strerror or error} ({error.filename})") from None
    return list(copies.values())


def _with_what_they_name(files: Iterable[Path]) -> list[Path]:
    known, found, waiting = everything(), set[Path](), list(files)
    while waiting:
        file = waiting.pop()
        if file in found or file not in known:
            continue
        found.add(file)
        if file.suffix in (".yaml", ".sbatch", ".sh"):
            waiting += [root() / name for name in _NAMED.findall(file.read_text(encoding="utf-8"))]
            waiting += [other for other in known if file.with_suffix("") in other.parents]
    return sorted(found)


def _is_copy(file: Path, target: Path) -> bool:
    return target.is_file() and filecmp.cmp(file, target, shallow=False)
