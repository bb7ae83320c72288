"""Assumption 1's Lipschitz constants, estimated at the current weights: the largest curvature of each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from ..norms.batches import split_batch
from ..validation import checks

LossFunction = Callable[[Any, Any], Tensor]
_Vectors = dict[str, dict[str, Tensor]]  # block → parameter name → the block's vector on that parameter


def lipschitz_constants(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    iterations: int = 20,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> dict[str, float]:
    """`L_k` at the current weights: the largest `|eigenvalue|` of `∇²_kk f`, layer k's block of the Hessian.

    Assumption 1 wants a constant that holds at all weights, `sup_w ‖∇²_kk f(w)‖`. This is its value **here**, hence a
    lower bound of it: exact for a quadratic, and only as good elsewhere as the weights are near. It is approached from
    below, too: power iteration on Hessian-vector products takes `‖H v‖`, which never exceeds `‖H‖` and never falls.

    Parameters, gradients, buffers (BatchNorm's running statistics), train/eval mode and the global random numbers stay
    as they were. In train mode BatchNorm couples the samples of a batch, and each batch counts with its own loss;
    dropout draws the same masks for every product. Cost: up to `iterations` × batches × (one differentiable backward
    pass and, per layer, one through it); memory: that of one batch's graph.

    Args:
        model: called as `model(inputs)`, or `model(**inputs)` for dictionary batches; float32 or float64.
        batches: pairs `(inputs, targets)`, or dictionaries with the targets under `"labels"`. All are kept.
        loss_fn: `loss_fn(outputs, targets)` → the mean loss of the batch; twice differentiable.
        iterations: at most so many products for each layer.
        tolerance: a layer is done when a product adds less than this share to its estimate.
        seed: of the vectors to start from (and of dropout).

    Returns:
        Parameter name → `L_k` (loss / weight²) of every trainable parameter of two or more dimensions. 0 where the
        gradient does not depend on the layer at all, as behind a BatchNorm weight of zero.

    Raises:
        UserError: no batch; a loss or curvature that is not finite; a loss that no trainable parameter of the model
            reaches; `iterations` below 1 or a negative `tolerance`.
    """
    loss = _MeanLoss(model, batches, loss_fn, seed)
    blocks = {name: [name] for name, parameter in loss.parameters.items() if parameter.ndim >= 2}
    return _largest_curvatures(loss, blocks, iterations, tolerance, seed)


def global_lipschitz_constant(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    iterations: int = 20,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> float:
    """`L_g` at the current weights: the largest `|eigenvalue|` of the Hessian in all trainable parameters together.

    Biases and norm weights included. Everything else is as in `lipschitz_constants`. Exactly, `L_g ≥ L_k`; both are
    approached from below, so two estimates may come out the other way round by what the iterations left.

    Args:
        model, batches, loss_fn, iterations, tolerance, seed: as in `lipschitz_constants`.

    Raises:
        UserError: as `lipschitz_constants`.
    """
    loss = _MeanLoss(model, batches, loss_fn, seed)
    return _largest_curvatures(loss, {"all": list(loss.parameters)}, iterations, tolerance, seed)["all"]


class _MeanLoss:
    """f as a function of the trainable parameters: the mean over the samples of all batches."""

    def __init__(self, model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction, seed: int) -> None:
        self.model, self.loss_fn, self.seed = model, loss_fn, seed
        self.batches = [split_batch(batch) for batch in batches]
        self.samples = sum(targets.shape[0] for _, targets in self.batches)
        if self.samples == 0:
            raise UserError("no curvature without data: `batches` is empty (an exhausted iterator?)")
        # Leaves of their own on the same memory: hooks and `.grad` of the model's parameters never notice.
        self.parameters = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}

    def hessian_products(self, vectors: _Vectors) -> _Vectors:
        """For each block of parameters, its block of the Hessian times its vector."""
        names = sorted({name for parts in vectors.values() for name in parts})
        products = {b: {n: torch.zeros_like(v) for n, v in parts.items()} for b, parts in vectors.items()}
        for inputs, targets in self.batches:
            with torch.enable_grad():
                loss = self._batch_loss(inputs, targets)
                gradients = dict(zip(names, self._derivative([loss], names, create_graph=True), strict=True))
            for block, parts in vectors.items():
                reached = [name for name in parts if gradients[name].requires_grad]  # elsewhere it is constant
                if reached:
                    along = [parts[name] for name in reached]
                    seconds = self._derivative([gradients[name] for name in reached], list(parts), along)
                    for name, second in zip(parts, seconds, strict=True):
                        products[block][name] += second
        return products

    def _derivative(
        self, of: list[Tensor], by: list[str], along: list[Tensor] | None = None, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """By parameters; zeros where it does not depend on one."""
        parameters = [self.parameters[name] for name in by]
        return torch.autograd.grad(
            of, parameters, along, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )

    def _batch_loss(self, inputs: Any, targets: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), None)
        devices = range(torch.cuda.device_count())
        # The fused attention kernels have no second derivative.
        with torch.random.fork_rng(list(devices)), sdpa_kernel(SDPBackend.MATH):
            torch.manual_seed(self.seed)
            outputs = functional_call(self.model, {**self.parameters, **buffers}, args, kwargs)
            loss = self.loss_fn(outputs, targets) * (targets.shape[0] / self.samples)
        if not loss.requires_grad:
            raise UserError("the loss does not depend on any trainable parameter of the model")
        if not math.isfinite(loss.item()):
            raise UserError(f"the loss is {loss.item()}: no curvature can be measured at these weights and data")
        return loss


def _largest_curvatures(
    loss: _MeanLoss, blocks: dict[str, list[str]], iterations: int, tolerance: float, seed: int
) -> dict[str, float]:
    """Power iteration on all blocks in lock-step, as they share the passes that the products begin with."""
    tolerance = checks.non_negative("tolerance", tolerance)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same start on every device
    vectors: _Vectors = {
        block: {n: torch.randn(loss.parameters[n].shape, generator=generator).to(loss.parameters[n]) for n in names}
        for block, names in blocks.items()
    }
    for parts in vectors.values():
        _divide(parts, _norm(parts))
    largest = dict.fromkeys(blocks, 0.0)
    for _ in range(int(checks.count("iterations", iterations))):
        if not vectors:
            break
        products = loss.hessian_products(vectors)
        vectors = {}
        for block, parts in products.items():
            norm = _norm(parts)
            if not math.isfinite(norm):
                raise UserError(f"the curvature of {block} is not finite at these weights and data")
            if norm > largest[block] * (1 + tolerance):  # still rising
                _divide(parts, norm)
                vectors[block] = parts
            largest[block] = max(largest[block], norm)
    return largest


def _norm(parts: dict[str, Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(v, dtype=torch.promote_types(v.dtype, torch.float32)).item()
                        for v in parts.values()))  # fmt: skip


def _divide(parts: dict[str, Tensor], norm: float) -> None:
    for vector in parts.values():
        vector.div_(norm)
