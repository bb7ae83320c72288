"""Tensors that one launch updates together: the tables by which kernels find them, and the norms that wait for them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import reduce
from operator import or_
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from ..group_rules import common_rates, decay_of, gamma_scale, is_captured, refuse_capture
from . import kernels
from .kernels import CHUNK, PARTIALS, WARPS
from .places import Places

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Bucket:
    """Weights of one group, device and dtype, all adapted or none.

    A step brings addresses to the device, if they are not those of the step before (gradients are often elsewhere),
    and waits for nothing. The norms of weights come from the update of the step before, if no weight was written since,
    which their versions tell. A CUDA graph's replays write without a version, so once one was captured norms are taken
    afresh.
    """

    def __init__(self, weights: list[Tensor], adapted: bool) -> None:
        self.weights, self._adapted = weights, adapted
        self._device, self._dtype = weights[0].device, weights[0].dtype
        refuse_capture(self._device)
        self.places = Places(weights)
        self.rated: list[int] | None = None  # which weights the optimizer looks up in `rates`
        self.rates: list[Tensor] = []
        self._all = list(range(len(weights)))
        sizes = torch.tensor(self.places.sizes, device="cpu")
        chunks = (sizes + CHUNK - 1) // CHUNK
        firsts = torch.cat((torch.zeros(1, dtype=torch.int64, device="cpu"), chunks.cumsum(0)))
        owners = torch.arange(len(weights), device="cpu").repeat_interleave(chunks)
        self._chunks = len(owners)
        self._layout = self._pinned(torch.cat((sizes, firsts, owners))).to(self._device, non_blocking=True)
        self._table = torch.empty(4 * len(weights), dtype=torch.int64, device=self._device)
        self._listed: list[int] = []  # what is in the table
        self._aligned = False
        self._partials = torch.empty(self._chunks, dtype=torch.float32, device=self._device)
        self._gradient_partials: Tensor | None = None
        self._norms_of: tuple[bool, list[int]] | None = None  # the alignment and versions that `_partials` are of
        # A graph reads the host's copy of its addresses at every replay: it must stay, and stay what it is. It is made
        # before, because not every torch can pin memory while a graph is captured.
        self._spare: Tensor | None = None
        self.captured: list[Any] = []

    def forget_norms(self) -> None:
        """Take the norms of weights afresh in the next step."""
        self._norms_of = None

    def step(
        self, group: dict[str, Any], state: Mapping[Tensor, Any], denominators: Mapping[Tensor, Tensor]
    ) -> tuple[Tensor, list[int], list[Tensor]]:
        """Update the weights that have a gradient, by Eq. 4.

        Args:
            group: of the optimizer; its options.
            state: of the optimizer.
            denominators: weight → `D_k`, 0-dim; an adapted weight that is absent takes `‖g‖`.

        Returns:
            `γ` `[K]` in float32, of the weights that were updated; which these are; and those that have a gradient but
            lie in memory otherwise than it or their momentum buffer.
        """
        weights = self.weights
        gradients = [w.grad for w in weights]
        fits, gradients_at = self.places.of_gradients(gradients)
        buffers_at = [0] * len(weights)
        if group["momentum"]:
            having, (fits, buffers_at) = fits, self.places.of_buffers(state, fits)
            if fits != having:
                gradients_at = [at if fit else 0 for at, fit in zip(gradients_at, fits, strict=True)]
        taken, left = self._all, []
        if not all(fits):
            taken = [k for k, fit in enumerate(fits) if fit]
            left = [w for w, g, fit in zip(weights, gradients, fits, strict=True) if g is not None and not fit]
        adapted = self._adapted and not group["uniform"]
        found: list[Tensor | None] = []
        if adapted and denominators:
            found = [self._found(denominators.get(w)) for w in weights]
        found_at = [0 if d is None else d.data_ptr() for d in found] or [0] * len(weights)
        listed = [*self.places.of_weights, *gradients_at, *buffers_at, *found_at]
        if not taken:
            return self._partials, taken, left

        capturing = is_captured(self._device)
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            table = self._capture(listed, found) if capturing else self._bring(listed)
            decay = decay_of(group, self._adapted)
            if adapted:
                lacking = not all(found_at[k] for k in taken)
                gammas = self._rates(table, group, decay, fresh=capturing, lacking=lacking)
            else:
                gammas = common_rates(group, len(weights), self._device, torch.float32)
            # A graph's update takes norms, too, though not for use: compiling another kernel is nothing to do now.
            self._launch(
                kernels.update, table, gammas, self._partials, float(group["momentum"]), float(decay),
                MOMENTUM=bool(group["momentum"]), DECAY=bool(decay), NORMS=adapted,
            )  # fmt: skip
        increment_version(weights if taken is self._all else [weights[k] for k in taken])
        counts = adapted and not self.captured
        self._norms_of = (self._aligned, [w._version for w in weights]) if counts else None
        return gammas, taken, left

    def _found(self, denominator: Tensor | None) -> Tensor | None:
        if denominator is None or (denominator.dtype is torch.float32 and denominator.device == self._device):
            return denominator
        return denominator.to(self._device, torch.float32, non_blocking=True)

    def _bring(self, listed: list[int]) -> Tensor:
        """The table of addresses, on the device. torch keeps the pinned copy from other use until it has been read."""
        if self._spare is None:
            self._spare = self._pinned(torch.zeros(len(listed), dtype=torch.int64, device="cpu"))
        if listed != self._listed:
            pinned = torch.tensor(listed, dtype=torch.int64, device="cpu", pin_memory=self._device.type == "cuda")
            self._table.copy_(pinned, non_blocking=True)
            self._listed, self._aligned = listed, self._are_aligned(listed)
        return self._table

    def _capture(self, listed: list[int], found: list[Tensor | None]) -> Tensor:
        """A table of the graph's own, brought at each replay from a copy on the host that nothing else writes to."""
        host, self._spare = self._spare, None
        if host is None:
            host = self._pinned(torch.empty(len(listed), dtype=torch.int64, device="cpu"))
        host.copy_(torch.tensor(listed, dtype=torch.int64, device="cpu"))
        table = torch.empty_like(self._table)
        table.copy_(host, non_blocking=True)
        self.captured.append((host, table, found))
        self._listed, self._aligned = [], self._are_aligned(listed)
        return table

    def _are_aligned(self, listed: list[int]) -> bool:
        return not reduce(or_, listed[: 3 * len(self.weights)]) % 16

    def _pinned(self, numbers: Tensor) -> Tensor:
        return numbers.pin_memory() if self._device.type == "cuda" else numbers

    def _rates(self, table: Tensor, group: dict[str, Any], decay: float, *, fresh: bool, lacking: bool) -> Tensor:
        """`γ_k` of adapted weights, `[K]`."""
        if fresh or self._norms_of != (self._aligned, [w._version for w in self.weights]):
            self._launch(kernels.sums_of_squares, table, self._partials, GRADIENTS=False)
        gradient_partials = self._partials
        if lacking:
            if self._gradient_partials is None:
                self._gradient_partials = torch.zeros_like(self._partials)
            gradient_partials = self._gradient_partials
            self._launch(kernels.sums_of_squares, table, gradient_partials, GRADIENTS=True)
        scale = gamma_scale(group) * group["eta"]
        if isinstance(scale, Tensor) and scale.device.type == self._device.type:
            scale = scale.to(self._device, torch.float32, non_blocking=True)
        else:
            scale = float(scale)  # of a tensor on the host: no wait
        gammas = torch.empty(len(self.weights), dtype=torch.float32, device=self._device)
        kernels.rates[(len(self.weights),)](
            table, self._layout, len(self.weights), self._partials, gradient_partials, scale, float(decay), gammas,
            DECAY=bool(decay and group["decay_in_denominator"]), ON_DEVICE=isinstance(scale, Tensor),
            PARTIALS=PARTIALS, num_warps=4,
        )  # fmt: skip
        return gammas

    def _launch(self, kernel: Any, table: Tensor, *arguments: Any, **options: Any) -> None:
        """A program for each chunk."""
        if self._chunks:
            kernel[(self._chunks,)](
                table, self._layout, len(self.weights), *arguments,
                **options, DTYPE=_DTYPES[self._dtype], ALIGNED=self._aligned, CHUNK=CHUNK, num_warps=WARPS,
            )  # fmt: skip
