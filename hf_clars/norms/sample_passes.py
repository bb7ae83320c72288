"""The passes of `verify_norms`: over the batch, with and without measuring, and over each of its samples alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import UserError
from .batches import named_tensors, one_sample, split_batch
from .evidence import Evidence
from .extra_passes import buffers_restored
from .per_sample import PerSampleNorms

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # others have three digits or fewer
_COARSE = 5e-2


@dataclass(eq=False)
class SamplePasses:
    """The passes of `verify_norms`."""

    model: nn.Module
    batch: Any
    loss_fn: Callable[[Any, Any], Tensor] | None
    size: int
    tolerance: float | None
    rewind: Callable[[], None]

    def fix_layers(self) -> list[str]:
        """Put layers that mix samples or draw random numbers into eval mode; lines that say so."""
        lines = []
        for kind, line in (
            (_BatchNorm, "BatchNorm by its running statistics ({}): in train mode it mixes samples"),
            (_DropoutNd, "dropout off ({})"),
        ):
            layers = [m for m in self.model.modules() if isinstance(m, kind) and m.training]
            for layer in layers:
                layer.training = False
            if any(getattr(layer, "p", 1) for layer in layers):
                lines.append(line.format("1 layer" if len(layers) == 1 else f"{len(layers)} layers"))
        return lines

    def evidence(self) -> Evidence:
        """All passes, in the modes that the layers now have."""
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        with self._pass():
            whole, loss = self._run()
            dtypes = {p.dtype for p in parameters.values()} | {t.dtype for t in (*whole, loss)}
            found = Evidence(parameters, self.tolerance or max(_TOLERANCE.get(d, _COARSE) for d in dtypes))
            slopes = _gradients(loss, whole)
            loss.backward()
            rest = _gradients_of(parameters)
            whole = [t.detach() for t in whole]
            del loss
        for name, gradient in rest.items():
            found.gradient[name] = _norm(gradient)
            found.expected[name] = torch.zeros(self.size, dtype=torch.float64)
        try:
            self._measure(found, rest)
        except Exception as error:  # what the plain pass did not raise
            found.failed = f"the pass fails while PerSampleNorms is attached ({_one_line(error)})"
        for i in range(self.size):
            with self._pass():
                found.doubt = self._one(i, whole, slopes, found.tolerance)
                if found.doubt:
                    break
                for name, gradient in _gradients_of(parameters).items():
                    if name in rest:
                        found.expected[name][i] = _norm(gradient)
                        rest[name] -= gradient
        found.rest = {name: _norm(gradient) for name, gradient in rest.items()}
        return found

    def _measure(self, found: Evidence, gradients: dict[str, Tensor]) -> None:
        with warnings.catch_warnings(), self._pass(), PerSampleNorms(self.model) as norms:
            warnings.filterwarnings("ignore", "PerSampleNorms cannot measure")  # the table says it
            _, loss = self._run()
            loss.backward()
            measured = norms.per_sample()
            if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
                norms.denominators()  # shows what was not measured; all processes would have to ask
            found.untracked = dict(norms.untracked)
            found.measured = {n: norm.double().cpu() for n, norm in measured.items()}
            now = _gradients_of(found.parameters)
            for name in gradients.keys() | now.keys():
                if name in gradients and name in now:
                    off = _norm(now[name] - gradients[name])
                    found.changed[name] = off / max(found.gradient[name], 1e-300) if off else 0.0
                else:
                    found.changed[name] = float("inf")

    def _one(self, i: int, whole: list[Tensor], slopes: list[Tensor], tolerance: float) -> str:
        """Sample i's contribution goes to `.grad`; or why it cannot."""
        try:
            result, targets = self._forward(one_sample(self.batch, self.size, i))
        except Exception as error:  # of the user's model: a layer that wants more samples, say
            return f"the model refuses a batch of one sample ({_one_line(error)})"
        try:
            loss = self._loss(result, targets)
        except Exception:  # it compares samples; its derivative in the batch is known
            loss = None
        outputs = _differentiable(result, loss)
        if len(outputs) != len(whole):
            return f"the model has {len(whole)} outputs for the batch, {len(outputs)} for one sample"
        alone, slope = [], []
        for output, all_rows, all_slopes in zip(outputs, whole, slopes, strict=True):
            choices = _rows(all_rows, output.shape, self.size, i)
            if not choices:
                continue  # not by sample
            scale = all_rows.abs().nan_to_num(posinf=0).max().item() if all_rows.numel() else 0.0
            fits = [c for c, rows in enumerate(choices) if _close(rows, output, tolerance * scale)]
            if not fits:
                return f"samples mix or are random: the outputs of sample {i} alone are not those in the batch"
            alone.append(output)
            slope.append(_rows(all_slopes, output.shape, self.size, i)[fits[0]])
        if loss is not None and not alone:
            (loss / self.size).backward()  # nothing shows its weight
        elif loss is not None and (weight := _weight(_gradients(loss, alone), slope, tolerance)) is not None:
            (weight * loss).backward()
        elif any(s.any() for s in slope):
            torch.autograd.backward(alone, slope)
        return ""

    @contextmanager
    def _pass(self) -> Iterator[None]:
        """A pass begins with the same random states, without gradients, and leaves buffers as they were."""
        self.rewind()
        try:
            with buffers_restored(self.model):
                yield
        finally:
            for parameter in self.model.parameters():
                parameter.grad = None

    def _run(self) -> tuple[list[Tensor], Tensor]:
        """The whole batch: outputs that gradients go through, and the loss."""
        result, targets = self._forward(self.batch)
        loss = self._loss(result, targets)
        return _differentiable(result, loss), loss

    def _forward(self, batch: Any) -> tuple[Any, Any]:
        """What the model returns, and the targets."""
        if self.loss_fn is not None:
            inputs, targets = (batch, None) if isinstance(batch, Tensor) else split_batch(batch)
            return self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs), targets
        if isinstance(batch, Mapping):
            return self.model(**batch), None
        return self.model(*batch) if isinstance(batch, (tuple, list)) else self.model(batch), None

    def _loss(self, result: Any, targets: Any) -> Tensor:
        loss: Any
        if self.loss_fn is not None:
            loss = self.loss_fn(result, targets)
        else:
            loss = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", None)
            if loss is None:
                raise UserError(
                    f"the model returned a {type(result).__name__} without a loss: give loss_fn(outputs, targets), or "
                    "labels in a dictionary batch"
                )
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise UserError(f"the loss is {kind}; it must be one number, the batch's mean loss")
        if not loss.requires_grad:
            raise UserError("the loss depends on no parameter that is trained")
        return loss.reshape(())


