"""CLARS: Eq. 5 with the update rule of Eq. 4."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .copies import LEFT_BEHIND
from .gradients import are_present, are_zero
from .layerwise import LayerwiseOptimizer
from .loss_scale import loss_scale
from .stand_ins import with_stand_ins

Norms = Mapping[Any, Tensor] | Callable[[], Mapping[Any, Tensor]] | Any


class CLARS(LayerwiseOptimizer):
    """Complete layer-wise adaptive rate scaling: `γ_k = γ_scale · η · ‖w_k‖ / Σ_i ‖c_{k,i}‖` (Eq. 5), update by Eq. 4.

    The algorithm stands in one plain loop in `reference.py`. `c_{k,i}` is sample i's contribution to `weight.grad`, so
    the denominator is in the units of the gradient: it scales with the loss, adds up over micro-batches and averages
    over data-parallel ranks as the gradient does.

    A layer that is not measured is taken to be like the others: its denominator is `‖g_k‖` divided by the median of
    `‖g_m‖ / Σ_i ‖c_{m,i}‖` over the measured layers m that this optimizer adapts, the same on all ranks. Where none is
    measured (an LSTM, say) it is `‖g_k‖ · η / 1e-3`, so that `γ_k` is what LARS takes with its own η of 1e-3.
    `PerSampleNorms(untracked="error")` ends the training instead. See `formulas.stand_in_denominators`.

    Several CLARS may share one `PerSampleNorms`: each uses up what was measured of its own parameters. One that steps
    in a `register_post_accumulate_grad_hook` may have a share of it as well.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: γ_scale; a float or a tensor of one element. At 1 a layer moves by up to η of its own norm, before momentum.
            10 is a start, whatever the batch size, see `hf_clars.starting_rate`.
        momentum: β of Eq. 4, in [0, 1).
        eta: η; the paper uses 1e-2 and no warmup.
        weight_decay: λ; `λ w` is added to the gradient of adapted layers.
        norms: where `Σ_i ‖c_{k,i}‖` comes from. A `PerSampleNorms` attached to the model; or a mapping from parameter
            (or from name, when `params` are named) to a 0-dim tensor; or a function that returns such a mapping. A
            layer that it lacks, because it is not measured, takes a stand-in, see above. Under a `GradScaler` the first
            two hold what was measured of the scaled loss, and the scale is taken out of it; a function is called by
            `step()`, when gradients are unscaled, and what it returns is taken as it is.
        bias_and_norm: the learning rate of biases and norm weights (at most one dimension, or groups with
            `layer_adaptation=False`):
            `"eta"` γ_scale · η, not decayed;
            `"mlperf"` γ_scale, not decayed, as the MLPerf reference of LARS;
            `"authors"` γ_scale and decayed, as the code the authors released;
            `"paper"` Eq. 5 for every tensor, whatever its shape.
        decay_in_denominator: add `λ‖w‖` to the denominator, see `LARS`. Off, it is Eq. 5; when every sample is fitted,
            so that all `c_{k,i}` vanish, `γ_k λ w` grows as LARS's does where the mean gradient vanishes.
        foreach, fused: how it is computed, see `LayerwiseOptimizer`; None takes what is faster.
        grad_scaler: the `torch.amp.GradScaler` in use, if gradients are unscaled before `step()` (to clip or look at
            them); its scale is then taken out of the norms too.

    A deep copy or a pickle takes a mapping of `norms` along. `PerSampleNorms`, a function and a `GradScaler` stay with
    the original: a copy's `step()` asks for others, which are set as its attributes `norms` and `grad_scaler`.

    Raises:
        UserError: a hyper-parameter is negative, NaN or unknown; fused=True where it cannot be, or with foreach=True;
            `norms` is none of these three.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        *,
        momentum: float = 0.9,
        eta: float = 1e-2,
        weight_decay: float = 0.0,
        norms: Norms = None,
        bias_and_norm: str = "eta",
        decay_in_denominator: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        measures = callable(norms) or isinstance(norms, Mapping) or hasattr(norms, "denominators")
        if isinstance(norms, nn.Module) or not measures:
            kind = type(norms).__name__
            raise UserError(
                f"CLARS needs norms=PerSampleNorms(model), made before the forward pass; norms of type {kind} measure "
                "nothing"
            )
        self.norms = norms
        self.grad_scaler = grad_scaler
        self._scale: Tensor | None = None  # of the loss, in the step at hand
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            eta=eta,
            weight_decay=weight_decay,
            bias_and_norm=bias_and_norm,
            decay_in_denominator=decay_in_denominator,
            foreach=foreach,
            fused=fused,
        )

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # Torch's protocol for optimizers that unscale by themselves: GradScaler then always calls step() and leaves
        # `grad_scale` and `found_inf` on the optimizer. It is how an unannounced scaler is noticed at all.
        return self.grad_scaler is None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update by Eq. 4 and 5.

        Raises:
            RuntimeError: no norms were measured for the gradients at hand; gradients are sparse; a `GradScaler`
                unscaled the gradients behind our back (pass it as `grad_scaler`); or this is a copy without norms.
        """
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and float(found_inf):  # the wait is GradScaler's own, in every torch optimizer
            self._close_gradient()
            return None
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and with them what was measured of them."""
        super().zero_grad(set_to_none)
        self._close_gradient()

    def __getstate__(self) -> dict[str, Any]:
        scaler = self.grad_scaler
        scales = scaler is LEFT_BEHIND or (scaler is not None and scaler.is_enabled())
        return {
            **super().__getstate__(),
            "norms": self.norms if isinstance(self.norms, Mapping) else LEFT_BEHIND,
            "grad_scaler": LEFT_BEHIND if scales else None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, value in (("norms", LEFT_BEHIND), ("grad_scaler", None), ("_scale", None)):
            self.__dict__.setdefault(name, value)

    def _update(self) -> None:
        for name, example in (("norms", "PerSampleNorms(model)"), ("grad_scaler", "the GradScaler in use")):
            if getattr(self, name) is LEFT_BEHIND:
                raise RuntimeError(
                    f"this CLARS is a copy, and {name} stayed with the original: set its attribute {name}, for example "
                    f"to {example}"
                )
        # Whoever measures is asked even then: other ranks may have gradients, and wait for all.
        if not are_present(self.param_groups) and not self._is_measuring():
            return
        # Asked in every step, also where no denominators are needed: it may have gradients to unscale.
        self._scale = self._loss_scale(next((p.device for p in self._parameters()), torch.device("cpu")))
        if self.adapts and hasattr(norms := _source(self.norms), "compare_gradient"):
            norms.compare_gradient(self._parameters(), self._scale)
        super()._update()
        self._close_gradient()

    def _is_measuring(self) -> bool:
        return hasattr(_source(self.norms), "denominators")

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _denominators(self) -> Mapping[Tensor, Tensor]:
        norms, scale = _source(self.norms), self._scale
        if hasattr(norms, "gradient_is_complete"):  # of a PerSampleNorms, whose backward pass may still go on
            norms.gradient_is_complete(self._parameters())
            measured = norms.denominators(self._parameters())
        elif self._is_measuring():
            measured = norms.denominators()
        elif callable(norms):
            measured, scale = norms(), None  # of gradients that are unscaled by now
        else:
            measured = norms
        by_parameter = self._by_parameter(measured)
        if not any(parameter in by_parameter for parameter in self._parameters()):
            self._refuse_unmeasured(norms, bool(measured))
        if scale is not None:
            by_parameter = {p: d / scale.to(d.device) for p, d in by_parameter.items()}
        return with_stand_ins(self.param_groups, by_parameter, getattr(norms, "settled", True))

    def _refuse_unmeasured(self, norms: Any, of_others: bool) -> None:
        """Nothing was measured of any parameter; raise `RuntimeError` where that is a mistake, and say which.

        Args:
            of_others: something was, of parameters that this optimizer does not have.
        """
        if hasattr(norms, "why_nothing"):
            why = norms.why_nothing(self._parameters())
        else:
            why = None if of_others else f"CLARS(norms={norms!r:.60}) has none: hand it a PerSampleNorms(model)"
        if why is not None and not are_zero(self.param_groups):
            raise RuntimeError(
                f"{type(self).__name__}.step() found no per-sample gradient norms for these gradients: {why}"
            )

    def _by_parameter(self, measured: Mapping[Any, Tensor]) -> dict[Tensor, Tensor]:
        if not measured or not isinstance(next(iter(measured)), str):
            return dict(measured)
        named: dict[str, Tensor] = {}
        for group in self.param_groups:
            if "param_names" not in group:
                raise RuntimeError(
                    "the norms are keyed by parameter name but the optimizer does not know names: "
                    "pass CLARS model.named_parameters(), or norms keyed by parameter"
                )
            named.update(zip(group["param_names"], group["params"], strict=True))
        return {named[name]: value for name, value in measured.items() if name in named}

    def _loss_scale(self, device: torch.device) -> Tensor | None:
        """What the norms are still multiplied with; unscales the gradients where torch leaves that to us."""
        if self.grad_scaler is not None and self.grad_scaler.is_enabled():
            return loss_scale(self.grad_scaler, device)
        if not hasattr(self, "found_inf"):
            return None
        scale: Tensor | None = self.grad_scale  # type: ignore[attr-defined]
        if scale is None:
            raise RuntimeError(
                "GradScaler unscaled the gradients before CLARS.step(), so the norms would keep the loss scale: "
                "pass the scaler to CLARS(grad_scaler=...)"
            )
        for parameter in self._parameters():
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad.device))
        return scale

    def _close_gradient(self) -> None:
        close = getattr(_source(self.norms), "close_gradient", None)
        if close is not None:
            close(self._parameters())


def _source(norms: Any) -> Any:
    """Whoever measures, also where its method `denominators` was handed over in its stead."""
    owner = getattr(norms, "__self__", None)
    return owner if owner is not None and getattr(owner, "denominators", None) == norms else norms
