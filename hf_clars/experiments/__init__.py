"""Grids of runs: as YAML, made as processes, kept as one JSON file per run."""

from .grid import Grid, Run, read_grid
from .results import Result, read_result
from .running import Runner

__all__ = ["Grid", "Result", "Run", "Runner", "read_grid", "read_result"]
