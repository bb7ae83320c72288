"""A kernel with all its numbers, to be launched for other tensors again and again."""

from __future__ import annotations

from typing import Any

import torch
from triton.runtime.jit import KernelInterface


class Launch:
    """Binds a kernel's numbers once. Triton looks at every argument of every launch, which takes the host longer than
    most of these kernels take the GPU; what a first launch compiled can be launched without.

    Args:
        kernel: whose arguments are tensors, then numbers, then constants.
        grid: programs.
        numbers, constants: the arguments after the tensors, in order.
        options: of the compiler, `num_warps` and `num_stages`.
    """

    def __init__(
        self,
        kernel: KernelInterface,
        grid: tuple[int, ...],
        numbers: tuple[int, ...],
        constants: dict[str, Any],
        **options: int,
    ) -> None:
        self.kernel, self._options = kernel, options
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.numbers, self.constants = numbers, constants
        self._arguments = (*numbers, *constants.values())
        self._compiled: Any = None  # stays so in the interpreter

    def __call__(self, device: torch.device, *tensors: Any) -> None:
        """Launch on `device`. Each tensor is of the first call's type and as aligned, or a descriptor as that was."""
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(device, *tensors)
        elif self._compiled is not None:
            self._compiled[self.grid](*tensors, *self._arguments)
        else:
            launch = self.kernel[self.grid]
            self._compiled = launch(*tensors, *self.numbers, **self.constants, **self._options)
