"""Data sets for the target, as the files they are: of a folder, or the Parquet files of one on the Hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from ..errors import TrainingFailedError, UserError
from ..safety.links import first_foreign


def find_data(names: Iterable[str], data_dir: str | None = None) -> dict[str, Path]:
    """The folder of each data set, under the name that `--data_dir` looks for: the last part of its own.

    Args:
        names: `uoft-cs/cifar10`, or a folder.
        data_dir: has data sets in folders of their own names; those it lacks come from the Hub, or from its cache.

    Raises:
        UserError: no such folder or data set, one that needs a login, one without Parquet files, two of one name; links
            that lead out of it.
        TrainingFailedError: the Hub cannot be reached.
    """
    root = None if data_dir is None else Path(os.path.expanduser(data_dir))
    if root is not None and not root.is_dir():
        raise UserError(f"--data_dir {data_dir}: no such folder")
    found: dict[str, Path] = {}
    for name in names:
        short = name.rstrip("/").rpartition("/")[2]
        if short in ("", ".", "..", "~"):
            short = Path(os.path.expanduser(name)).resolve().name
        if not short:
            raise UserError(f"--dataset {name}: one folder is wanted, by whose name it is found there")
        if short in found:
            raise UserError(f"--dataset {name}: there is another one called {short!r}, and one name finds one data set")
        if root is not None and (root / short).is_dir():
            found[short] = root / short
        elif Path(os.path.expanduser(name)).is_dir():
            found[short] = Path(os.path.expanduser(name))
        elif Path(os.path.expanduser(name)).is_file():
            raise UserError(f"--dataset {name} is a file: give the folder that it is in")
        elif name.startswith((".", "~", "/")) or name.count("/") > 1:
            raise UserError(f"--dataset {name}: no such folder")
        else:
            found[short] = _downloaded(name)
        if not any(path.is_file() for path in found[short].rglob("*")):
            raise UserError(f"--dataset {name}: {found[short]} is empty")
        if foreign := first_foreign(found[short]):
            raise UserError(f"--dataset {name}: {foreign}: a pack holds copies of the data set's own files alone")
    return found


def copy_data(found: dict[str, Path], folder: Path) -> None:
    """Copies that hold no links: the Hub's cache consists of them."""
    folder.mkdir()
    for name, source in found.items():
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.lock", ".cache"))


def _downloaded(name: str) -> Path:
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=["*.parquet", "README.md"]))
    except GatedRepoError:
        raise UserError(
            f"--dataset {name} is gated: accept its terms on https://huggingface.co/datasets/{name}, then run "
            "`hf auth login` (or set HF_TOKEN)"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"--dataset {name}: neither a folder nor a data set on the Hub that you may see") from None
    except HFValidationError as error:
        raise UserError(f"--dataset {name}: {' '.join(str(error).split())}") from None
    except LocalEntryNotFoundError:
        raise TrainingFailedError(f"--dataset {name}: the Hub cannot be reached, and its cache lacks it") from None
    except Exception as error:  # whatever the client's HTTP library has
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise TrainingFailedError(f"--dataset {name} cannot be downloaded ({reason})") from error
    if not any(folder.rglob("*.parquet")):
        raise UserError(f"--dataset {name} has no Parquet files: download it, and give its folder")
    return folder