def _differentiable(result: Any, loss: Tensor | None) -> list[Tensor]:
    """The tensors in a model's result that gradients go through; a loss, a number, is none of them."""
    return [t for _, t in named_tensors(result, "") if t.requires_grad and t.numel() and t is not loss]


def _gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The loss's derivative by each of these, zero where it does not depend on one."""
    if not tensors or not loss.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    found = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]


def _rows(whole: Tensor, alone: torch.Size, size: int, i: int) -> list[Tensor]:
    """What may be sample i's of a batch's output, given the shape of a batch of one's; empty if it is not by sample.

    Where a sample has several rows, they stand one after the other, or every sample's first before any's second.
    """
    if whole.ndim != len(alone):
        return []
    differing = [d for d in range(whole.ndim) if whole.shape[d] != alone[d]]
    if len(differing) != 1 or whole.shape[differing[0]] != size * alone[differing[0]]:
        return []
    (d,) = differing
    rows = alone[d]
    one_after_the_other = whole.narrow(d, i * rows, rows)
    return (
        [one_after_the_other] if rows == 1 else [one_after_the_other, whole.unflatten(d, (rows, size)).select(d + 1, i)]
    )


def _close(rows: Tensor, alone: Tensor, distance: float) -> bool:
    return torch.allclose(rows.detach(), alone.detach(), rtol=0.0, atol=distance, equal_nan=True)


def _weight(alone: list[Tensor], in_batch: list[Tensor], tolerance: float) -> float | None:
    """`w` for which `in_batch = w · alone`; None if there is none."""
    a, b = (torch.cat([_real(t).flatten().double().cpu() for t in tensors]) for tensors in (alone, in_batch))
    square = a.dot(a).item()
    if not 0 < square < float("inf"):
        return None
    weight = a.dot(b).item() / square
    return weight if (b - weight * a).norm() <= tolerance * b.norm() else None


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _norm(gradient: Tensor) -> float:
    gradient = _real(gradient)
    return torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)).item()


def _gradients_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """`.grad` by name, where there is one; dense."""
    return {n: p.grad.to_dense() if p.grad.is_sparse else p.grad for n, p in parameters.items() if p.grad is not None}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
