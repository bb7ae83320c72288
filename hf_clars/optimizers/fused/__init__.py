"""`step()` on CUDA in one pass over memory: which groups and which of their tensors the kernels take.

The foreach form reads and writes every tensor once per operation; here w, g and u are read once and w and u written
once, and `‖w_k‖` is taken from the weights while they are written, for the next step. What the kernels do not take goes
the other way: other dtypes than float32, bfloat16 and float16; FSDP2's shards; tensors with gaps; a gradient or a
momentum buffer that lies otherwise in memory than its weight.

Nothing of Triton is imported before a tensor is taken.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import defaultdict
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ..group_rules import is_adapted

if TYPE_CHECKING:
    from .bucket import Bucket

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NUMBERS = ("momentum", "eta", "weight_decay")  # as tensors they would have to be waited for


class Division:
    """A group's members: buckets of what one launch can take together, and the rest.

    Args:
        group: of an optimizer.
        former: how it was divided before, if it was; kept if a CUDA graph reads of it.
    """

    def __init__(self, group: dict[str, Any], former: Division | None = None) -> None:
        self._former = former if former is not None and former.is_captured() else None
        self._params = list(group["params"])
        self._rules = _rules(group)
        together: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = defaultdict(list)
        self.rest: list[Tensor] = []
        for weight in self._params:
            if not serves(weight.device, bool(group["fused"])):
                if group["fused"]:
                    raise UserError(
                        "fused=True needs Triton and an NVIDIA GPU of compute capability 8.0 or later, and a parameter "
                        f"is on {weight.device}: leave fused=None"
                    )
                self.rest.append(weight)
            elif _takes(weight):
                together[weight.device, weight.dtype, is_adapted(group, weight)].append(weight)
            else:
                self.rest.append(weight)
        self.buckets: list[Bucket] = []
        if together:
            from .bucket import Bucket

            self.buckets = [Bucket(weights, adapted) for (_, _, adapted), weights in together.items()]

    def is_captured(self) -> bool:
        """Whether a CUDA graph, if it still is there, reads of this division or of a former one."""
        return self._former is not None or any(bucket.captured for bucket in self.buckets)

    def rest_buckets(self) -> None:
        """The group is updated another way."""
        for bucket in self.buckets:
            bucket.rated = None

    def is_of(self, group: dict[str, Any]) -> bool:
        """Whether the group still has the members and rules that it was divided by, where they were in memory."""
        params = group["params"]
        return (
            len(params) == len(self._params)
            and all(map(is_, params, self._params))
            and self._rules == _rules(group)
            and all(bucket.places.are_kept() for bucket in self.buckets)
        )


def is_wanted(group: dict[str, Any]) -> bool:
    """Whether the kernels are to take what they can of this group."""
    if torch.compiler.is_compiling() or any(isinstance(group[name], Tensor) for name in _NUMBERS):
        return False
    return group["foreach"] is None if group["fused"] is None else bool(group["fused"])


def _rules(group: dict[str, Any]) -> tuple[Any, ...]:
    return group["bias_and_norm"], group["layer_adaptation"], group["fused"]


@functools.cache
def serves(device: torch.device, asked_for: bool) -> bool:
    """Whether the kernels run on this device; on a CPU, if they are asked for, in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:
        return False
    if device.type == "cpu" and asked_for:
        from triton import knobs

        return bool(knobs.runtime.interpret)
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _takes(weight: Tensor) -> bool:
    if type(weight) not in (Tensor, nn.Parameter) or weight.dtype not in _DTYPES or weight.is_inference():
        return False
    # `empty_like` keeps the strides of tensors without gaps and overlaps, and of no others.
    return weight.layout == torch.strided and torch.empty_like(weight, device="meta").stride() == weight.stride()
