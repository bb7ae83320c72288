"""How a grid's runs stand, in one line at the bottom of a terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from tqdm import tqdm

from ..safety.texts import printable
from .grid import Run

_FORMAT = "{n_fmt} of {total_fmt} runs done{postfix}; {elapsed} so far, about {remaining} left"


class StatusLine:
    """For `Runner.say` and `Runner.watch`: lines that stay, above one that changes.

    Where the output is no terminal there are only the lines that stay. The time left is that of the runs so far.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def say(self, line: str) -> None:
        with tqdm.external_write_mode(file=sys.stdout):
            print(printable(line), flush=True)

    def watch(self, done: int, total: int, failed: int, under_way: Sequence[Run]) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=total, smoothing=0, disable=None, dynamic_ncols=True, leave=False, bar_format=_FORMAT
            )
        self._bar.n = done
        names = textwrap.shorten(", ".join(run.title for run in under_way), 50, placeholder=" …")
        self._bar.set_postfix_str(f"{failed} failed, {len(under_way)} running ({printable(names)})", refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
