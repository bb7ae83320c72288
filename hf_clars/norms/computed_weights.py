"""What a parameter contributes by way of a weight that is computed from it: a standardised one, a transposed one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .backward_passes import quiet_gradient
from .grad_samples import GivenSamples, GradSamples, OperatorSamples, chunks, joined
from .numerics.reductions import squared_norms, sum_of_samples
from .recorded_calls import Recipe
from .standardised import Standardisation
from .tracked import TrackedParameter


class SamplesThroughGraph(GradSamples):
    """A parameter `w` behind a tensor `u = g(w)` that an operator used: `c_{w,i} = (∂g/∂w)ᵀ c_{u,i}`.

    Args:
        part: `c_u`.
        edge: where autograd stood behind `u` when it was used.
        standardisation: `g`, if it is one.
    """

    def __init__(
        self,
        part: GradSamples,
        u: Tensor,
        edge: GradientEdge,
        parameter: Tensor,
        standardisation: Standardisation | None,
    ) -> None:
        self.part, self.u, self.edge, self.parameter, self.standardisation = part, u, edge, parameter, standardisation
        self.batch, self.shape, self.dtype, self.device = part.batch, parameter.shape, part.dtype, part.device
        self.closed_form = None if standardisation is None else standardisation.for_parameter(parameter)

    def runs(self) -> list[slice]:
        elements = self.parameter.numel() + self.u.numel()
        return chunks(self.batch, elements * self.dtype.itemsize, self.device)

    def kept(self) -> GradSamples:
        return GivenSamples(self.samples(slice(0, self.batch)))

    def samples(self, run: slice) -> Tensor:
        return self._through(self.of_u(run))

    def squares(self) -> Tensor:
        return squares_through([self])[0][0]

    def total(self) -> Tensor:
        return self._through(self.part.total().reshape(1, *self.u.shape).to(self.u.dtype))[0]

    def of_u(self, run: slice) -> Tensor:
        """`c_{u,i}` of a run of samples."""
        return self.part.samples(run).reshape(-1, *self.u.shape).to(self.u.dtype)

    def squares_of(self, of_u: Tensor) -> Tensor:
        """`‖c_i‖²`, from `c_{u,i}`."""
        return squared_norms(self._through(of_u)) if self.closed_form is None else self.closed_form.squares(of_u)

    def _through(self, of_u: Tensor) -> Tensor:
        """From `c_u`, `[b, *u.shape]`, to `c_w`."""
        if self.closed_form is not None:
            return self.closed_form.samples(of_u).reshape(-1, *self.shape)
        if of_u.shape[0] > 1:
            return quiet_gradient(self.edge, self.parameter, of_u, batched=True)
        return quiet_gradient(self.edge, self.parameter, of_u[0], batched=False).unsqueeze(0)


def squares_through(parts: Sequence[SamplesThroughGraph], summed: bool = False) -> tuple[list[Tensor], Tensor | None]:
    """`‖c_i‖²` of each of several parameters behind one `u`; and, if `summed`, `Σ_i c_{u,i}`, the gradient of `u`."""
    if not summed:
        found = _by_gram(parts)
        if found is not None:
            return found, None
    squares: list[list[Tensor]] = [[] for _ in parts]
    total = None
    for run in max([part.runs() for part in parts], key=len):
        of_u = parts[0].of_u(run)
        if summed:
            total = sum_of_samples(of_u, total)
        for part, own in zip(parts, squares, strict=True):
            own.append(part.squares_of(of_u))
    return [joined(own) for own in squares], total


def _by_gram(parts: Sequence[SamplesThroughGraph]) -> list[Tensor] | None:
    """`‖c_i‖²` without forming `c_u`; None where it takes that."""
    of_u, standardisation = parts[0].part, parts[0].standardisation
    forms = [part.closed_form for part in parts if part.closed_form is not None]
    if standardisation is None or not isinstance(of_u, OperatorSamples) or len(forms) < len(parts):
        return None
    squares: list[list[Tensor]] = [[] for _ in parts]
    for run in of_u.runs_of_squares():
        found = standardisation.by_gram(of_u.sampler, *of_u.cut(run), run.stop - run.start)
        if found is None:
            return None
        for form, own in zip(forms, squares, strict=True):
            own.append(form.of_gram(found))
    return [joined(own) for own in squares]


class SamplesThroughRecipe(GradSamples):
    """The same where a recipe stands for the graph from `u` to `w`.

    Args:
        tracked: `w`.
        others: all parameters that recipes may name by their index.
    """

    def __init__(
        self, part: GradSamples, recipe: Recipe, tracked: TrackedParameter, others: Sequence[TrackedParameter]
    ) -> None:
        self.part, self.recipe, self.tracked, self.others = part, recipe, tracked, others
        self.batch, self.shape, self.dtype, self.device = part.batch, tracked.parameter.shape, part.dtype, part.device

    def runs(self) -> list[slice]:
        elements = self.tracked.parameter.numel() + torch.Size(self.part.shape).numel()
        return chunks(self.batch, elements * self.dtype.itemsize, self.device)

    def kept(self) -> GradSamples:
        return GivenSamples(self.samples(slice(0, self.batch)))

    def samples(self, run: slice) -> Tensor:
        def made(parameter: Tensor) -> Tensor:
            others, index = self.others, self.tracked.index
            return self.recipe.made_of(lambda i: parameter if i == index else others[i].parameter.detach())

        made_at = torch.func.vjp(made, self.tracked.parameter.detach())
        u, back = made_at[0], made_at[1]
        each = self.part.samples(run).reshape(-1, *u.shape).to(u.dtype)
        return torch.func.vmap(back)(each)[0]
