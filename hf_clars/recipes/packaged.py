"""Where the recipes of the package are, and which one a name means."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from pathlib import Path

from ..errors import UserError

PROGRAM = "imagenet_clars.py"  # what W&B's agents and the launchers start

# Folder → what takes its recipes.
USES = {
    "demo": "hf-clars train --config NAME",
    "imagenet": "hf-clars train --config NAME",
    "sweeps": "hf-clars sweep NAME",
    "tuning": "hf-clars tune NAME",
    "accelerate": "accelerate launch --config_file FILE …",
    "launch": "sbatch FILE …, bash FILE …",
}
TRAININGS = ("demo", "imagenet")
SWEEPS = ("sweeps",)
SEARCHES = ("tuning",)
_SUFFIXES = (".yaml", ".sbatch", ".sh")


def root() -> Path:
    """The folder of the recipes: an installed package has them here, a checkout (and so an editable install) apart."""
    here = Path(__file__).parent
    return here if (here / "demo").is_dir() else here.parents[1] / "recipes"


def recipes(folders: Collection[str] = tuple(USES)) -> dict[str, Path]:
    """Name → file of what is a recipe by itself: `imagenet/resnet50_clars`, `launch/ssh.sh`."""
    files = [file for folder in folders for file in sorted((root() / folder).iterdir())]
    return {_name(file): file for file in files if file.suffix in _SUFFIXES}


def find(given: str, folders: Collection[str], called: str) -> Path:
    """The file that a user named: one that exists, or else a recipe of the package; raises `UserError` as `named`.

    Args:
        called: what a message calls it.
    """
    path = os.path.expanduser(given)
    if os.path.exists(path) and not os.path.isdir(path):
        return Path(path)
    return named(given, folders, f"{called}: no such file, and")


def named(name: str, folders: Collection[str] = tuple(USES), problem: str = "") -> Path:
    """The recipe of a name, which is looked up in the list of them: no name leads to another file.

    Args:
        name: `resnet50_clars` or `imagenet/resnet50_clars`, with `.yaml` or without; `sweeps/cifar10/clars` of a part.
        folders: where a recipe is that is named without its folder.
        problem: how a message begins.

    Raises:
        UserError: no recipe has that name, and which names are near; or several have it.
    """
    wanted = name.removesuffix(".yaml")
    full, short = list(recipes(folders)), dict[str, list[str]]()
    for each in full:
        short.setdefault(each.partition("/")[2], []).append(each)
    known = {**recipes(), **{_name(file): file for file in root().glob("sweeps/*/*.yaml")}}
    found = [wanted] if wanted in known else short.get(wanted, [])
    if len(found) > 1:
        raise UserError(f"{name} is the name of {' and '.join(found)}: say which")
    if not found:
        near = difflib.get_close_matches(wanted, full if "/" in wanted else short, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "`hf-clars recipes` lists them"
        raise UserError(f"{problem or f'{name}:'} no recipe has that name; {hint}")
    return known[found[0]]


def _name(file: Path) -> str:
    return file.relative_to(root()).as_posix().removesuffix(".yaml")
