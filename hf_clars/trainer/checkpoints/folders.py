"""Checkpoints that are whole or not there: written beside, checked, and only then given their name."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...errors import UserError
from ...safety.files import read_bounded
from ...safety.links import first_foreign, is_within, own_folders
from ...safety.texts import plain_records
from .reading import what_is_wrong_in, what_is_wrong_with_shards

MANIFEST = "manifest.json"
STAGING = "unfinished-checkpoint"
MODEL_ALONE = "it holds the model alone, and nothing of the optimizer"
NOT_OURS = f"it has no {MANIFEST}: another Trainer wrote it, or it is a part of one that was being deleted"
_STATE = "trainer_state.json"
_BLOCK = 2**20
_REPLACED = "replaced-"
_EARLIER = "earlier-"  # folders of checkpoints of earlier trainings
_DELETED = "deleted-"  # no scan takes such a folder for a checkpoint, however much of it is left

logger = logging.getLogger(__name__)
logger.addFilter(plain_records)


def begin(run_dir: Path) -> Path:
    """An empty folder for the next checkpoint; what an interrupted one left is gone."""
    staging = run_dir / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def tidy(run_dir: Path) -> None:
    """Clear away what a killed training left of its last file operations. For the only training in this folder."""
    for old in run_dir.glob(f"{_REPLACED}*"):  # a checkpoint about to be replaced: it is whole
        final = old.with_name(old.name.removeprefix(_REPLACED))
        if final.exists():
            delete(old)
        else:
            _rename(old, final)
    for left in (run_dir / STAGING, *run_dir.glob(f"{_DELETED}*")):
        shutil.rmtree(left, ignore_errors=True)


def _rename(old: Path, new: Path) -> None:
    try:
        os.replace(old, new)
    except OSError as error:
        raise UserError(f"output_dir: {old} cannot be renamed to {new.name}: {error.strerror or error}") from error


def delete(checkpoint: Path) -> None:
    """Delete a folder that counts as a checkpoint until it is gone as a whole: a kill amid this leaves no part of it.

    What keeps it from being deleted (another's files, say) is not worth a training, and is tried again by `tidy`.
    """
    gone = checkpoint.with_name(f"{_DELETED}{checkpoint.name}")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.replace(checkpoint, gone)
    shutil.rmtree(gone, ignore_errors=True)


def finish(written: Path, final: Path) -> None:
    """Put a checkpoint that was written below `begin`'s folder in its place, with a list of its files and checksums.

    Everything is on disk before the folder gets its name, so a loss of power leaves a whole checkpoint or none.
    """
    files = {str(f.relative_to(written)): _synced(f) for f in sorted(written.rglob("*")) if f.is_file()}
    manifest = written / MANIFEST
    # A clock that was set back, or another machine's, does not change which one is the newest.
    last = max((_written(c) for c in all_of(final.parent)), default=0.0)
    manifest.write_text(
        json.dumps({"written": max(time.time(), last + 1e-3), "files": files}, indent=1), encoding="utf-8"
    )
    _synced(manifest)
    for folder in (*(f for f in written.rglob("*") if f.is_dir()), written):
        _sync_folder(folder)
    old = final.with_name(f"{_REPLACED}{final.name}")
    if final.exists():  # of a training that had come this far before it went on from an earlier checkpoint
        delete(old)
        os.replace(final, old)
    os.replace(written, final)
    _sync_folder(final.parent)
    delete(old)
    shutil.rmtree(written.parent, ignore_errors=True)


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it can. The manifest, written last, says what belongs to it."""
    if foreign := first_foreign(checkpoint):
        return foreign
    try:
        state = json.loads(read_bounded(checkpoint / _STATE))
    except FileNotFoundError:
        return f"it has no {_STATE}"
    except (OSError, ValueError, RecursionError):
        return f"its {_STATE} cannot be read"
    try:
        files = json.loads(read_bounded(checkpoint / MANIFEST))["files"]
        listed = {name: (int(size), int(checksum)) for name, (size, checksum) in dict(files).items()}
    except FileNotFoundError:
        return NOT_OURS
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return f"its {MANIFEST} cannot be read"
    if elsewhere := next((name for name in listed if not is_within(checkpoint / name, own_folders(checkpoint))), None):
        return f"its {MANIFEST} names a file outside of it, {elsewhere!r}"
    if trouble := what_is_wrong_in(state):
        return f"its {_STATE} is damaged: {trouble}"
    if trouble := what_is_wrong_with_shards(checkpoint, set(listed)):
        return trouble
    if "scheduler.pt" not in listed:
        return MODEL_ALONE
    return _what_has_changed(checkpoint, listed)


def _what_has_changed(checkpoint: Path, listed: Mapping[str, tuple[int, int]]) -> str | None:
    for name, (size, checksum) in listed.items():
        file = checkpoint / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if _checksum(file) != checksum:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def newest(run_dir: Path) -> Path | None:
    """The newest checkpoint that can be used. Those after it that cannot are named, and put out of the way.

    The newest one was written last. It need not have the highest number: an earlier training may have left its own.
    """
    for checkpoint in reversed(all_of(run_dir)):
        trouble = what_is_wrong(checkpoint)
        if trouble is None:
            return checkpoint
        if trouble in (MODEL_ALONE, NOT_OURS):
            logger.warning("%s cannot be resumed from: %s", checkpoint, trouble)
            continue
        aside = checkpoint.with_name(f"broken-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        _rename(checkpoint, aside)
        logger.warning("%s is broken (%s): trying the one before it; it is now %s", checkpoint, trouble, aside.name)
    return None


def put_aside(run_dir: Path) -> None:
    """The checkpoints of an earlier training, which this one does not go on from, get a folder of their own.

    Under their names, this one would replace them, delete them by its limit, and take them for its own when it resumes.
    """
    old = all_of(run_dir)
    if not old:
        return
    number = 1
    while (aside := run_dir / f"{_EARLIER}{number}").exists():
        number += 1
    try:
        aside.mkdir()
    except OSError as error:
        raise UserError(f"output_dir: {aside} cannot be made: {error.strerror or error}") from error
    for checkpoint in old:
        _rename(checkpoint, aside / checkpoint.name)
    logger.warning(
        "%s has %d checkpoints of an earlier training, which this one does not go on from; they are in %s now",
        run_dir,
        len(old),
        aside.name,
    )


def keep(run_dir: Path, limit: int | None, best: str | None) -> None:
    """Delete all but the last `limit` checkpoints (None or 0: none is deleted); the best one stays, and counts."""
    if not limit or limit < 0:
        return
    ours = [c for c in all_of(run_dir) if (c / MANIFEST).exists()]
    if not ours:
        return
    *older, newest_one = ours
    spared = {newest_one.name, Path(best).name if best else newest_one.name}
    older = [checkpoint for checkpoint in older if checkpoint.name not in spared]
    for checkpoint in older[: max(0, len(older) + len(spared) - limit)]:
        delete(checkpoint)


def keep_only(run_dir: Path, best: str) -> None:
    """Delete all checkpoints but the best one."""
    for checkpoint in all_of(run_dir):
        if checkpoint.name != Path(best).name and (checkpoint / MANIFEST).exists():
            delete(checkpoint)


def find(wanted: str, run_dir: Path) -> Path | None:
    """What `resume_from_checkpoint` stands for: a folder; `true`, the newest one; `auto`, the same if there is one.

    Raises:
        UserError: no such checkpoint, or a broken one.
    """
    if wanted.lower() in ("", "false", "no", "none"):
        return None
    if wanted.lower() in ("true", "yes", "auto"):  # YAML's true arrives as yes
        checkpoint = newest(run_dir) if run_dir.is_dir() else None
        if checkpoint is None and wanted.lower() != "auto":
            raise UserError(f"resume_from_checkpoint: there is no whole checkpoint in {run_dir}")
        return checkpoint
    checkpoint = Path(wanted)
    trouble = what_is_wrong(checkpoint) if checkpoint.is_dir() else "no such folder"
    if trouble is not None:
        raise UserError(f"resume_from_checkpoint: {wanted} is not a whole checkpoint ({trouble})")
    return checkpoint


def all_of(run_dir: Path) -> list[Path]:
    """All checkpoints, whole or not, in the order in which they were written."""
    found = [p for p in run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.is_dir() and _step(p) >= 0]
    return sorted(found, key=lambda checkpoint: (_written(checkpoint), _step(checkpoint)))


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdecimal() else -1


def _written(checkpoint: Path) -> float:
    try:
        if (checkpoint / MANIFEST).is_symlink():  # none that we have written
            return checkpoint.stat().st_mtime
        return float(json.loads(read_bounded(checkpoint / MANIFEST))["written"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):  # broken, or another Trainer's
        return checkpoint.stat().st_mtime


def _synced(file: Path) -> tuple[int, int]:
    """Size and checksum of a file that is now on disk."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
    return file.stat().st_size, _checksum(file)


def _checksum(file: Path) -> int:
    value = 0
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems know no such thing
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
