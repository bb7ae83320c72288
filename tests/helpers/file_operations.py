"""A process that dies before its n-th file operation, on a file system that lists in whatever order."""

from __future__ import annotations

import builtins
import io
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import safetensors.torch
import torch

CHANGES = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync", "truncate", "link", "symlink")


class FileOperations:
    """Counts the operations that change what is on disk while `watched`; before number `deadly` comes SIGKILL.

    Python's own are seen where they are called; the writers of torch and safetensors, which are not Python, as one
    operation that may be cut off in its middle. Nothing is seen of what `os` did not do.

    Args:
        deadly: the number, from 1; 0 for none.
        order: seed of the order in which folders are listed.
    """

    def __init__(self, deadly: int = 0, order: int = 0) -> None:
        self.deadly = deadly
        self.done: list[str] = []
        self.counting = False
        self._dice = random.Random(order)

    def before(self, what: str) -> bool:
        """Count an operation, die before it if it is the one; True if it is the next one that is."""
        if not self.counting:
            return False
        self.done.append(what)
        if len(self.done) == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(self.done) + 1 == self.deadly

    @contextmanager
    def watched(self) -> Iterator[None]:
        opened, written = self._opening(io.open), self._written
        changed: dict[tuple[Any, str], Any] = {(os, name): self._counted(getattr(os, name), name) for name in CHANGES}
        changed |= {
            (os, "open"): self._opening(os.open),
            (io, "open"): opened,
            (builtins, "open"): opened,
            (os, "scandir"): lambda *path: _Listing(self._shuffled(os_scandir(*path))),
            (os, "listdir"): lambda *path: self._shuffled(os_listdir(*path)),
            (torch, "save"): written(torch.save, "torch.save"),
            (safetensors.torch, "save_file"): written(safetensors.torch.save_file, "safetensors"),
        }
        with ExitStack() as patches:
            for (owner, name), replacement in changed.items():
                patches.enter_context(mock.patch.object(owner, name, replacement))
            self.counting = True
            yield
            self.counting = False

    def _counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.before(f"{name} {os.path.basename(str(args[0]))}")
            return call(*args, **kwargs)

        return counted

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: Any = "r", *args: Any, **kwargs: Any) -> Any:
            writes = mode & (os.O_WRONLY | os.O_RDWR) if isinstance(mode, int) else set(mode) & set("wax+")
            if writes:
                self.before(f"open {os.path.basename(str(file))}")
            return call(file, mode, *args, **kwargs)

        return opened

    def _written(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def written(content: Any, file: Any, *args: Any, **kwargs: Any) -> Any:
            self.before(f"{name} {os.path.basename(str(file))}")
            result = call(content, file, *args, **kwargs)
            if self.counting and len(self.done) + 1 == self.deadly and isinstance(file, (str, os.PathLike)):
                os_truncate(file, os.path.getsize(file) // 2)
            self.before(f"half of {name} {os.path.basename(str(file))}")
            return result

        return written

    def _shuffled(self, listed: Any) -> list[Any]:
        entries = sorted(listed, key=lambda entry: getattr(entry, "name", entry))
        self._dice.shuffle(entries)
        return entries


class _Listing:
    """What `os.scandir` returns: an iterator and a context manager."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[Any]:
        return self._entries

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._entries = iter(())


os_scandir, os_listdir, os_truncate = os.scandir, os.listdir, os.truncate
