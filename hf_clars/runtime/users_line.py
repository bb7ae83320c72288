"""Warnings that point at the user's line, rather than ours or that of a library which called us for the user."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import FrameType

_LIBRARIES = ("hf_clars", "transformers", "accelerate", "torch", "contextlib", "peft", "trl")


def warn(message: str) -> None:
    """Issue a `UserWarning` at the innermost line of the user's.

    In a thread without one (autograd computes gradients on a device in threads of its own) the outermost line stands
    for it.
    """
    frame = _users_frame() or list(_frames())[-1]
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        names.get("__name__", "<string>"),
        names.setdefault("__warningregistry__", {}),
    )


def is_under_way() -> bool:
    """Whether this thread is at work on behalf of a line of the user's."""
    return _users_frame() is not None


def _users_frame() -> FrameType | None:
    return next((f for f in _frames() if f.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES), None)


def _frames() -> Iterator[FrameType]:
    """From the inside out, without this one."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]
