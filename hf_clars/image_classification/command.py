"""`hf-clars train`, as a function."""

from __future__ import annotations

import sys

from ..command_line import asks_for_help
from ..runtime.exit_status import guarded, unstoppable


def train(argv: list[str] | None = None) -> int:
    """Entry point of `recipes/imagenet_clars.py` and `hf-clars train`; the same exit status."""
    argv = sys.argv[1:] if argv is None else argv
    everything = "--help-all" in argv
    if everything or asks_for_help(argv):
        from .help import train_help

        return guarded(lambda: print(train_help(everything), end=""))

    def work() -> None:
        from .recipe import run

        run(argv)

    return unstoppable(work)
