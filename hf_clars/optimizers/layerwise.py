"""What CLARS, LARS and mNAG share: Eq. 4 with a learning rate per layer. They differ in the denominator alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import UserError
from ..formulas import layer_learning_rates, nesterov_update_, nesterov_update_foreach_
from . import fused as fused_step
from . import sharded
from .gradients import buckets
from .group_rules import check_group, common_rates, decay_of, gamma_scale, momentum_buffer, real_dtype

# Elements that a CPU takes through all operations at a time: w, g, u and a temporary of 1 MiB each (in float32) stay in
# its cache from one operation to the next, and are large enough for Python's share of the time to be small.
BLOCK = 2**18


class LayerwiseOptimizer(Optimizer, ABC):
    """Mini-batch Nesterov momentum (Eq. 4) with `γ_k = γ_scale · η · ‖w_k‖ / D_k`; a subclass supplies `D_k`.

    A layer is one parameter tensor. Those of two or more dimensions are layer-adapted and decayed; the others (biases,
    norm weights) follow `bias_and_norm`. A parameter group may set `layer_adaptation` to True or False to decide for
    its members whatever their shape.

    A group whose `uniform` is True takes `γ_k = γ_scale` for all its members: then Eq. 4 is mNAG, Eq. 2. It may be set
    at any time; what is under way (the momentum) goes on.

    `foreach` chooses how Eq. 4 is computed, as in `torch.optim`. True: each operation for all layers in one call, the
    fastest on accelerators. False: all operations for one layer, then the next, which on a CPU finds the layer in the
    cache where foreach streams all of them through memory once per operation. None: False on a CPU, unless all layers
    together fit its cache, and True elsewhere.

    `fused`, too, is chosen as in `torch.optim`. True: Eq. 4 and its learning rates for all layers in one pass over
    memory, by kernels written in Triton; NVIDIA GPUs from compute capability 8.0 on. What they do not take goes as
    `foreach` says: float64, FSDP2's shards, tensors that lie in memory otherwise than their gradient. None: where that
    can be and `foreach` is None. False: never. `step()` can be captured in a CUDA graph after one that was not; a
    learning rate that is a float stays, in the graph, what it was.

    The fused form takes `‖w_k‖` while it writes the weights, for the next step. Weights that were written since are
    noticed and measured again, unless they were written through `.data`, by a collective operation or by a CUDA graph,
    which leave no trace: call `weights_changed()` after that, or one step takes the norms of before.

    Args:
        params: parameters, named parameters, or parameter groups.
        options: lr, momentum, eta, weight_decay, bias_and_norm, decay_in_denominator, foreach and fused, see `CLARS`;
            a subclass gives all of them.
    """

    _uniform = False  # the default of `uniform`
    _can_fuse = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = LayerwiseOptimizer._adapted_rates, LayerwiseOptimizer._apply  # which is what the kernels compute
        cls._can_fuse = (cls._adapted_rates, cls._apply) == own

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        defaults = {**options, "layer_adaptation": None, "uniform": self._uniform}
        # The last step's vector, in a list so that it can be replaced for all its members; and the parameter's place.
        self._gammas: dict[Tensor, tuple[list[Tensor], int]] = {}
        self._divisions: dict[int, fused_step.Division] = {}  # of groups, by number
        check_group(defaults, type(self).__name__, self._can_fuse)
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_gammas", {})  # of a copy
        self.__dict__.setdefault("_divisions", {})
        for group in self.param_groups:
            group.setdefault("foreach", None)  # in a checkpoint from before there were these three
            group.setdefault("fused", None)
            group.setdefault("uniform", self._uniform)
            missing = sorted(self.defaults.keys() - group.keys() - {"differentiable"})  # which torch adds
            if missing:
                lacking = f"the state of {type(self).__name__} lacks {', '.join(missing)}"
                raise UserError(f"{lacking}: it is of another optimizer, or another version of hf_clars")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        check_group({**self.defaults, **param_group}, type(self).__name__, self._can_fuse)
        super().add_param_group(param_group)

    def layer_rates(self) -> dict[Tensor, Tensor]:
        """Parameter → `γ_k` (0-dim, on its device) of the last `step()`; empty before the first."""
        return {weight: rates[0][k] for weight, (rates, k) in self._gammas.items()}

    def weights_changed(self) -> None:
        """Say that weights were written without a trace, as through `.data`: the next step measures their norms."""
        for division in self._divisions.values():
            for bucket in division.buckets:
                bucket.forget_norms()

    @property
    def adapts(self) -> bool:
        """Whether any group has learning rates of its own for its layers, and so a use for denominators."""
        return not all(group["uniform"] for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update by Eq. 4. Never waits for the device.

        Args:
            closure: re-evaluates the model with gradients and returns the loss, as for any torch optimizer.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _update(self) -> None:
        denominators = self._denominators() if self.adapts else {}
        for index, group in enumerate(self.param_groups):
            members = group["params"]
            if self._can_fuse and fused_step.is_wanted(group):
                members = self._update_fused(index, group, denominators)
            elif index in self._divisions:
                self._divisions[index].rest_buckets()
            for (_, dtype, adapted), weights in buckets(group, members).items():
                self._update_bucket(group, weights, dtype, adapted, denominators)

    def _update_fused(self, index: int, group: dict[str, Any], denominators: Mapping[Tensor, Tensor]) -> list[Tensor]:
        """Update what the kernels take of a group; what is left of it."""
        division = self._divisions.get(index)
        if division is None or not division.is_of(group):
            division = self._divisions[index] = fused_step.Division(group, division)
        left = list(division.rest)
        for bucket in division.buckets:
            rates, taken, others = bucket.step(group, self.state, denominators)
            if taken is not bucket.rated:  # others than in its last step
                bucket.rated, bucket.rates = taken, [rates]
                self._gammas.update((bucket.weights[k], (bucket.rates, k)) for k in taken)
            bucket.rates[0] = rates
            left += others
        return left

    @abstractmethod
    def _denominators(self) -> Mapping[Tensor, Tensor]:
        """Parameter → `D_k`; a layer that is absent takes LARS's `‖g‖`."""

    def _update_bucket(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        dtype: torch.dtype,
        adapted: bool,
        denominators: Mapping[Tensor, Tensor],
    ) -> None:
        gradients: list[Tensor] = [w.grad for w in weights if w.grad is not None]
        decay = decay_of(group, adapted)
        if adapted and not group["uniform"]:
            weight_norms, found = self._norms(weights, gradients, denominators)
            if group["decay_in_denominator"]:
                found = torch.where(found == 0, found, found + decay * weight_norms)  # 0 is for trust_ratio to judge
            gammas = self._adapted_rates(group, weight_norms, found)
        else:
            gammas = common_rates(group, len(weights), weights[0].device, real_dtype(dtype))
        vector = [gammas]
        self._gammas.update((weight, (vector, k)) for k, weight in enumerate(weights))
        rates = list(gammas.unbind())
        buffers = [momentum_buffer(self.state[weight], weight) for weight in weights] if group["momentum"] else []
        self._apply(group, sharded.local(weights), sharded.local(gradients), sharded.local(buffers), rates, decay)

    def _norms(
        self, weights: list[Tensor], gradients: list[Tensor], denominators: Mapping[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`‖w_k‖` and `D_k`, both `[K]`."""
        weight_norms = sharded.norms(weights)
        missing = [g for w, g in zip(weights, gradients, strict=True) if w not in denominators]
        gradient_norms = iter(sharded.norms(missing) if missing else ())
        found = [denominators[w] if w in denominators else next(gradient_norms) for w in weights]
        device, dtype = weights[0].device, weight_norms.dtype
        return weight_norms, torch.stack([d.to(device, dtype, non_blocking=True) for d in found])

    def _adapted_rates(self, group: dict[str, Any], weight_norms: Tensor, denominators: Tensor) -> Tensor:
        """`γ_k` of adapted layers, `[K]`; a subclass may cap them."""
        return layer_learning_rates(gamma_scale(group), group["eta"], weight_norms, denominators)

    def _apply(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        gradients: list[Tensor],
        buffers: list[Tensor],
        rates: list[Tensor],
        decay: float,
    ) -> None:
        """Move the weights; Eq. 4 unless a subclass has another rule. `buffers` is empty at β = 0."""
        foreach = _foreach_is_faster(weights) if group["foreach"] is None else group["foreach"]
        update = nesterov_update_foreach_ if foreach else _update_by_layer
        update(weights, gradients, buffers, rates, group["momentum"], decay)


def _foreach_is_faster(weights: list[Tensor]) -> bool:
    return weights[0].device.type != "cpu" or sum(weight.numel() for weight in weights) <= BLOCK


def _update_by_layer(
    weights: list[Tensor],
    gradients: list[Tensor],
    displacements: list[Tensor],
    gammas: list[Tensor],
    momentum: float,
    weight_decay: float,
) -> None:
    """`nesterov_update_`, layer by layer and large layers block by block; arguments of `nesterov_update_foreach_`."""
    for k, (weight, gradient, gamma) in enumerate(zip(weights, gradients, gammas, strict=True)):
        moving = _blocks(displacements[k]) if displacements else repeat(None)
        for w, g, u in zip(_blocks(weight), _blocks(gradient), moving, strict=False):
            nesterov_update_(w, g, u, gamma, momentum, weight_decay)


def _blocks(tensor: Tensor) -> Sequence[Tensor]:
    """Views of at most `BLOCK` elements, of at least one row: any memory format can be split along its rows."""
    if tensor.numel() <= BLOCK:
        return (tensor,)
    return tensor.split(max(1, BLOCK * len(tensor) // tensor.numel()))
