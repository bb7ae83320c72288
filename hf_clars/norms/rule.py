"""What a rule is: how the parameters of one module are measured."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .measure import chunks


class Rule(ABC):
    """Belongs to one module with a `weight`, perhaps a `bias`, and an input whose first dimension is the batch.

    It knows how to call the layer with substituted parameters, whether it wants to compute the weight gradient itself
    (`fused`), and `‖c_i‖²` or `c_i` of weight and bias from `(x, d)`; `forms.py` has the notation.
    """

    unbatched_ndim = 0  # number of dimensions of an input without a batch dimension; 0: there is no such thing

    folded_ndim = 2  # fewest dimensions of an input whose rows may be several a sample

    def __init__(self, module: Any) -> None:
        self.module = module

    def prepare(self, x: Tensor) -> Tensor:
        """What the layer's operator is given: padding and autocast's cast, done where autograd sees them."""
        wide = x.dtype == torch.float64  # which autocast leaves alone
        if x.is_floating_point() and not wide and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return x

    @abstractmethod
    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with these parameters in place of its own."""

    def finish(self, y: Tensor) -> Tensor:
        """What the module does after the parameters were used."""
        return y

    def fused(self, x: Tensor, batch: int) -> bool:
        """Whether the weight gradient shall come out of `samples`, instead of from autograd."""
        return False

    @abstractmethod
    def squares(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        """`‖c_i‖²` of the weight, `[batch]`, without forming a gradient of all samples."""

    def squares_elements(self, x: Tensor, batch: int) -> int:
        """About how many numbers `squares` holds per sample, beside its operands."""
        return x.numel() // batch

    def sample_runs(self, x: Tensor, batch: int) -> list[slice]:
        """How to cut the batch so that `samples` of a run fits the device's budget."""
        folds = x.shape[0] // batch
        return chunks(batch, self.module.weight.numel() * folds * x.element_size(), x.device)

    @abstractmethod
    def samples(self, x: Tensor, d: Tensor, batch: int) -> Tensor:
        """`c_i` of the weight, `[batch, *weight.shape]`."""

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        """`c_i` of the bias, `[batch, *bias.shape]`."""
        raise TypeError(f"{type(self.module).__name__} has no bias")
