"""Labels as data sets store them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np

_DIGITS = 18  # of a number that fits into int64


def label_number(label: Any) -> int | None:
    """The whole number that a label is: of an integer, `3.0`, `True` or the text `"3"`. None where it is none."""
    if isinstance(label, bytes):
        label = label.decode(errors="replace")
    if isinstance(label, str):
        text = label.strip()
        return int(text) if text.isdecimal() and len(text) <= _DIGITS else None
    if isinstance(label, (int, np.integer, np.bool_)):
        return int(label)
    if isinstance(label, (float, np.floating, Decimal)):
        return int(label) if np.isfinite(float(label)) and label == int(label) else None
    return None
