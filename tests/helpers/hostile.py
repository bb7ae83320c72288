"""What strangers leave, and how it has to be refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hf_clars import UserError


def secret_of(folder: Path, content: bytes = b"bytes") -> Path:
    """A file of somebody's that nobody may open."""
    folder.mkdir()
    (folder / "secret.png").write_bytes(content)
    return folder / "secret.png"


def make_file(file: Path, kind: str, head: bytes = b"") -> None:
    """A `pipe` that nobody writes to, or a `sparse` file of 64 GiB of nothing behind its head."""
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
        return
    with file.open("wb") as opened:
        opened.write(head)
        opened.truncate(2**36)


@contextmanager
def one_line(match: str | None = None) -> Iterator[None]:
    """A `UserError` of one line that can be read."""
    with pytest.raises(UserError, match=match) as refused:
        yield
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
