"""Where samples come in: the arguments of a forward pass."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..errors import UserError
from .marks import PLACE, is_source, place_of
from .sample_axis.axis import Assumption, Lost, SampleAxis

_ANOTHER = "it sees an argument with as many rows as there are samples, which turned out to be no samples'"


class Inputs:
    """Finds the batch among the arguments of each outermost call, and marks the tensors that hold it.

    Args:
        dim: the dimension of the arguments in which samples stand.
        size: the number of samples, where the arguments do not tell; None takes it from the first tensor with more than
            one row, of which there must be no doubt.
    """

    def __init__(self, dim: int, size: int | None) -> None:
        self.dim, self.size = dim, size
        self.assumptions: list[Assumption] = []  # about arguments of the current pass
        self._told = False

    def begin(self, tensors: list[Tensor], unbatched: bool) -> int | None:
        """A pass over new inputs; the number of its samples, None where no argument has any."""
        candidates = [t for t in tensors if t.ndim > self.dim and not is_source(t)]
        if unbatched and self.size is None:
            setattr(candidates[0], PLACE, SampleAxis(0, candidates[0].shape[0], 1))
            return 1
        batch = self._number(candidates)
        self.assumptions, known = [], False
        for tensor in candidates:
            if batch is None or tensor.shape[self.dim] != batch:
                if hasattr(tensor, PLACE):
                    setattr(tensor, PLACE, None)
                continue
            # Another argument with as many rows may be something else: a mask over as many positions.
            assumed: tuple[Assumption, ...] = ()
            if known and batch > 1 and not torch.compiler.is_compiling():
                assumed = (Assumption(_ANOTHER, [], stands=True),)
                self.assumptions += assumed
            setattr(tensor, PLACE, SampleAxis(self.dim, 1, max(1, batch), assumed))
            known = True
        return batch

    def _number(self, tensors: list[Tensor]) -> int | None:
        sizes = [t.shape[self.dim] for t in tensors]
        if self.size is not None:
            if sizes and self.size not in sizes:
                raise UserError(
                    f"batch_size={self.size}, but no argument of the forward pass has so many rows: they have "
                    f"{', '.join(map(str, sizes))} in dimension {self.dim}"
                )
            return self.size
        if not sizes:
            return None
        if sizes[0] != 1:
            return sizes[0]
        larger = [size for size in sizes if size > 1]
        if not larger:
            return 1
        if not self._told and not torch.compiler.is_compiling():
            self._told = True
            warnings.warn(
                f"the arguments of the forward pass have {', '.join(map(str, sizes))} rows; PerSampleNorms takes "
                f"{larger[0]} for the number of samples: set batch_size if it is another",
                stacklevel=6,
            )
        return larger[0]

    def go_on(self, tensors: list[Tensor]) -> bool:
        """Whether a pass goes on with these: results of a watched call are handed to another. Marks what came from
        outside of those."""
        inner = [t for t in tensors if t.requires_grad and not t.is_leaf and not is_source(t)]
        if not any(place_of(t) is not None for t in inner):
            return False
        for tensor in inner:
            if place_of(tensor) is None:
                setattr(tensor, PLACE, Lost("its input was computed between two calls that are watched"))
        return True
