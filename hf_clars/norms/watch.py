"""Attaching to a model: its `forward` methods are replaced while its passes are watched, and given back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .fast_path import Layer
from .forward_passes import ForwardPasses
from .inputs import Inputs
from .measurement import Measurement
from .sample_axis.tags import PREFIX
from .tracked import PARAMETER, TrackedParameter
from .wrapper import BeginPass, WatchedForward, passes_of


class Watch(ForwardPasses):
    """Of one model, or not, by turns.

    Args:
        bias_and_norm: parameters of one dimension are measured, too.

    Attributes:
        looked_through: whether the model's parameters were since it was attached, for those that joined it.
    """

    def __init__(self, model: nn.Module, measurement: Measurement, inputs: Inputs, bias_and_norm: bool) -> None:
        super().__init__(model, measurement, inputs)
        measurement.regions.watched = WatchedForward.__call__.__code__
        self.bias_and_norm = bias_and_norm
        self.attached = False
        self.looked_through = False
        self._forwards: list[WatchedForward] = []
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Begin to measure; nothing happens if it already does."""
        if not self.attached:
            self._refuse_another()
            self.measurement.begin_anew()
            self._attach()

    def resume(self) -> None:
        """After `detach()`: measure again and go on with what was measured before."""
        if not self.attached:
            self._refuse_another()
            self._attach()

    def detach(self) -> None:
        """Stop measuring and leave the model as it was found."""
        recorder = self.measurement.recorder
        recorder.settle_check()  # it looks at gradients, and those that come later are nobody's
        recorder.writes.pause(recorder.parameters)
        for forward in self._forwards:
            forward.restore()
        for tracked in recorder.parameters:
            tracked.untag()
        for handle in (*self._handles, *recorder.agreement.handles):
            handle.remove()
        self._forwards, self._handles, recorder.agreement.handles = [], [], []
        self.forget_members()
        self.attached = False
        self.measurement.bearers.forget()
        # Whatever the forward passes left on tensors that live as long as the model.
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            for name in [name for name in vars(tensor) if name.startswith(PREFIX)]:
                delattr(tensor, name)

    def strangers(self, parameters: Iterable[Tensor]) -> dict[str, dict[str, Tensor]]:
        """Reason → name → trainable parameter, of those that joined the model since, or are none of its.

        Where all of them are none of its, that is a mistake of another kind, see `why_nothing`.
        """
        known = {id(tracked.parameter) for tracked in self.measurement.recorder.parameters}
        names: dict[int, str] = {}
        found: dict[str, dict[str, Tensor]] = {}
        parameters = list(parameters)
        for number, parameter in enumerate(parameters):
            if hasattr(parameter, PARAMETER) or id(parameter) in known or not parameter.requires_grad:
                continue
            if not self._is_wanted(parameter):
                continue
            names = names or {id(p): name for name, p in self.model.named_parameters()}
            name = names.get(id(parameter))
            if name is None:
                name, reason = f"parameter {number} of the optimizer", "it is outside of the model that is measured"
            else:
                reason = "it joined the model after PerSampleNorms was attached"
            found.setdefault(reason, {})[name] = parameter
        return {reason: named for reason, named in found.items() if len(named) < len(parameters)}

    def why_nothing(self, parameters: Iterable[Tensor]) -> str | None:
        """Why nothing was measured of these parameters' gradients, and what to do; None where that is no mistake."""
        recorder, model = self.measurement.recorder, type(self.model).__name__
        wanted, own = list(parameters), {id(parameter) for parameter in self.model.parameters()}
        lives = [recorder.lives[t.index] for t in recorder.tracked(wanted) if t.parameter.grad is not None]
        if not any(id(parameter) in own for parameter in wanted):
            return (
                f"its PerSampleNorms is attached to a {model} that has none of the optimizer's parameters: make one of "
                "the model that is trained"
            )
        if lives and all(life.is_used_up() for life in lives):
            return (
                "what was measured of them was used up by an earlier step(), or forgotten by reset(): call zero_grad() "
                "and backward() before the next step()"
            )
        if not self.attached:
            return "its PerSampleNorms was detached before they were computed: attach() it before the forward pass"
        if not recorder.watched:
            return (
                f"its PerSampleNorms is attached, and has seen no forward pass of the {model} since. Either that began "
                f"before it was attached, or it did not go through {model}.forward: call the model itself, rather than "
                "a copy or another of its methods"
            )
        return None

    def _is_wanted(self, parameter: Tensor) -> bool:
        return parameter.ndim >= 2 or self.bias_and_norm

    def _refuse_another(self) -> None:
        if watches_of(self.model):
            raise UserError(
                "another PerSampleNorms is attached to this model, or to part of it: detach() it first, "
                "or call PerSampleNorms.detach_all(model)"
            )

    def _attach(self) -> None:
        self.attached, self.looked_through = True, False
        try:
            self.look_at_members()
            if self.measurement.mode == "micro_batch":
                self._attach_to_parameters()
                self._handles.append(self.model.register_forward_pre_hook(BeginPass(self)))
            else:
                self._attach_to_modules()
            self.measurement.recorder.agreement.watch_shares()
        except BaseException:
            self.detach()
            raise

    def _attach_to_modules(self) -> None:
        recorder = self.measurement.recorder
        known: dict[int, TrackedParameter] = {id(tracked.parameter): tracked for tracked in recorder.parameters}
        for tracked in recorder.parameters:
            recorder.tag(tracked, tracked.parameter)
        for prefix, module in self._modules():
            own = []
            for attribute, parameter in module._parameters.items():
                if parameter is None or not self._is_wanted(parameter):
                    continue
                if id(parameter) not in known:
                    tracked = recorder.track(module, attribute, f"{prefix}{attribute}")
                    known[id(parameter)] = tracked
                    recorder.tag(tracked, parameter)
                own.append((attribute, known[id(parameter)]))
            forward = WatchedForward(self, module, own, Layer.of(module) if own else None)
            module.forward = forward
            self._forwards.append(forward)

    def _attach_to_parameters(self) -> None:
        recorder = self.measurement.recorder
        known = {tracked.name: tracked for tracked in recorder.parameters}
        seen: set[int] = set()
        for prefix, module in self._modules():
            for attribute, parameter in module._parameters.items():
                if parameter is None or id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                if self._is_wanted(parameter):
                    name = f"{prefix}{attribute}"
                    tracked = known.get(name) or recorder.track(module, attribute, name)
                    self._handles.append(parameter.register_hook(self._micro_batch_hook(tracked)))

    def _micro_batch_hook(self, tracked: TrackedParameter) -> Callable[[Tensor], None]:
        recorder = self.measurement.recorder

        def record(gradient: Tensor) -> None:
            dtype = torch.promote_types(gradient.dtype, torch.float32)
            square = torch.linalg.vector_norm(gradient, dtype=dtype).square().reshape(1)
            recorder.record(tracked, square, 1, recorder.follows_gradient and tracked.parameter.grad is None)

        return record

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                scripted = {n: p for n, p in module.named_parameters(name, recurse=False) if self._is_wanted(p)}
                trained = {n: p for n, p in scripted.items() if p.requires_grad}
                self.measurement.untracked.name(trained, "it is in a TorchScript module, whose functions are not seen")
            else:
                yield (f"{name}." if name else ""), module


def watches_of(model: nn.Module) -> set[Watch]:
    """Every `Watch` of the model or of part of it."""
    return {passes for passes in passes_of(model) if isinstance(passes, Watch)}
