"""From `(x, d)` of one layer to `‖c_i‖²` and, when asked, the weight gradient, within bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import forms

if TYPE_CHECKING:
    from .rule import Rule

# How much may stand in memory at a time beside what backward holds anyway. On a CPU it is what stays in the cache
# between being formed and being summed; on an accelerator what fills it.
_BUDGET = {"cpu": 2 << 20}
_BUDGET_ELSEWHERE = 256 << 20


def chunks(batch: int, bytes_per_sample: int, device: torch.device) -> list[slice]:
    """The samples, cut into runs of at most the device's budget, and of at least one sample."""
    size = max(1, _BUDGET.get(device.type, _BUDGET_ELSEWHERE) // max(1, bytes_per_sample))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def measure(rule: Rule, x: Tensor, d: Tensor, batch: int, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """`‖c_i‖²` of the rule's weight, `[batch]`, and `Σ_i c_i` if `gradient`.

    The sum is taken in float32 or wider and has the dtype of the weight.
    """
    folds = x.shape[0] // batch
    if not gradient and not rule.fused(x, batch):
        runs = chunks(batch, rule.squares_elements(x, batch) * x.element_size(), x.device)
        squares = [rule.squares(*_cut(x, d, run, folds), run.stop - run.start) for run in runs]
        return torch.cat(squares), None

    weight = rule.module.weight
    total = torch.zeros(weight.shape, dtype=forms.norm_dtype(d.dtype), device=d.device) if gradient else None
    squares = []
    for run in rule.sample_runs(x, batch):
        samples = rule.samples(*_cut(x, d, run, folds), run.stop - run.start)
        squares.append(forms.squared_norms(samples))
        if total is not None:
            total += samples[0] if samples.shape[0] == 1 else samples.sum(0, dtype=total.dtype)
    return torch.cat(squares), None if total is None else total.to(weight.dtype)


def measure_together(uses: list[tuple[Rule, Tensor, Tensor]], batch: int) -> Tensor:
    """`‖Σ_uses c_i‖²` of a parameter that several calls share, cross terms included, `[batch]`."""
    rule, x, _ = uses[0]
    squares = []
    for run in rule.sample_runs(x, batch):
        total: Tensor | None = None
        for rule, x, d in uses:
            samples = rule.samples(*_cut(x, d, run, x.shape[0] // batch), run.stop - run.start)
            samples = samples.to(forms.norm_dtype(samples.dtype))
            total = samples if total is None else total + samples
        assert total is not None
        squares.append(forms.squared_norms(total))
    return torch.cat(squares)


def _cut(x: Tensor, d: Tensor, run: slice, folds: int) -> tuple[Tensor, Tensor]:
    images = slice(run.start * folds, run.stop * folds)
    return x[images], d[images]
