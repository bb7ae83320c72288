"""The optimizer of dial.yaml: between LARS and CLARS, with a denominator that is `‖g_k‖^(1-p) · (Σ_i ‖c_{k,i}‖)^p`.

LARS's without weight decay at p = 0, Eq. 5 at p = 1. The package has no such option: this is the experiment that
decides whether it should. A run's `p` stands in its `run_name`, because that is a setting which
results are told apart by.

    hf-clars tune recipes/studies/dial.yaml --launch 'python recipes/studies/dial.py' …
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_clars.cli import entry
from hf_clars.optimizers import CLARS
from hf_clars.trainer import optimizer_handlers


class Dial(CLARS):
    """CLARS with the exponent `p`, in [0, 1]."""

    p = 1.0  # of all of this process

    def _denominators(self) -> Mapping[Tensor, Tensor]:
        denominators = super()._denominators()
        return {w: w.grad.norm() ** (1 - self.p) * d**self.p for w, d in denominators.items() if w.grad is not None}


def clars(context: Any) -> tuple[Any, dict[str, Any]]:
    Dial.p = float(context.args.run_name.removeprefix("p="))
    return original(context)


if __name__ == "__main__":
    original, optimizer_handlers.clars = optimizer_handlers.clars, clars
    optimizer_handlers.CLARS = Dial
    sys.argv = ["hf-clars", *sys.argv[sys.argv.index("train") :]]  # without what a launcher is told
    entry()
