"""Compile every kernel for GPUs that need not be here, and launch none; run by test_norms_kernels.py as a program.

Triton's interpreter runs what its compiler refuses. And a compiled kernel takes its arguments by position alone: each
is launched twice, the second time without Triton looking at them.
"""

import sys
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from hf_clars.norms import kernels
from hf_clars.norms.kernels import Convolution, layout, weight_gradient


class Launcher:
    """Counts what it is given, as a compiled kernel takes all that its source has."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._arguments, self._target = len(source.signature), metadata.target

    def __call__(self, x: int, y: int, z: int, stream: int, function: str, *rest: Any) -> None:
        arguments = rest[4:]  # behind metadata, that of the launch, and two hooks
        assert len(arguments) == self._arguments, (function, arguments, self._arguments)
        print(function, self._target.arch)


class Driver:
    """As much of a GPU's as compiling takes."""

    launcher_cls = Launcher

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10 if self._target.arch == 90 else 163 << 10}

    def load_binary(self, name: str, *_: Any) -> tuple[int, str, int, int, int]:
        return 1, name, 100, 0, 1024


def main(capability: int) -> None:
    triton.runtime.driver.set_active(Driver(capability))
    boxes = layout.loads_boxes if capability >= 90 else lambda *_: False
    for name, channels, groups, dtype, size in (
        ("tiles", 64, 1, torch.bfloat16, 3),
        ("tiles", 64, 1, torch.float32, 3),
        ("tiles", 3, 1, torch.float16, 3),
        ("tiles", 64, 1, torch.float16, 1),
        ("tiles", 64, 2, torch.bfloat16, 3),
        ("depthwise", 64, 64, torch.bfloat16, 3),
        ("depthwise", 64, 64, torch.float32, 3),
        ("gram", 64, 1, torch.bfloat16, 3),
        ("gram", 64, 1, torch.float32, 1),
    ):
        x, d = (torch.empty(2, n, 8, 8, dtype=dtype) for n in (channels, 64))
        x, d = (t.contiguous(memory_format=torch.channels_last) for t in (x, d))
        shape, padding = (64, channels // groups, size, size), (size // 2, size // 2)
        c = Convolution(x, d, shape, (1, 1), padding, (1, 1), groups, name)
        with mock.patch.object(weight_gradient, "loads_boxes", boxes):
            for _ in range(2):
                if name == "gram":
                    kernels.squares(c, 2)
                else:
                    kernels.squares_and_sum(c, 2, torch.float32)


if __name__ == "__main__":
    main(int(sys.argv[1]))
