"""`PerSampleNorms`: every sample's gradient norm in every layer, measured during the ordinary backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..errors import UserError
from .accumulator import COUNT, EXCLUDED, NORMS, SQUARES
from .between import remember_results
from .inputs import Inputs
from .interception import Interception
from .layers import Layer
from .ledger import Entry, Ledger, is_distributed
from .marks import ENTRY, PREFIX, tensors_in
from .watched_forward import BeginPass, WatchedForward, attached_to

MODES = ("per_sample", "subset", "micro_batch")
UNTRACKED = ("stand_in", "error")


def check_untracked(value: str) -> None:
    """Raises `UserError` for what `PerSampleNorms(untracked=...)` does not take."""
    if value not in UNTRACKED:
        raise UserError(f"untracked={value!r} is unknown: choose one of {', '.join(UNTRACKED)}")


class PerSampleNorms:
    """Measures `‖c_i‖` of every sample in every layer while gradients are computed.

    `c_i` is the derivative of the loss that `backward()` was called on with respect to sample i's own copy of the
    weight. So `Σ_i c_i = weight.grad`, with train-mode BatchNorm included, and `c_i = ∇f_i / B` where samples do not
    mix. A sample is one index of the first dimension (`batch_dim`) of the first tensor argument of an outermost call.
    Where samples stand in other tensors is known from the functions that made them, see `sample_axis/`; after a
    function of which it is not, parameters are named. One backward pass is one batch: a parameter that is used
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
        untracked: what happens when a parameter cannot be measured. `"stand_in"`: it is warned about once, and CLARS
            gives it a denominator by the median of the measured layers, see there. `"error"`: the first parameter of
            two or more dimensions ends the training, on all ranks in the same step; this waits for the device.
        batch_size: the number of samples of a forward pass, where its arguments leave a doubt; see above.
        batch_dim: the dimension of the arguments in which samples stand.

    Attributes:
        untracked: parameter name → why it cannot be measured, for trainable parameters that are to be (with `vectors`
            those of one dimension, too). Forward passes, gradients that came past them and other ranks fill it in.

    With several processes all of them decide together what is measured, in the all-reduce of the sums: a parameter that
    one cannot measure is measured on none. One that some did not use is measured by the others.

    A gradient lives until `close_gradient()`, until it is None, or until it is zero when the next backward pass comes,
    if it was zeroed in place since the last one (through `.data` that cannot be noticed).

    Raises:
        UserError: unknown mode or `untracked`, or sizes below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: str = "per_sample",
        norm_samples: int = 512,
        *,
        total_batch_size: int | None = None,
        vectors: bool = True,
        untracked: str = "stand_in",
        batch_size: int | None = None,
        batch_dim: int = 0,
    ) -> None:
        if mode not in MODES:
            of_trainer = "; 'authors' is ClarsTrainer's, with passes of its own" if mode == "authors" else ""
            raise UserError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}{of_trainer}")
        sizes = {"norm_samples": norm_samples, "total_batch_size": total_batch_size, "batch_size": batch_size}
        for name, size in sizes.items():
            if size is None and name != "norm_samples":
                continue
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UserError(f"{name}={size!r} must be a whole number of at least 1")
        check_untracked(untracked)
        self.model = model
        self.mode = mode
        self.norm_samples = norm_samples
        self.total_batch_size = total_batch_size
        self.vectors = vectors
        self.on_untracked = untracked
        self._untracked: dict[str, str] = {}
        self._unwarned: dict[str, str] = {}
        self._matrices: list[str] = []  # that are untracked
        self.ledger = Ledger()
        self.inputs = Inputs(batch_dim, batch_size)
        self.interception = Interception(self)
        self._handles: list[Any] = []
        self._watched: list[WatchedForward] = []
        self._members: list[nn.Module] = []
        self._checked = False
        self.batch: int | None = None
        self._attached = False
        self.paused = False  # attached, but forward passes are nobody's business for now
        self.attach()

    # --- attaching ---------------------------------------------------------------------------------------------

    def attach(self) -> PerSampleNorms:
        """Begin to measure; nothing happens if it already does. Returns itself."""
        if not self._attached:
            self._refuse_another()
            self.ledger = Ledger(looks_at_shares=self.mode != "micro_batch")
            self.ledger.exclude = self.exclude
            self._untracked, self._unwarned, self._matrices = {}, {}, []
            self._attach()
        return self

    def resume(self) -> PerSampleNorms:
        """After `detach()`: measure again and go on with what was measured before. Returns itself."""
        if not self._attached:
            self._refuse_another()
            self._attach()
        return self

    def _refuse_another(self) -> None:
        if attached_to(self.model):
            raise UserError(
                "another PerSampleNorms is attached to this model: detach() it first, "
                "or call PerSampleNorms.detach_all(model)"
            )

    def _attach(self) -> None:
        self._attached = True
        self._members = list(self.model.modules())
        self._checked = False  # whether layers joined since
        if self.mode == "micro_batch":
            self._attach_to_parameters()
        else:
            self._attach_to_modules()
        if self.mode == "micro_batch":
            self._handles.append(self.model.register_forward_pre_hook(BeginPass(self)))
        self.ledger.watch_shares()

    def detach(self) -> None:
        """Stop measuring and leave the model as it was found. What was measured stays readable."""
        self.ledger.settle_check()  # it looks at gradients, and those that come later are nobody's
        for forward in self._watched:
            forward.restore()
        self._watched, self._members = [], []
        for entry in self.ledger.entries:
            entry.parameter.__dict__.pop(ENTRY, None)
        for handle in (*self._handles, *self.ledger.handles):
            handle.remove()
        self._handles, self.ledger.handles = [], []
        self._attached = False
        self.inputs.forget()
        # Whatever the forward passes left on tensors that live as long as the model.
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            for name in [name for name in vars(tensor) if name.startswith(PREFIX)]:
                delattr(tensor, name)

    @staticmethod
    def detach_all(model: nn.Module) -> None:
        """Detach whichever `PerSampleNorms` is attached to the model or to part of it."""
        for norms in attached_to(model):
            norms.detach()

    def __enter__(self) -> PerSampleNorms:
        return self.attach()

    def __exit__(self, *exception: Any) -> None:
        self.detach()

    def _attach_to_modules(self) -> None:
        entries: dict[int, Entry] = {id(entry.parameter): entry for entry in self.ledger.entries}
        for entry in self.ledger.entries:
            entry.belongs_to(entry.parameter)
        for prefix, module in self._modules():
            own = []
            for attribute, parameter in module._parameters.items():
                if parameter is None or (parameter.ndim < 2 and not self.vectors):
                    continue
                if id(parameter) not in entries:
                    entry = self.ledger.open_entry(module, attribute, f"{prefix}{attribute}")
                    entries[id(parameter)] = entry
                    entry.belongs_to(parameter)
                own.append((attribute, entries[id(parameter)]))
            forward = WatchedForward(self, module, own, Layer.of(module) if own else None)
            module.forward = forward
            self._watched.append(forward)

    def _attach_to_parameters(self) -> None:
        known = {entry.name: entry for entry in self.ledger.entries}
        seen: set[int] = set()
        for prefix, module in self._modules():
            for attribute, parameter in module._parameters.items():
                if parameter is None or id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                if parameter.ndim >= 2 or self.vectors:
                    name = f"{prefix}{attribute}"
                    entry = known.get(name) or self.ledger.open_entry(module, attribute, name)
                    self._handles.append(parameter.register_hook(self._micro_batch_hook(entry)))

    def _micro_batch_hook(self, entry: Entry) -> Any:
        def record(gradient: Tensor) -> None:
            dtype = torch.promote_types(gradient.dtype, torch.float32)
            square = torch.linalg.vector_norm(gradient, dtype=dtype).square().reshape(1)
            new = self.ledger.follows_gradient and entry.parameter.grad is None
            entry.record(square, 1, new)

        return record

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.model.named_modules():
            yield (f"{name}." if name else ""), module

    def begin_pass(self) -> None:
        """A forward pass begins."""
        self._settle_check()
        self.ledger.begin_pass()
        if not any(e.samples for e in self.ledger.entries):
            # FSDP keeps unsharded gradients aside, so an empty `grad` says nothing about the gradient's life.
            self.ledger.follows_gradient = not any(isinstance(m, FSDPModule) for m in self._members)
        if torch.compiler.is_compiling():
            self.ledger.check.decided = False  # its backward pass decides
            return
        if not self.ledger.follows_gradient or self.mode == "micro_batch":
            return
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass, where checkpointing calls again
            self.ledger.check.begin_pass(self.ledger.entries)

    def enter(self, module: nn.Module, tensors: list[Tensor]) -> None:
        """A watched module is called from outside any other: its arguments are where samples come in."""
        carried = self.inputs.carried(tensors, self.ledger, module is self.model)
        if carried:
            self.batch = self.inputs.go_on(tensors, carried, self.batch)
        else:
            self.begin_pass()
            unbatched = len(self._watched) == 1 and self._watched[0].takes_one(tensors)
            self.batch = self.inputs.begin(tensors, unbatched)

    def leave(self, out: Any) -> None:
        """Such a call has ended, with these results."""
        if not torch.compiler.is_compiling():
            remember_results(tensors_in((out,)), self.ledger)

    # --- what was measured -------------------------------------------------------------------------------------

    def sums(self) -> dict[str, Tensor]:
        """Parameter name → `Σ_i ‖c_i‖` (0-dim) of everything since `reset()`, on this rank."""
        self._learn(wait=True)
        return self.ledger.totals(NORMS)

    def square_sums(self) -> dict[str, Tensor]:
        """Parameter name → `Σ_i ‖c_i‖²` (0-dim) of everything since `reset()`, on this rank."""
        self._learn(wait=True)
        return self.ledger.totals(SQUARES)

    def per_sample(self) -> dict[str, Tensor]:
        """Parameter name → `‖c_i‖` of the last backward pass, shape `[batch]` (of the measured ones in a subset)."""
        self._learn(wait=True)
        return self.ledger.last()

    def reset(self) -> None:
        """Forget everything measured."""
        self.ledger.reset()

    def denominators(self) -> dict[Tensor, Tensor]:
        """Parameter → `Σ_i ‖c_i‖` (0-dim) of the gradient it now holds, averaged over ranks as the gradient is.

        A parameter that is not measured is absent, on all ranks alike. Where several processes decide that on devices
        (`settled` is False), it may be there instead, with NaN, because the host does not wait to know.

        All ranks must call it, as they all must step.

        Raises:
            UserError: with `untracked="error"`, a parameter of two or more dimensions cannot be measured.
        """
        self._settle_check()
        values, present = self.ledger.of_gradient()
        self._notice_unmeasured()
        return {e.parameter: values[NORMS, e.index] for e in present}

    def gradient_statistics(self) -> dict[str, tuple[Tensor, Tensor, int | Tensor]]:
        """Name → (`Σ‖c_i‖`, `Σ‖c_i‖²`, samples n) of the gradient at hand, over all ranks; a collective call.

        n counts the samples of those passes that used the parameter. It is a 0-dim tensor where the device alone knows
        it. What is not measured is absent, or NaN, as in `denominators()`.
        """
        self._settle_check()
        values, present = self.ledger.of_gradient()
        samples: Sequence[int | Tensor]
        if values.device.type == "cpu":
            counts = values[COUNT].tolist()
            samples = [int(counts[e.index]) for e in present]
        elif values.shape[0] == EXCLUDED and not any(e.zeroed for e in present):  # of one process, which counted
            samples = [e.samples for e in present]
        else:
            samples = [values[COUNT, e.index] for e in present]
        return {
            e.name: (values[NORMS, e.index], values[SQUARES, e.index], n) for e, n in zip(present, samples, strict=True)
        }

    @property
    def untracked(self) -> dict[str, str]:
        """Parameter name → why it cannot be measured. Waits for the device."""
        self._learn(wait=True)
        return self._untracked

    @property
    def watched(self) -> bool:
        """Whether it is attached and has seen a forward pass."""
        return self._attached and self.ledger.watched

    @property
    def settled(self) -> bool:
        """Whether the host knows what `denominators()` has measured; if not, NaN stands for what is not measured."""
        return self.ledger.settled()

    def close_gradient(self, parameters: Iterable[Tensor] | None = None) -> None:
        """The gradient was used or cleared; what is measured from now on belongs to the next.

        Args:
            parameters: whose gradient; None for all.
        """
        self.ledger.turn(parameters)

    def gradient_is_complete(self, parameters: Iterable[Tensor]) -> None:
        """Say that these parameters hold all of their gradient, though the backward pass may still go on to others.

        An optimizer that steps in a `register_post_accumulate_grad_hook` needs it, for parameters that are used several
        times: else their norms are known at the end of the pass. Outside of a backward pass nothing happens.
        """
        if torch._C._current_graph_task_id() != -1:
            self.ledger.complete(parameters)

    def _notice_unmeasured(self) -> None:
        """Name what has a gradient and no record, once it is known, and whatever joined the model."""
        if self.watched:
            if not self._checked:
                self._checked = True
                self._notice_newcomers()
            if not is_distributed():
                self.ledger.look_for_unwatched()
        self._learn(wait=self.on_untracked == "error")
        self._warn_of_new()
        if self.on_untracked == "error":
            self._refuse_untracked()

    def _learn(self, wait: bool) -> None:
        """Name what the device found to be unmeasured, here or by another process."""
        self._settle_check()
        mine, others = self.ledger.news(wait)
        self.exclude(mine, "its gradient, or part of it, did not come through a forward pass that was watched")
        self.exclude(others, "another process cannot measure all of it")

    def _settle_check(self) -> None:
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() == -1:
            self.ledger.settle_check()

    def _notice_newcomers(self) -> None:
        known = {id(entry.parameter) for entry in self.ledger.entries}
        late = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if (parameter.ndim >= 2 or self.vectors) and parameter.grad is not None and id(parameter) not in known
        }
        self._name(late, "it joined the model after PerSampleNorms was attached")

    def exclude(self, entries: list[Entry], reason: str) -> None:
        """Part of the gradient of these cannot be measured, so none of what was measured counts."""
        for entry in entries:
            entry.incomplete = True
        self._name({entry.name: entry.parameter for entry in entries}, reason)
        if not torch.compiler.is_compiling():
            self._warn_of_new()

    def _name(self, parameters: Mapping[str, Tensor], reason: str) -> None:
        for name, parameter in parameters.items():
            if name not in self._untracked:
                self._untracked[name] = self._unwarned[name] = reason
                if parameter.ndim >= 2:
                    self._matrices.append(name)

    def _warn_of_new(self) -> None:
        if self._unwarned and self.on_untracked != "error":
            reasons, self._unwarned = self._unwarned, {}
            self._warn(reasons)

    def _warn(self, reasons: dict[str, str]) -> None:
        warnings.warn(
            f"PerSampleNorms cannot measure {len(reasons)} parameter(s), and CLARS takes stand-ins for what it "
            f"adapts of them: {_listed(reasons)}. hf_clars.verify_norms(model, batch, loss_fn) checks the others on a "
            "batch of yours",
            stacklevel=3,
        )

    def _refuse_untracked(self) -> None:
        if self._matrices:
            reasons = {name: self._untracked[name] for name in self._matrices}
            raise UserError(
                f"PerSampleNorms cannot measure {len(reasons)} parameter(s), and untracked='error' ends the training: "
                f"{_listed(reasons)}; untracked='stand_in' trains on"
            )

    # --- for the interception ----------------------------------------------------------------------------------

    def subset_of(self, batch: int) -> slice | None:
        """Which samples of a batch are measured; None for all."""
        if self.mode != "subset":
            return None
        wanted = min(batch, max(1, round(self.norm_samples * batch / max(self.total_batch_size or batch, batch))))
        return None if wanted == batch else slice(0, wanted * (batch // wanted), batch // wanted)


def _listed(reasons: Mapping[str, str]) -> str:
    some = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
    return some + (f"; and {len(reasons) - 3} more, see .untracked" if len(reasons) > 3 else "")
