"""What a data set says of itself (README.md), held against where it lies before anything that it names is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..errors import UserError
from ..safety.links import is_within
from ..safety.yaml_files import parse_yaml
from .home import Home

_CARD, _ALONE = "README.md", ".huggingface.yaml"
_READ_BY_DATASETS = (_CARD, _ALONE, "dataset_infos.json")
_MOST_CHARACTERS = 2_000_000  # names of 21,000 classes are a million


def check_card(name: str, folder: Path | None, revision: str | None, home: Home) -> None:
    """Refuse a card that names data files elsewhere: `datasets` would open, or ask for, whatever stands there.

    Args:
        name: what the user called the data set.
        folder: where it is; None on the Hub.
        revision: on the Hub.
        home: where its data files must be.

    Raises:
        UserError: data files outside of the data set; a card that is not YAML, or is made to keep its reader busy.
    """
    for file in _files(name, folder, revision):
        if folder is not None and not home.follow_links and not is_within(file, home.folders):
            raise UserError(f"dataset {name!r}: {file.name} is a link that leads out of the data set's folder")
        if file.name not in (_CARD, _ALONE) or not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            match = REGEX_YAML_BLOCK.search(text) if file.name == _CARD else None
            block = text if file.name == _ALONE else "" if match is None else match.group(2)
            said = parse_yaml(block, _MOST_CHARACTERS)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"dataset {name!r}: {file.name} is not YAML: {' '.join(str(error).split())}") from None
        for pattern in _patterns(said):
            if not _is_own(pattern, home):
                raise UserError(
                    f"dataset {name!r}: {file.name} names data files outside of the data set: {pattern!r}"[:400]
                )


def _files(name: str, folder: Path | None, revision: str | None) -> Iterator[Path]:
    if folder is not None:
        yield from (folder / file for file in _READ_BY_DATASETS if (folder / file).exists())
        return
    for file in (_CARD, _ALONE):
        try:
            yield Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            continue  # not there; or nothing is, which `datasets` finds out next and says


def _patterns(said: Any) -> Iterator[str]:
    """`data_files` and `data_dir` of all configurations, in whichever of the forms that `datasets` takes."""
    configs = said.get("configs") if isinstance(said, dict) else None
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict):
            yield from _texts([config.get("data_files"), config.get("data_dir")])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))


def _is_own(pattern: str, home: Home) -> bool:
    if "::" in pattern or ".." in pattern.split("/") or "\0" in pattern:
        return False
    if urlparse(pattern).scheme:
        return home.owns(pattern)
    return not pattern.startswith(("/", "~"))
