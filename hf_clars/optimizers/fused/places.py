"""Where a bucket's tensors are in memory, and which of them lie there as their weights do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..group_rules import momentum_buffer


class Places:
    """Weights of one device and dtype, by which the places of their gradients and momentum buffers are judged.

    Asked in every step for every tensor, so nothing is looked at twice that cannot have changed: what is where it was
    found to fit, with the strides that it had, fits.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self._weights = weights
        self.of_weights = [w.data_ptr() for w in weights]
        self.sizes = [w.numel() for w in weights]
        self._strides = [w.stride() for w in weights]
        self._gradients: tuple[list[int], list[Any]] = [], []  # places and strides, when last judged
        self._fits: list[bool] = []  # what was found
        self._buffers: list[int] = []  # places of those that were found to fit

    def are_kept(self) -> bool:
        """Whether the weights are where they were. (What they are, their gradients tell: torch sees to it.)"""
        weights = self._weights
        return self.of_weights == [w.data_ptr() for w in weights] and self._strides == [w.stride() for w in weights]

    def of_gradients(self, gradients: Sequence[Tensor | None]) -> tuple[list[bool], list[int]]:
        """Which are there and fit; and the places of these, 0 for others."""
        try:
            places = [0 if g is None else g.data_ptr() for g in gradients]
            strides = [None if g is None else g.stride() for g in gradients]
        except RuntimeError:  # one has none, because it is sparse
            places, strides = [], []
        if not places or (places, strides) != self._gradients:
            self._fits = self._fit(gradients)
            self._gradients = places, strides
        if all(self._fits):
            return self._fits, places
        return self._fits, _places(gradients, self._fits)

    def of_buffers(self, state: Mapping[Tensor, Any], wanted: list[bool]) -> tuple[list[bool], list[int]]:
        """Which of those that are wanted fit; and the places of these, 0 for others. Those that lack are made."""
        buffers = self._momentum(state, wanted)
        places = _places(buffers, wanted)
        if places == self._buffers:
            return wanted, places
        fits = self._fit(buffers)
        self._buffers = _places(buffers, fits)
        return fits, self._buffers

    def _momentum(self, state: Mapping[Tensor, Any], wanted: list[bool]) -> list[Tensor | None]:
        members = list(zip(self._weights, wanted, strict=True))
        try:
            return [state[w]["momentum_buffer"] if want else None for w, want in members]
        except KeyError:
            return [momentum_buffer(state[w], w) if want else None for w, want in members]

    def _fit(self, tensors: Sequence[Tensor | None]) -> list[bool]:
        """Whether each is there and lies in memory as its weight does."""
        dtype, index = self._weights[0].dtype, self._weights[0].get_device()
        return [
            type(t) is Tensor
            and t.layout is torch.strided
            and t.stride() == stride
            and t.numel() == size
            and t.dtype is dtype
            and t.get_device() == index
            for t, stride, size in zip(tensors, self._strides, self.sizes, strict=True)
        ]


def _places(tensors: Sequence[Tensor | None], wanted: list[bool]) -> list[int]:
    return [t.data_ptr() if want and t is not None else 0 for t, want in zip(tensors, wanted, strict=True)]
