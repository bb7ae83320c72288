"""Compile every kernel for GPUs that need not be here, and launch none; run by test_norms_kernels.py as a program.

Triton's interpreter runs what its compiler refuses.
"""

import sys
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from hf_clars.norms import kernels
from hf_clars.norms.kernels import Convolution, launch, layout, weight_gradient


class Driver:
    """As much of a GPU's as compiling takes."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(self: launch.Launch, device: torch.device, *tensors: object) -> None:
    compiled = self._kernel.warmup(*tensors, *self._numbers, grid=self._grid, **self._constants, **self._options)
    print(compiled.metadata.name, compiled.metadata.target.arch)


def main(capability: int) -> None:
    triton.runtime.driver.set_active(Driver(capability))
    boxes = layout.loads_boxes if capability >= 90 else lambda *_: False
    for name, channels, dtype, size in (
        ("tiles", 64, torch.bfloat16, 3),
        ("tiles", 64, torch.float32, 3),
        ("tiles", 3, torch.float16, 3),
        ("tiles", 64, torch.float16, 1),
        ("depthwise", 64, torch.bfloat16, 3),
        ("depthwise", 64, torch.float32, 3),
        ("gram", 64, torch.bfloat16, 3),
        ("gram", 64, torch.float32, 1),
    ):
        groups = channels if name == "depthwise" else 1
        x, d = (torch.empty(2, n, 8, 8, dtype=dtype) for n in (channels, 64))
        x, d = (t.contiguous(memory_format=torch.channels_last) for t in (x, d))
        shape, padding = (64, channels // groups, size, size), (size // 2, size // 2)
        c = Convolution(x, d, shape, (1, 1), padding, (1, 1), groups, name)
        with (
            mock.patch.object(launch.Launch, "__call__", compile_only),
            mock.patch.object(weight_gradient, "loads_boxes", boxes),
        ):
            if name == "gram":
                kernels.squares(c, 2)
            else:
                kernels.squares_and_sum(c, 2, torch.float32)


if __name__ == "__main__":
    main(int(sys.argv[1]))
