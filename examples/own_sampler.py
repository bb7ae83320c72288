"""A layer whose derivative is one's own becomes measurable: its per-sample gradients in a few lines.

A `torch.autograd.Function` hides what it does with its weight, so that the weight is listed in `norms.untracked`. With
`measured_by` its norms are exact, which `verify_norms` shows against passes over single samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_clars import verify_norms
from hf_clars.norms import Operator, Sampler, measured_by


class ScaledByHand(torch.autograd.Function):
    """`x · w`, along the last dimension; as a kernel of one's own would be."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return d * w, (d * x).flatten(0, -2).sum(0)


@dataclass(frozen=True)
class ScaleSampler(Sampler):
    """Per-sample gradients of w: `c_i` is the sum of `x · d` over sample i's positions."""

    def samples(self, xs: list[Tensor], d: Tensor, batch: int) -> Tensor:
        return (xs[0] * d).reshape(batch, -1, *self.shape).sum(1)


@measured_by(lambda x, w: Operator(ScaleSampler(tuple(w.shape)), x, w, None, lambda x, w, _: ScaledByHand.apply(x, w)))
def scale(x: Tensor, w: Tensor) -> Tensor:
    return ScaledByHand.apply(x, w)


class Network(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.scale = nn.Parameter(1 + torch.randn(16) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.tanh(self.first(x)), self.scale).mean(1))


def main() -> None:
    torch.manual_seed(0)
    batch = torch.randn(16, 5, 8), torch.randint(0, 3, (16,))  # 16 samples of 5 positions
    for name, function in (("as torch sees it", ScaledByHand.apply), ("with a sampler", scale)):
        print(f"\n{name}:")
        verify_norms(Network(function), batch, nn.functional.cross_entropy)


if __name__ == "__main__":
    main()
