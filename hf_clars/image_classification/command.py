"""`hf-clars train`, as a function."""

from __future__ import annotations

import sys

from ..runtime.exit_status import unstoppable


def train(argv: list[str] | None = None) -> int:
    """Entry point of `recipes/imagenet_clars.py` and `hf-clars train`; the same exit status."""
    argv = sys.argv[1:] if argv is None else argv

    def work() -> None:
        from .recipe import run

        run(argv)

    return unstoppable(work)
