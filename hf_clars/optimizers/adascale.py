"""AdaScale: how much a large batch gains over a small one, as the gradient's variance tells, in place of a warmup."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..formulas import adascale_gain, gradient_and_noise
from ..starting_rate import BASE_BATCH_SIZE, BASE_LEARNING_RATE
from . import sharded
from .clars import CLARS
from .group_rules import gamma_scale


class AdaScale(CLARS):
    """`γ = γ_scale · r / S` for all layers, with the gain `r = (σ² + μ²) / (σ²/S + μ²)`; update by Eq. 2, as mNAG.

    S is B / `base_batch_size`. σ² is the variance of a gradient over `base_batch_size` samples, μ² the squared norm of
    the true gradient. Where samples agree, r is 1, and a step is one of the small batch. Where noise prevails, r is S,
    and the rate is γ_scale: that of linear scaling, S times the rate of the small batch.

    The paper estimates σ² and μ² from the gradients of S small batches. Here they come from the norm of each sample's
    gradient, over all measured parameters: unbiased as well, and with less noise. Both are averaged over steps with the
    paper's weight of the past, `max(1 − S / 1000, 0)`.

    The paper lets schedules, and the end of the training, go by the sum of gains. Here they go by steps, as those of
    all other methods do: a comparison gives every method the same number of epochs.

    Source: Johnson, Agrawal, Gu, Guestrin: AdaScale SGD: A User-Friendly Algorithm for Distributed Training, ICML 2020.

    Args:
        params, momentum, weight_decay, grad_scaler: see `CLARS`; biases and norm weights are not decayed.
        lr: γ_scale, which linear scaling would take.
        base_batch_size: samples for which `lr / S` is the right rate.
        norms: a `PerSampleNorms` that is attached to the model and measures every sample.

    Raises:
        UserError: a hyper-parameter is negative, NaN or unknown.
    """

    _uniform = True
    norms: Any

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = BASE_LEARNING_RATE,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        base_batch_size: int = BASE_BATCH_SIZE,
        norms: Any,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if isinstance(base_batch_size, bool) or not isinstance(base_batch_size, int) or base_batch_size < 1:
            raise UserError(f"base_batch_size={base_batch_size!r} must be a whole number of at least 1")
        self.base_batch_size = base_batch_size
        self._share: float | Tensor = 0.0  # r / S of the step at hand
        super().__init__(
            params,
            lr,
            momentum=momentum,
            eta=1.0,
            weight_decay=weight_decay,
            norms=norms,
            bias_and_norm="mlperf",
            fused=False,  # the kernels take γ_scale from the group
            grad_scaler=grad_scaler,
        )

    @property
    def adapts(self) -> bool:
        """Whether it has a use for norms: always, though layers share their rate."""
        return True

    def _denominators(self) -> dict[Tensor, Tensor]:
        measured = self.norms.gradient_statistics()
        parameters = dict(self.norms.model.named_parameters(remove_duplicate=False))
        gradients = {name: g for name in measured if (g := parameters[name].grad) is not None}
        if not gradients:
            self._refuse_unmeasured(self.norms, bool(measured))
            return {}  # every layer rests
        squares = torch.stack([measured[name][1] for name in gradients])
        if self._scale is not None:
            squares = squares / self._scale.to(squares.device) ** 2
        n = max(measured[name][2] for name in gradients)
        whole = sharded.norms_of_any(list(gradients.values())).to(squares).square()
        missing = squares.isnan()  # of parameters that another process could not measure
        small, big = (torch.where(missing, 0, each).sum() for each in (n * squares, whole))
        average, scale = self._averaged(torch.stack(gradient_and_noise(small, 1, big, n)), n), n / self.base_batch_size
        self._share = adascale_gain(average[0], average[1] / self.base_batch_size, scale) / scale
        return {}

    def _averaged(self, new: Tensor, n: int | Tensor) -> Tensor:
        """`|G|²` and `tr Σ` over the steps so far. What the average lacks at first, both lack; their ratio does not."""
        state = self.state[self._parameters()[0]]  # where a checkpoint has it
        past = (1 - torch.as_tensor(n, dtype=new.dtype, device=new.device) / (1000 * self.base_batch_size)).clamp_min(0)
        state["square_and_noise"] = past * state.get("square_and_noise", torch.zeros_like(new)) + (1 - past) * new
        return state["square_and_noise"]

    def _update_bucket(self, group: dict[str, Any], *bucket: Any) -> None:
        super()._update_bucket({**group, "lr": gamma_scale(group) * self._share}, *bucket)
