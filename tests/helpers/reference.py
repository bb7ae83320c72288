"""Slow and obvious reference implementations, float64, written from the paper and DESIGN's definitions alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_clars.norms import PerSampleNorms

NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def contributions(model: nn.Module, name: str, loss: Callable[[], Tensor], batch: int) -> Tensor:
    """`c_i` of parameter `name`, `[batch, *shape]`: the derivative of `loss()` by sample i's own copy of it.

    Every module that holds the parameter is called once per sample with that sample's copy; a norm, whose samples must
    be normalised together, is called once with weight 1 and bias 0, and each sample then gets its own affine map.
    """
    parameter = dict(model.named_parameters())[name]
    copies = [parameter.detach().clone().requires_grad_() for _ in range(batch)]
    with ExitStack() as stack:
        for module in model.modules():
            for attribute, held in list(module.named_parameters(recurse=False)):
                if held is parameter:
                    stack.enter_context(mock.patch.object(module, "forward", _expanded(module, attribute, copies)))
        value = loss()
    gradients = torch.autograd.grad(value, copies, allow_unused=True)
    return torch.stack([torch.zeros_like(parameter) if g is None else g for g in gradients]).detach()


def check(model: nn.Module, x: torch.Tensor, dtype: torch.dtype = torch.float64, batch: int | None = None) -> None:
    """Norms and gradients of every parameter of a layer, measured in `dtype`, against `contributions` in float64."""
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    batch = x.shape[0] if batch is None else batch
    target = None

    def loss() -> torch.Tensor:
        nonlocal target
        y = model(x)
        if target is None:
            target = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        return (y * target).sum() / batch + (y.square() * target).mean()

    expected = {name: contributions(model, name, loss, batch) for name, _ in model.named_parameters()}
    model.zero_grad()
    loss().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    model.to(dtype)
    x, target = (x.to(dtype) if x.is_floating_point() else x), target.to(dtype)
    with PerSampleNorms(model) as norms:
        loss().backward()
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    assert norms.sums().keys() == expected.keys()
    for name, parameter in model.named_parameters():
        truth = expected[name].flatten(1).norm(dim=1)
        scale = max(truth.max().item(), 1e-3)
        torch.testing.assert_close(norms.per_sample()[name].double(), truth, rtol=tolerance, atol=tolerance * scale)
        torch.testing.assert_close(norms.sums()[name].double(), truth.sum(), rtol=tolerance, atol=tolerance * scale)
        squares = truth.square().sum()
        torch.testing.assert_close(norms.square_sums()[name].double(), squares, rtol=2 * tolerance, atol=tolerance)
        torch.testing.assert_close(expected[name].sum(0), gradients[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(parameter.grad.double(), gradients[name], rtol=100 * tolerance, atol=10 * tolerance)


def _expanded(module: nn.Module, attribute: str, copies: list[Tensor]) -> Callable[..., Tensor]:
    def per_sample(x: Tensor) -> Tensor:
        rows = x.shape[0] // len(copies)
        parts = x.split(rows)
        return torch.cat([_call(module, {attribute: c}, part) for c, part in zip(copies, parts, strict=True)])

    def affine(x: Tensor) -> Tensor:
        values = {a: p.detach() for a, p in module.named_parameters(recurse=False)}
        plain = {a: torch.ones_like(p) if a == "weight" else torch.zeros_like(p) for a, p in values.items()}
        normalised = _call(module, plain, x)
        rows = x.shape[0] // len(copies)
        out = []
        for copy, part in zip(copies, normalised.split(rows), strict=True):
            mine = {a: (copy if a == attribute else module.get_parameter(a)) for a in values}
            shape = [1] * part.ndim
            if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                shape[-copy.ndim :] = copy.shape
            else:
                shape[1] = copy.numel()
            part = part * mine["weight"].view(shape)
            out.append(part + mine["bias"].view(shape) if "bias" in mine else part)
        return torch.cat(out)

    return affine if isinstance(module, NORMS) else per_sample


def _call(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """`module(x)` with these parameters, by the class's own forward, whatever was patched onto the instance."""
    patched = module.__dict__.pop("forward")
    try:
        return functional_call(module, parameters, (x,))
    finally:
        module.__dict__["forward"] = patched


class NumpyAuthors:
    """The authors' code: `γ_k = γ_scale · min(0.1, η ‖w‖ / D)`, or γ_scale where D is None; heavy ball, lr outside."""

    def __init__(self, weights: list[np.ndarray], momentum: float, eta: float, weight_decay: float = 0.0) -> None:
        self.w = [w.copy() for w in weights]
        self.b = [np.zeros_like(w) for w in weights]
        self.momentum, self.eta, self.weight_decay = momentum, eta, weight_decay

    def step(self, gamma_scale: float, gradients: list[np.ndarray], denominators: list[float | None]) -> list[float]:
        gammas = []
        for k, (g, given) in enumerate(zip(gradients, denominators, strict=True)):
            scale = 1.0 if given is None else min(0.1, self.eta * float(np.linalg.norm(self.w[k])) / given)
            self.b[k] = self.momentum * self.b[k] + (g + self.weight_decay * self.w[k])
            self.w[k] = self.w[k] - gamma_scale * scale * self.b[k]
            gammas.append(gamma_scale * scale)
        return gammas
