"""One training at a time in an output folder: two would delete each other's checkpoints."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...errors import UserError
from ...runtime.processes import once

FILE_NAME = "_training.lock"  # Trainer uploads nothing to the Hub whose name begins like this
logger = logging.getLogger(__name__)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While this lasts, no other training may enter `folder`. Collective: the first process of a training locks it.

    The lock is the operating system's, on a file that stays: it ends with the process, however that ends. Processes
    that are forked off, as data workers are, let go of it at once.

    Raises:
        UserError: another training is at work there; the line says which.
    """
    with ExitStack() as held:

        def lock() -> None:
            if (file := _locked(folder)) is not None:
                held.callback(_release, file)

        once(lock)
        yield


def _locked(folder: Path) -> int | None:
    """The descriptor that has the lock; None where there can be none, which is said."""
    file = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = None if file is None else _holder(file)
        if file is not None:
            os.close(file)
        if holder is not None and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f"output_dir: another training is at work in {folder} ({holder}): wait for its end, or choose another "
                "output_dir"
            ) from None
        logger.warning(
            "%s cannot be locked (%s): a second training in it would not be noticed, and the two would delete each "
            "other's checkpoints",
            folder,
            error.strerror or error,
        )
        return None
    _held.add(file)
    _sign(file)
    return file


def _release(file: int) -> None:
    if file in _held:  # else this is a process that was forked off, and has let go of it
        _held.discard(file)
        os.close(file)  # which ends the lock, since nobody else has this descriptor


_held: set[int] = set()  # descriptors of this process


def _let_go() -> None:
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _sign(file: int) -> None:
    """Say in the file who holds the lock. On a full disk it stays unsaid; the lock holds all the same."""
    since = time.strftime("%Y-%m-%d %H:%M:%S%z")
    signature = json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}).encode()
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, signature, 0)
    except OSError as error:
        logger.warning("%s does not say who holds it: %s", FILE_NAME, error.strerror or error)


def _holder(file: int) -> str:
    try:
        who = json.loads(os.pread(file, 4096, 0))
        return f"process {int(who['pid'])} on {str(who['host'])[:80]!r}, since {str(who['since'])[:30]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say which one it is"
