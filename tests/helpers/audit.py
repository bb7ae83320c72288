"""What Python opens, runs and connects to while somebody watches.

An audit hook tells, which cannot be removed, and is switched.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_RUNS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.startfile")
_ASKS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


@dataclass
class Seen:
    """Attributes:
    opened: real paths.
    run: commands.
    asked: addresses.
    """

    opened: list[str] = field(default_factory=list)
    run: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def opened_in(self, folder: Path) -> list[str]:
        return [path for path in self.opened if Path(path).is_relative_to(os.path.realpath(folder))]


_watching: list[Seen] = []
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        _watching[-1].opened.append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event in _RUNS:
        _watching[-1].run.append(f"{event}: {arguments!r}")
    elif event in _ASKS:
        _watching[-1].asked.append(f"{event}: {arguments[1:] if event == 'socket.connect' else arguments!r}")


@contextmanager
def watched() -> Iterator[Seen]:
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    seen = Seen()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)
