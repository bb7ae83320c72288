"""Anybody's script, run as `python SCRIPT …` would run it, in a process where hf_clars is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType


def is_script(words: Sequence[str]) -> bool:
    """Whether a command line begins with one, and not with a command of ours."""
    return bool(words) and words[0].endswith(".py") and os.path.isfile(words[0])


def run_script(words: Sequence[str]) -> None:
    """Run `words[0]` with the rest as its arguments; what it raises, `SystemExit` too, is raised.

    `runpy.run_path` does not make `__file__` absolute, and takes `__main__` away again before `atexit` functions run.
    """
    path = os.path.abspath(words[0])
    loader = SourceFileLoader("__main__", path)
    main = ModuleType("__main__")
    main.__file__, main.__loader__ = path, loader
    sys.argv[:] = words
    if not sys.flags.safe_path:  # in place of the folder that `-m`, or the command, has put there
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    sys.modules["__main__"] = main
    _hide_our_frames(path)
    exec(loader.source_to_code(loader.get_data(path), path), vars(main))


def _hide_our_frames(path: str) -> None:
    """A traceback begins with the script's own frame; of a script that is no Python it has none."""
    show = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        first = traceback
        while first is not None and first.tb_frame.f_code.co_filename != path:
            first = first.tb_next
        show(kind, error.with_traceback(first), first)

    sys.excepthook = shown
