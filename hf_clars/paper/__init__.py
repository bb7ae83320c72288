"""The experiments of the paper: a grid of runs and a picture for each figure."""

from .command import figure

__all__ = ["figure"]
