"""What passes over a batch and over its samples showed, and what follows from it for a parameter."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from .verdicts import NormVerdict, Status


@dataclass(eq=False)
class Evidence:
    """What passes over the batch and over single samples showed, by name of the parameter.

    Attributes:
        parameters: those that are trained.
        tolerance: of a relative error.
        measured, untracked: what `PerSampleNorms` has.
        gradient: `‖∇L‖`, of those that `L` depends on.
        changed: norm of what measuring changes in the gradient.
        expected: `‖c_i‖`, `[B]`.
        rest: `‖∇L − Σ_i c_i‖`.
        failed: why no backward pass was possible while measuring; empty if one was.
        doubt: why single samples do not tell; empty if they do.
    """

    parameters: dict[str, nn.Parameter]
    tolerance: float
    measured: dict[str, Tensor] = field(default_factory=dict)
    untracked: dict[str, str] = field(default_factory=dict)
    gradient: dict[str, float] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)
    expected: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    doubt: str = ""

    def verdict(self, name: str, size: int) -> NormVerdict:
        measured, expected = self.measured.get(name), self.expected.get(name)
        if self.doubt:
            expected = None
        # Norms that are mere rounding of larger ones are held against a share of those.
        floor = self.tolerance * max((g for g in self.gradient.values() if g < float("inf")), default=0.0)
        error = None
        if measured is not None and expected is not None and measured.shape == expected.shape:
            largest = (measured - expected).abs().max().item()
            error = largest / max(expected.max().item(), floor, 1e-300)

        def found(status: Status, reason: str = "") -> NormVerdict:
            return NormVerdict(name, status, measured, expected, error, reason)

        if self.failed:
            return found("wrong", self.failed)
        if name in self.untracked:
            return found("named", self.untracked[name])
        if name not in self.gradient and (measured is None or not measured.any()):
            return found("unused", "the loss does not depend on it")
        if measured is None:
            if self.parameters[name].ndim >= 2:
                return found("wrong", "neither measured nor named in .untracked")
            return found("named", "a bias or norm weight, which is not measured")
        if measured.shape != (size,):
            return found("wrong", f"{measured.numel()} norms for {size} samples")
        gradient = self.gradient.get(name, 0.0)
        if not gradient < float("inf"):
            return found("not checked", "its gradient is not finite")
        if not measured.isfinite().all():
            return found("wrong", "norms are not finite, the gradient is")
        changed = self.changed.get(name, 0.0)
        if changed > self.tolerance * max(gradient, floor):
            return found("wrong", f"measuring changes its gradient, {gradient:.4g}, by {changed:.4g}")
        total = measured.sum().item()
        too_small = total < gradient - self.tolerance * max(gradient, floor)
        missing, agrees = float("inf"), error is not None and error <= self.tolerance
        if expected is not None:
            missing = self.rest[name] / max(expected.sum().item(), floor, 1e-300)
        if missing <= self.tolerance:
            return found("right" if agrees else "wrong")
        expected = error = None  # it is no reference
        if too_small:
            return found("wrong", f"Σ‖c_i‖ = {total:.4g} is less than the norm of its gradient, {gradient:.4g}")
        if agrees and missing**2 > 20 * self.tolerance:  # what is orthogonal adds half its square to a norm
            return found("wrong", "its contributions do not add up to its gradient: it has other uses")
        return found("not checked", self.doubt or "gradients of single samples do not add up to the batch's")
