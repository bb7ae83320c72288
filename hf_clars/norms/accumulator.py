"""`Σ‖c‖`, `Σ‖c‖²` and the number of samples for each of K columns: of the gradient at hand, and since the last reset.

It knows numbers alone: columns stand for parameters, and why a column is left out is decided elsewhere. All three are
rows of one matrix, so that a reduction over ranks is one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

NORMS, SQUARES, COUNT, EXCLUDED = range(4)  # rows; the last one of what is reduced over ranks

_INDICES = 64  # kept; a model that drops layers at random asks for ever others


class Accumulator:
    """Sums `[3, K]`, with rows `Σ‖c‖` and `Σ‖c‖²` in units of the gradient and of its square, and samples.

    Args:
        columns: K.
        dtype, device: of the sums.
    """

    def __init__(self, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self.current = torch.zeros(3, columns, dtype=dtype, device=device)
        self.past = torch.zeros_like(self.current)
        self._indices: dict[tuple[int, ...], Tensor] = {}

    def add(self, columns: Sequence[int], squares: Tensor, batch: int) -> Tensor:
        """Add one backward pass, and return the norms.

        Args:
            squares: `‖c‖²` of the m measured ones of the pass's samples, `[len(columns), m]`.
            batch: how many samples the pass had; the sums are scaled up to it.
        """
        norms = squares.sqrt()
        sums = torch.stack((norms.sum(1), squares.sum(1)))
        measured = squares.shape[1]
        if batch != measured:
            sums *= batch / measured
        sums = sums.to(self.current.device, self.current.dtype, non_blocking=True)
        self.current.index_add_(1, self.index(columns), torch.cat((sums, torch.full_like(sums[:1], batch))))
        return norms

    def turn(self, columns: Sequence[int], where: Tensor | None = None) -> None:
        """A new gradient begins in these columns (of them, where `where` `[len(columns)]` holds): the sums are past."""
        index = self.index(columns)
        sums = self.current.index_select(1, index)
        turned = sums if where is None else torch.where(where, sums, 0)
        self.past.index_add_(1, index, turned)
        # Not by subtraction, for which infinity less infinity is no zero.
        self.current.index_copy_(1, index, torch.zeros_like(sums) if where is None else torch.where(where, 0, sums))

    def turn_all(self) -> None:
        """A new gradient begins in all columns."""
        self.past += self.current
        self.current.zero_()

    def total(self, row: int) -> Tensor:
        """`[K]`, since the last reset."""
        return self.past[row] + self.current[row]

    def reduced(self, excluded: Tensor) -> Tensor:
        """`[4, K]` of the gradient at hand over all ranks: `Σ‖c‖` and `Σ‖c‖²` averaged as the gradient is, the number
        of samples, and how many ranks exclude the column. One all-reduce.

        Args:
            excluded: which columns this rank excludes, `[K]`.
        """
        sums = torch.cat((self.current, excluded.to(self.current)[None]))
        dist.all_reduce(sums)
        world = dist.get_world_size()
        # Ranks average their gradients: each contribution is divided by the world size, its square twice.
        sums[NORMS] /= world
        sums[SQUARES] /= world**2
        return sums

    def index(self, columns: Sequence[int]) -> Tensor:
        """Columns, kept on the device, because bringing them there makes the host wait."""
        key = tuple(columns)
        if key not in self._indices:
            if len(self._indices) >= _INDICES:
                self._indices.clear()
            self._indices[key] = torch.tensor(key, device=self.current.device)
        return self._indices[key]
