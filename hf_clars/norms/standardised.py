"""Standardised weights, `u = γ (w − mean) / σ` for each output: their derivative in closed form.

`StdConv2d`, `ScaledStdConv2d` and their like compute the weight that a convolution uses by a batch norm over the inputs
of each output channel. For each sample, autograd would go back through it with all the calls that it takes; but with
`û = (w − mean) / σ` of n elements it is, of each output,

    c_w = γ/σ · (c_u − mean(c_u) − û · mean(c_u ⊙ û)),

what the backward pass of batch norm computes (Ioffe, Szegedy 2015, section 3); and c_γ = Σ c_u ⊙ û.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .backward_passes import quiet_gradient
from .numerics.forms import gram_squares
from .numerics.reductions import cancels, norm_dtype, squared_norms
from .samplers.base import Sampler, Saved

# Private names of autograd's nodes and of what they saved; test_norms_standardised.py fails if they go.
_MOVING_NOTHING = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "CloneBackward0"}
_BATCH_NORM, _PRODUCT = "NativeBatchNormBackward0", "MulBackward0"


class Standardisation:
    """Of a tensor `u` that comes out of a batch norm in training mode over `[1, O, n]`.

    Args:
        normalised: `û`, `[O, n]`.
        scale: `γ/σ`, `[O]`.
        rows, gain: where autograd goes on to `w` and `γ`.
    """

    def __init__(self, normalised: Tensor, scale: Tensor, rows: GradientEdge, gain: GradientEdge) -> None:
        self.normalised, self.scale, self.rows, self.gain = normalised, scale, rows, gain

    @classmethod
    def of(cls, u: Tensor, node: Any) -> Standardisation | None:
        """None if `u`, which came out of `node`, is computed in another way."""
        node = None if u._backward_hooks else _behind_views(node)
        if node is None or node.name() != _BATCH_NORM or not node._saved_training:
            return None
        rows = node._saved_input
        of_rows, of_gain, of_shift = [GradientEdge(*following) for following in node.next_functions]
        if of_shift.node is not None or rows.ndim != 3 or rows.shape[0] != 1 or rows.numel() != u.numel():
            return None
        inverse_deviation = node._saved_result2
        normalised = (rows[0] - node._saved_result1.unsqueeze(1)) * inverse_deviation.unsqueeze(1)
        gain = node._saved_weight
        return cls(normalised, inverse_deviation if gain is None else inverse_deviation * gain, of_rows, of_gain)

    def for_parameter(self, parameter: Tensor) -> StandardisedWeight | StandardisedGain | None:
        """The derivative by a parameter; None if `u` is computed from it in another way, or in several."""
        if _is_gradient_of(_behind_views(self.rows.node), parameter):
            return None if _leads_to(self.gain.node, parameter) else StandardisedWeight(self)
        if _leads_to(self.rows.node, parameter) or not _leads_to(self.gain.node, parameter):
            return None
        return StandardisedGain(self, parameter)

    def shaped(self, of_u: Tensor) -> Tensor:
        """`[b, O, n]`."""
        return of_u.reshape(of_u.shape[0], *self.normalised.shape)

    def by_gram(self, sampler: Sampler, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor] | None:
        """`‖c_w‖²`, `[batch]`, and `c_γ`, `[batch, O]`, without forming `c_u`, for products that are measured by a Gram
        form; None elsewhere, and where it cancels.

        Of rows `v` of `c_u`, `v − mean(v)` comes from inputs less their mean; `⟨v, û⟩` is a sum over positions of `d`
        times what the operator makes of `û`; and `‖v − û·mean(v ⊙ û)‖²` is `‖v‖²` less a term in it.
        """
        if not sampler.is_product or sampler.shape[:2] != self.normalised.shape or sampler.fused(xs[0], batch):
            return None
        if d.device.type != "cpu":  # where nobody asks whether it cancels
            return None
        if not xs[0].dtype == d.dtype == self.normalised.dtype == norm_dtype(d.dtype):
            return None
        x, d = sampler.at_positions(xs, d, batch)
        x = x - x.mean(2, keepdim=True)
        whole, n = gram_squares(x, d * self.scale), x.shape[2]
        if whole is None:
            return None
        along = (d * (x @ self.normalised.T)).sum(1)
        less = along.square() * (2 - self.normalised.square().mean(1)) / n
        squares = whole - less @ self.scale.square()
        return None if cancels(squares, whole) else (squares, along)


class StandardisedWeight:
    """From `c_u` to `c_w`."""

    def __init__(self, of: Standardisation) -> None:
        self.of = of

    def samples(self, of_u: Tensor) -> Tensor:
        """`[b, O, n]`."""
        return self._projected(of_u).mul_(self.of.scale.unsqueeze(1))

    def squares(self, of_u: Tensor) -> Tensor:
        """`‖c_w‖²`, `[b]`."""
        rows = squared_norms(self._projected(of_u).flatten(0, 1)).view(of_u.shape[0], -1)
        return rows @ self.of.scale.to(rows.dtype).square()

    def of_gram(self, found: tuple[Tensor, Tensor]) -> Tensor:
        """The same, from what `by_gram` found."""
        return found[0]

    def _projected(self, of_u: Tensor) -> Tensor:
        v, normalised = self.of.shaped(of_u), self.of.normalised
        along = (v * normalised).mean(2, keepdim=True)
        return (v - v.mean(2, keepdim=True)).addcmul_(normalised, along, value=-1)


class StandardisedGain:
    """From `c_u` to `c_i` of a parameter that `γ` is computed from."""

    def __init__(self, of: Standardisation, parameter: Tensor) -> None:
        self.of, self._parameter = of, parameter

    def samples(self, of_u: Tensor) -> Tensor:
        return self._from((self.of.shaped(of_u) * self.of.normalised).sum(2))

    def squares(self, of_u: Tensor) -> Tensor:
        """`‖c_i‖²`, `[b]`."""
        return squared_norms(self.samples(of_u))

    def of_gram(self, found: tuple[Tensor, Tensor]) -> Tensor:
        """The same, from what `by_gram` found."""
        return squared_norms(self._from(found[1]))

    def _from(self, of_gain: Tensor) -> Tensor:
        edge, parameter = self.of.gain, self._parameter
        if not self._is_elementwise():
            return quiet_gradient(edge, parameter, of_gain, batched=True)
        derivative = quiet_gradient(edge, parameter, torch.ones_like(of_gain[0]), batched=False)
        return of_gain * derivative.view(-1)

    def _is_elementwise(self) -> bool:
        """Whether each number of `γ` is a number of the parameter times something, in their order."""
        node = _behind_views(self.of.gain.node)
        while node is not None and node.name() == _PRODUCT and None in [other for other, _ in node.next_functions]:
            node = _behind_views(next(other for other, _ in node.next_functions if other is not None))
        return _is_gradient_of(node, self._parameter) and self._parameter.numel() == self.of.scale.numel()


def is_standardised(u: Tensor) -> bool:
    """Whether a tensor comes out of a batch norm."""
    node = _behind_views(u.grad_fn)
    return node is not None and node.name() == _BATCH_NORM


def _behind_views(node: Any) -> Any:
    while node is not None and node.name() in _MOVING_NOTHING:
        ((node, _),) = node.next_functions
    return node


def _is_gradient_of(node: Any, parameter: Tensor) -> bool:
    return getattr(node, "variable", None) is parameter


def _leads_to(node: Any, parameter: Tensor) -> bool:
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if _is_gradient_of(node, parameter):
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False
