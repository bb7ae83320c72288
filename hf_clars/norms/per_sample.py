"""`PerSampleNorms`: every sample's gradient norm in every layer, measured during the ordinary backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..errors import UserError
from .interception import Interception
from .layers import Layer
from .ledger import Entry, Ledger
from .marks import ENTRY, PREFIX, SAMPLES, is_source, marked, tensors_in
from .rule import Rule
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
        untracked: what a parameter that cannot be measured means for CLARS: `"stand_in"` or `"error"`.

    Attributes:
        untracked: parameter name → why it cannot be measured, for trainable parameters of two or more dimensions.
            Filled in as forward passes show it; warned about once. CLARS gives them LARS's learning rate.

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
        untracked: str = "stand_in",
    ) -> None:
        if mode not in MODES:
            of_trainer = "; 'authors' is ClarsTrainer's, with passes of its own" if mode == "authors" else ""
            raise UserError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}{of_trainer}")
        for name, size in (("norm_samples", norm_samples), ("total_batch_size", total_batch_size or 1)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UserError(f"{name}={size!r} must be a whole number of at least 1")
        check_untracked(untracked)
        self.model = model
        self.mode = mode
        self.norm_samples = norm_samples
        self.total_batch_size = total_batch_size
        self.vectors = vectors
        self.on_untracked = untracked
        self.untracked: dict[str, str] = {}
        self._unwarned: dict[str, str] = {}
        self.ledger = Ledger()
        self.interception = Interception(self)
        self._handles: list[Any] = []
        self._watched: list[WatchedForward] = []
        self._members: list[nn.Module] = []
        self._checked = False
        self.batch: int | None = None
        self._attached = False
        self.attach()

    # --- attaching ---------------------------------------------------------------------------------------------

    def attach(self) -> PerSampleNorms:
        """Begin to measure; nothing happens if it already does. Returns itself."""
        if self._attached:
            return self
        if attached_to(self.model):
            raise UserError(
                "another PerSampleNorms is attached to this model: detach() it first, "
                "or call PerSampleNorms.detach_all(model)"
            )
        self.ledger = Ledger()
        self.untracked, self._unwarned = {}, {}
        self._attached = True
        self._members = list(self.model.modules())
        self._checked = False  # whether layers joined since
        if self.mode == "micro_batch":
            self._attach_to_parameters()
        else:
            self._attach_to_modules()
        self._handles.append(self.model.register_forward_pre_hook(BeginPass(self), with_kwargs=True))
        return self

    def detach(self) -> None:
        """Stop measuring and leave the model as it was found. What was measured stays readable."""
        for forward in self._watched:
            forward.restore()
        self._watched, self._members = [], []
        for entry in self.ledger.entries:
            entry.parameter.__dict__.pop(ENTRY, None)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._attached = False
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
        entries: dict[int, Entry] = {}
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
        seen: set[int] = set()
        for prefix, module in self._modules():
            for attribute, parameter in module._parameters.items():
                if parameter is None or id(parameter) in seen or not parameter.requires_grad:
                    continue
                seen.add(id(parameter))
                if parameter.ndim >= 2 or self.vectors:
                    entry = self.ledger.open_entry(module, attribute, f"{prefix}{attribute}")
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

    def begin_pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass of the whole model begins: its first tensor says how many samples it has."""
        self.ledger.begin_pass()
        first = next((t for t in tensors_in((*args, *kwargs.values())) if t.ndim), None)
        self.batch = first.shape[0] if first is not None else None
        if not any(e.samples for e in self.ledger.entries):
            # FSDP keeps unsharded gradients aside, so an empty `grad` says nothing about the gradient's life.
            self.ledger.follows_gradient = not any(isinstance(m, FSDPModule) for m in self._members)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A watched module is called from outside any other: its arguments are where samples come in."""
        if self.batch is None:
            self.batch = next((t.shape[0] for t in tensors_in((*args, *kwargs.values())) if t.ndim), None)
        for tensor in tensors_in((*args, *kwargs.values())):
            if is_source(tensor):
                continue  # a weight that is handed to a checkpointed module
            if module is self.model or (tensor.ndim and self.batch and tensor.shape[0] % self.batch == 0):
                marked(tensor, SAMPLES, True)

    # --- what was measured -------------------------------------------------------------------------------------

    def sums(self) -> dict[str, Tensor]:
        """Parameter name → `Σ_i ‖c_i‖` (0-dim) of everything since `reset()`, on this rank."""
        return self.ledger.totals(0)

    def square_sums(self) -> dict[str, Tensor]:
        """Parameter name → `Σ_i ‖c_i‖²` (0-dim) of everything since `reset()`, on this rank."""
        return self.ledger.totals(1)

    def per_sample(self) -> dict[str, Tensor]:
        """Parameter name → `‖c_i‖` of the last backward pass, shape `[batch]` (of the measured ones in a subset)."""
        return self.ledger.last()

    def reset(self) -> None:
        """Forget everything measured."""
        self.ledger.reset()

    def denominators(self) -> dict[Tensor, Tensor]:
        """Parameter → `Σ_i ‖c_i‖` (0-dim) of the gradient it now holds, averaged over ranks as the gradient is.

        All ranks must call it, as they all must step.
        """
        values, present = self.ledger.of_gradient()
        self._notice_unmeasured()
        return {e.parameter: values[0, e.index] for e in present}

    def gradient_statistics(self) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Name → (`Σ‖c_i‖`, `Σ‖c_i‖²`, samples n) of the gradient at hand, over all ranks; a collective call."""
        values, present = self.ledger.of_gradient()
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return {e.name: (values[0, e.index], values[1, e.index], e.samples * world) for e in present}

    def close_gradient(self) -> None:
        """The gradient was used or cleared; what is measured from now on belongs to the next."""
        self.ledger.turn_all()

    def _notice_unmeasured(self) -> None:
        """A parameter with a gradient and never a record gets its gradient past what was watched."""
        self._warn_of_new()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed or not any(e.samples for e in self.ledger.entries):
            return  # another rank may have measured it; or nothing was measured at all
        if not self._checked:
            self._checked = True
            self._notice_newcomers()
        unmeasured = [e for e in self.ledger.entries if not e.seen and e.parameter.ndim >= 2]
        reason = "its gradient did not come through a forward pass that was watched"
        self.exclude([e for e in unmeasured if e.parameter.grad is not None], reason)

    def _notice_newcomers(self) -> None:
        known = {id(entry.parameter) for entry in self.ledger.entries}
        late = [
            n for n, p in self.model.named_parameters() if p.ndim >= 2 and p.grad is not None and id(p) not in known
        ]
        new = dict.fromkeys(late, "it joined the model after PerSampleNorms was attached")
        self.untracked.update(new)
        self._unwarned.update(new)
        self._warn_of_new()

    def exclude(self, entries: list[Entry], reason: str) -> None:
        """Part of the gradient of these cannot be measured, so none of what was measured counts."""
        for entry in entries:
            entry.incomplete = True
        new = {e.name: reason for e in entries if e.name not in self.untracked and e.parameter.ndim >= 2}
        self.untracked.update(new)
        self._unwarned.update(new)
        if not torch.compiler.is_compiling():
            self._warn_of_new()

    def _warn_of_new(self) -> None:
        if self._unwarned:
            reasons, self._unwarned = self._unwarned, {}
            self._warn(reasons)

    def _warn(self, reasons: dict[str, str]) -> None:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
        more = f"; and {len(reasons) - 3} more, see .untracked" if len(reasons) > 3 else ""
        warnings.warn(
            f"PerSampleNorms cannot measure {len(reasons)} parameter(s), CLARS gives them LARS's learning rate: "
            f"{some}{more}",
            stacklevel=3,
        )

    # --- for the interception ----------------------------------------------------------------------------------

    def samples_in(self, x: Tensor, rule: Rule, entries: list[Entry], positions_first: bool = False) -> int | None:
        """The batch size of an operator's input; None, and noted, when its rows cannot be told to belong to samples."""
        if x.ndim == rule.unbatched_ndim:
            if self.batch in (None, 1) or len(self._watched) == 1:  # the model is this one layer
                return 1
            self.exclude(entries, f"its layer saw an input without a batch dimension for a batch of {self.batch}")
            return None
        rows = x.shape[0] if x.ndim else 0
        if x.numel() == 0:
            return None  # no samples, no contributions
        batch = self.batch or rows
        if positions_first:
            rows = x.shape[1] if x.ndim == 3 else rows
        if rows and (rows == batch or (rows % batch == 0 and x.ndim >= rule.folded_ndim)):
            return batch
        self.exclude(entries, f"its layer saw {rows} rows for a batch of {batch}")
        return None

    def subset_of(self, batch: int) -> slice | None:
        """Which samples of a batch are measured; None for all."""
        if self.mode != "subset":
            return None
        wanted = min(batch, max(1, round(self.norm_samples * batch / max(self.total_batch_size or batch, batch))))
        stride = batch // wanted
        return None if wanted == batch else slice(0, wanted * stride, stride)
