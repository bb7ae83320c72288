"""What a training prints is not worth its end: standard output and error that may fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

STREAMS = ("stdout", "stderr")


def open_closed_streams() -> None:
    """Give a program that was started without standard streams (`>&-`) some that lead nowhere.

    The next file to be opened would take the number of one that is closed, and what libraries print would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    for name in STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as the program)


@contextmanager
def escaping() -> Iterator[None]:
    """While this lasts, characters that the encoding of standard output or error lacks are written as escapes."""
    with ExitStack() as undo:
        for stream in (getattr(sys, name) for name in STREAMS):
            _replace(undo, stream, write=_escaped)
        yield


@contextmanager
def forgiving() -> Iterator[None]:
    """While this lasts, what standard output or error do not take is lost, and raises nothing.

    That is so on a full disk, where nobody reads on, and where a stream is closed; see `escaping`, too. What others do
    to the streams meanwhile, such as W&B, which copies what is printed, stays in place.
    """
    with ExitStack() as undo:
        undo.enter_context(escaping())
        for name in STREAMS:
            if getattr(sys, name) is None:
                nowhere = undo.enter_context(open(os.devnull, "w", encoding="utf-8"))
                setattr(sys, name, nowhere)
                undo.callback(setattr, sys, name, None)
            else:
                _replace(undo, getattr(sys, name), write=_forgiven_write, flush=_forgiven_flush)
        yield


def give_up_broken_streams() -> None:
    """For the end of a program: Python tries once more to write what is left, and makes a failure of its status."""
    for name in STREAMS:
        stream = getattr(sys, name)
        try:
            stream.flush()
        except (OSError, ValueError):
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), STREAMS.index(name) + 1)


def _replace(undo: ExitStack, stream: Any, **ours: Callable[[Any], Any]) -> None:
    """Put ours, made for the stream, in the place of its methods."""
    for method, make in ours.items() if hasattr(stream, "__dict__") else ():  # as all of Python's own have
        before, made = vars(stream).get(method), make(stream)
        setattr(stream, method, made)
        undo.callback(_restore, stream, method, made, before)


def _escaped(stream: Any) -> Callable[[str], int]:
    write = stream.write

    def escaped(text: str) -> int:
        try:
            return write(text)
        except UnicodeEncodeError:  # whose own encoding may be `charmap`, which is nobody's
            encoding = stream.encoding or "ascii"
            return write(text.encode(encoding, "backslashreplace").decode(encoding))

    return escaped


def _forgiven_write(stream: Any) -> Callable[[str], int]:
    write = stream.write

    def forgiven(text: str) -> int:
        try:
            return write(text)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) or stream.closed:
                return len(text)
            raise

    return forgiven


def _forgiven_flush(stream: Any) -> Callable[[], None]:
    flush = stream.flush

    def forgiven() -> None:
        try:
            flush()
        except (OSError, ValueError) as error:
            if not isinstance(error, OSError) and not stream.closed:
                raise

    return forgiven


def _restore(stream: Any, method: str, ours: Any, before: Any) -> None:
    if vars(stream).get(method) is not ours:  # wrapped since, by somebody who will call ours
        return
    if before is None:
        delattr(stream, method)
    else:
        setattr(stream, method, before)
