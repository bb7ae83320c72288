"""Grids of runs: read from sweep files, made as processes, kept as one JSON file per run, drawn and compared."""

from .grid import Run
from .results import Result, read_result
from .running import Runner
from .sweeps import Sweep, read_sweep

__all__ = ["Result", "Run", "Runner", "Sweep", "read_result", "read_sweep"]
