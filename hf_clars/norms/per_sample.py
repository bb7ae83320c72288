"""`PerSampleNorms`: every sample's gradient norm in every layer, measured during the ordinary backward pass."""

from __future__ import annotations

import types
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..errors import UserError
from .ledger import Entry, Ledger
from .rules import Rule, rule_for
from .tap import Call, Tap

MODES = ("per_sample", "subset", "micro_batch")


@dataclass
class _Site:
    """A module whose calls are measured."""

    norms: PerSampleNorms
    rule: Rule
    weight: Entry | None
    bias: Entry | None


# Not an attribute of the module: a deep copy of the model (an EMA) must not carry the measuring with it.
_SITES: weakref.WeakKeyDictionary[nn.Module, _Site] = weakref.WeakKeyDictionary()


class PerSampleNorms:
    """Measures `‖c_i‖` of every sample in every layer while gradients are computed.

    `c_i` is the derivative of the loss that `backward()` was called on with respect to sample i's own copy of the
    weight. So `Σ_i c_i = weight.grad`, with train-mode BatchNorm included, and `c_i = ∇f_i / B` where samples do not
    mix. A sample is one index of the first dimension of the model's first tensor argument; a layer that sees k·B rows,
    sample by sample, gets k of them each (windows, patches). One backward pass is one batch: a parameter that is used
    several times in it has the norm of its summed contribution.

    Measuring begins with construction and ends with `detach()` or the end of a `with` block.

    Args:
        model: any module. Its `forward` methods are replaced, per instance, until `detach()`.
        mode: `"per_sample"` measures every sample, exactly. `"subset"` measures `norm_samples` of each batch of
            `total_batch_size`, spread evenly, and scales the sums up. `"micro_batch"` takes the norm of each backward
            pass's whole gradient instead: free, but between `1/√b` and 1 times the truth for b samples, so the
            learning rates of Eq. 5 come out up to √b too large.
        norm_samples: `|J_t|` of `"subset"`; the paper uses 512.
        total_batch_size: B of an optimizer step over all micro-batches and ranks, for `"subset"`; None stands for
            the batch of one backward pass.
        vectors: also measure biases and norm weights.

    Attributes:
        untracked: parameter name → why it cannot be measured, for trainable parameters of two or more dimensions.
            CLARS gives them LARS's learning rate. Warned about once.

    Raises:
        UserError: unknown mode, or sizes below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: str = "per_sample",
        norm_samples: int = 512,
        *,
        total_batch_size: int | None = None,
        vectors: bool = True,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}")
        for name, size in (("norm_samples", norm_samples), ("total_batch_size", total_batch_size or 1)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UserError(f"{name}={size!r} must be a whole number of at least 1")
        self.model = model
        self.mode = mode
        self.norm_samples = norm_samples
        self.total_batch_size = total_batch_size
        self.vectors = vectors
        self.untracked: dict[str, str] = {}
        self._ledger = Ledger()
        self._handles: list[Any] = []
        self._sites: list[nn.Module] = []
        self._batch: int | None = None
        self._attached = False
        self.attach()

    # --- attaching ---------------------------------------------------------------------------------------------

    def attach(self) -> PerSampleNorms:
        """Begin to measure; nothing happens if it already does. Returns itself."""
        if self._attached:
            return self
        for module in self.model.modules():
            if module in _SITES:
                raise UserError("another PerSampleNorms is attached to this model: detach() it first")
        self._ledger = Ledger()
        self.untracked = {}
        self._attached = True
        if self.mode == "micro_batch":
            self._attach_to_parameters()
        else:
            self._attach_to_modules()
        self._handles.append(self.model.register_forward_pre_hook(self._begin_pass, with_kwargs=True))
        if self.untracked:
            self._warn(self.untracked)
        return self

    def detach(self) -> None:
        """Stop measuring and leave the model as it was found. What was measured stays readable."""
        for module in self._sites:
            if module in _SITES:
                del _SITES[module]
                del module.forward
        self._sites = []
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._attached = False

    def __enter__(self) -> PerSampleNorms:
        return self.attach()

    def __exit__(self, *exception: Any) -> None:
        self.detach()

    def _attach_to_modules(self) -> None:
        entries: dict[int, Entry] = {}
        claimed: dict[int, str] = {}

        def entry(module: nn.Module, attribute: str, prefix: str) -> Entry | None:
            parameter = module._parameters.get(attribute)
            if parameter is None or (parameter.ndim < 2 and not self.vectors):
                return None
            if id(parameter) not in entries:
                entries[id(parameter)] = self._ledger.open_entry(module, attribute, f"{prefix}{attribute}")
            return entries[id(parameter)]

        in_attention = {
            id(child) for m in self.model.modules() if isinstance(m, nn.MultiheadAttention) for child in m.modules()
        }
        for prefix, module in self._modules():
            if not module._parameters:
                continue
            rule, reason = self._rule(module, in_attention)
            if rule is None:
                claimed.update((id(p), reason) for p in module._parameters.values() if p is not None)
                continue
            site = _Site(self, rule, entry(module, "weight", prefix), entry(module, "bias", prefix))
            if site.weight is None and site.bias is None:
                continue
            _SITES[module] = site
            self._sites.append(module)
            # A bound method: deep copies of the module rebind it to themselves.
            module.forward = types.MethodType(_measured_forward, module)  # type: ignore[method-assign]
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter.ndim >= 2 and (id(parameter) not in entries or id(parameter) in claimed):
                self.untracked[name] = claimed.get(id(parameter), "no module holds it as its weight")

    def _rule(self, module: nn.Module, in_attention: set[int]) -> tuple[Rule | None, str]:
        kind = type(module).__name__
        if id(module) in in_attention:
            return None, "nn.MultiheadAttention uses it outside any layer's forward"
        if "forward" in module.__dict__:
            return None, f"forward of this {kind} was replaced by someone else"
        if isinstance(module, nn.Embedding) and (module.sparse or module.scale_grad_by_freq):
            return None, "nn.Embedding with sparse or scale_grad_by_freq gradients"
        rule = rule_for(module)
        return rule, "" if rule is not None else f"no rule for modules of type {kind}"

    def _attach_to_parameters(self) -> None:
        seen: set[int] = set()
        for prefix, module in self._modules():
            for attribute, parameter in module._parameters.items():
                if parameter is None or id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                if parameter.ndim >= 2 or self.vectors:
                    entry = self._ledger.open_entry(module, attribute, f"{prefix}{attribute}")
                    self._handles.append(parameter.register_hook(self._micro_batch_hook(entry)))

    def _micro_batch_hook(self, entry: Entry) -> Any:
        def record(gradient: Tensor) -> None:
            dtype = torch.promote_types(gradient.dtype, torch.float32)
            square = torch.linalg.vector_norm(gradient, dtype=dtype).square().reshape(1)
            new = self._ledger.follows_gradient and entry.parameter.grad is None
            entry.record(square, 1, new)

        return record

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.model.named_modules():
            yield (f"{name}." if name else ""), module

    def _begin_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(_tensors((*args, *kwargs.values())), None)
        self._batch = first.shape[0] if first is not None else None
        if not any(e.samples for e in self._ledger.entries):
            # FSDP keeps unsharded gradients aside, so an empty `grad` says nothing about the gradient's life.
            self._ledger.follows_gradient = not any(isinstance(m, FSDPModule) for m in self.model.modules())

    # --- what was measured -------------------------------------------------------------------------------------

    def sums(self) -> dict[str, Tensor]:
        """Parameter name → `Σ_i ‖c_i‖` (0-dim) of everything since `reset()`, on this rank."""
        return self._ledger.totals(0)

    def square_sums(self) -> dict[str, Tensor]:
        """Parameter name → `Σ_i ‖c_i‖²` (0-dim) of everything since `reset()`, on this rank."""
        return self._ledger.totals(1)

    def per_sample(self) -> dict[str, Tensor]:
        """Parameter name → `‖c_i‖` of the last backward pass, shape `[batch]` (of the measured ones in a subset)."""
        return {e.name: e.last for e in self._ledger.entries if e.last is not None}

    def reset(self) -> None:
        """Forget everything measured."""
        self._ledger.reset()

    def denominators(self) -> dict[Tensor, Tensor]:
        """Parameter → `Σ_i ‖c_i‖` (0-dim) of the gradient it now holds, averaged over ranks as the gradient is.

        All ranks must call it, as they all must step.
        """
        values, present = self._ledger.of_gradient()
        self._notice_unmeasured()
        return {e.parameter: values[0, e.index] for e in present}

    def gradient_statistics(self) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Name → (`Σ‖c_i‖`, `Σ‖c_i‖²`, samples n) of the gradient at hand, over all ranks; a collective call."""
        values, present = self._ledger.of_gradient()
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return {e.name: (values[0, e.index], values[1, e.index], e.samples * world) for e in present}

    def close_gradient(self) -> None:
        """The gradient was used or cleared; what is measured from now on belongs to the next."""
        self._ledger.turn_all()

    def _notice_unmeasured(self) -> None:
        """A parameter with a rule but no record got its gradient elsewhere than from its module's forward."""
        noticed = {}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return  # another rank may have measured it
        for entry in self._ledger.entries:
            parameter = entry.parameter
            if parameter.ndim >= 2 and parameter.grad is not None and not (entry.samples or entry.past_samples):
                noticed[entry.name] = "its gradient did not come through its module's forward"
        self._note_untracked(noticed)

    def _note_untracked(self, reasons: dict[str, str]) -> None:
        new = {name: reason for name, reason in reasons.items() if name not in self.untracked}
        if new:
            self.untracked.update(new)
            self._warn(new)

    def _warn(self, reasons: dict[str, str]) -> None:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        more = f"; and {len(reasons) - 3} more, see .untracked" if len(reasons) > 3 else ""
        warnings.warn(
            f"PerSampleNorms cannot measure {len(reasons)} parameter(s), CLARS gives them LARS's learning rate: "
            f"{some}{more}",
            stacklevel=3,
        )

    # --- a measured call ---------------------------------------------------------------------------------------

    def _samples_of(self, x: Tensor, site: _Site) -> int | None:
        """The batch size of a layer's input; None, and noted, when its rows cannot be told to belong to samples."""
        if x.ndim == site.rule.unbatched_ndim:
            return 1
        rows = x.shape[0] if x.ndim else 0
        batch = self._batch or rows
        if batch and rows % batch == 0 and rows:
            return batch
        reason = f"its layer saw {rows} rows for a batch of {batch}"
        entries = [e for e in (site.weight, site.bias) if e is not None and e.parameter.ndim >= 2]
        self._note_untracked({e.name: reason for e in entries})
        return None

    def _subset(self, batch: int) -> slice | None:
        if self.mode != "subset":
            return None
        wanted = min(batch, max(1, round(self.norm_samples * batch / max(self.total_batch_size or batch, batch))))
        stride = batch // wanted
        return None if wanted == batch else slice(0, wanted * stride, stride)


def _measured_forward(module: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stands in for `module.forward`: the same output, and a tap on its gradient."""
    site = _SITES.get(module)
    if site is None or args or kwargs or not torch.is_grad_enabled():
        return type(module).forward(module, x, *args, **kwargs)
    weight, bias = module.weight, getattr(module, "bias", None)
    weight_entry = site.weight if site.weight is not None and weight.requires_grad else None
    bias_entry = site.bias if site.bias is not None and bias is not None and bias.requires_grad else None
    batch = site.norms._samples_of(x, site) if weight_entry or bias_entry else None
    if batch is None:
        return type(module).forward(module, x)

    rule, subset = site.rule, site.norms._subset(batch)
    unbatched = x.ndim == rule.unbatched_ndim
    x = rule.prepare(x)
    fused = weight_entry is not None and subset is None and rule.fused(x.unsqueeze(0) if unbatched else x, batch)
    y = rule.call(x, weight.detach() if fused else weight, bias)
    call = Call(rule, weight_entry, bias_entry, batch, subset, fused, unbatched)
    return rule.finish(Tap.apply(y, x.detach(), weight if fused else None, call))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
