"""Exact per-sample gradient norms: `PerSampleNorms`, its rules (one per operator) and their formulas."""

from .operators import OPERATORS
from .per_sample import MODES, PerSampleNorms, check_untracked

__all__ = ["MODES", "OPERATORS", "PerSampleNorms", "check_untracked"]
