"""Exact per-sample gradient norms: `PerSampleNorms`, its rules (one per layer type) and their formulas."""

from .per_sample import MODES, PerSampleNorms
from .rules import RULES

__all__ = ["MODES", "RULES", "PerSampleNorms"]
