"""Grids of runs: read from sweep files, made as processes, kept as one JSON file per run, drawn and compared."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazily

if TYPE_CHECKING:
    from .grid import Run
    from .results import Result, read_result
    from .running import Runner
    from .sweeps import Sweep, read_sweep

__all__ = ["Result", "Run", "Runner", "Sweep", "read_result", "read_sweep"]

_HOMES = {
    "Result": ".results",
    "Run": ".grid",
    "Runner": ".running",
    "Sweep": ".sweeps",
    "read_result": ".results",
    "read_sweep": ".sweeps",
}
__getattr__, __dir__ = lazily(__name__, _HOMES)
