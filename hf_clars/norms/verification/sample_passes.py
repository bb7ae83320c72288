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

from ...errors import UserError
from ..batches import one_sample, split_batch
from ..extra_passes import buffers_restored
from ..per_sample import PerSampleNorms
from .evidence import Evidence
from .sample_outputs import as_real, differentiable, is_close, rows_of, slopes_at, weight_of

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
        with self._pass(), _dtypes_saved() as saved:
            first = self._alone(0)
            shapes = [] if isinstance(first, str) else [t.shape for t in first[0]]
            del first
        with self._pass():
            whole, loss = self._run()
            dtypes = saved | {p.dtype for p in parameters.values()} | {t.dtype for t in (*whole, loss)}
            found = Evidence(parameters, self.tolerance or max(_TOLERANCE.get(d, _COARSE) for d in dtypes))
            by_sample = [k for k, (t, s) in enumerate(zip(whole, shapes, strict=False)) if rows_of(t, s, self.size, 0)]
            slopes = dict(zip(by_sample, slopes_at(loss, [whole[k] for k in by_sample]), strict=True))
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
                both = name in gradients and name in now
                found.changed[name] = _norm(now[name] - gradients[name]) if both else float("inf")

    def _alone(self, i: int) -> tuple[list[Tensor], Tensor | None] | str:
        """Outputs and loss of sample i alone, the loss None where it wants more samples; or why there is nothing."""
        try:
            result, targets = self._forward(one_sample(self.batch, self.size, i))
        except Exception as error:  # of the user's model: a layer that wants more samples, say
            return f"the model refuses a batch of one sample ({_one_line(error)})"
        try:
            loss = self._loss(result, targets)
        except Exception:  # it compares samples; its derivative in the batch is known
            loss = None
        return differentiable(result, loss), loss

    def _one(self, i: int, whole: list[Tensor], slopes: dict[int, Tensor], tolerance: float) -> str:
        """Sample i's contribution goes to `.grad`; or why it cannot.

        Args:
            whole: the batch's outputs.
            slopes: place among them → derivative of the batch's loss by that output, of those that are by sample.
        """
        found = self._alone(i)
        if isinstance(found, str):
            return found
        outputs, loss = found
        if len(outputs) != len(whole):
            return f"the model has {len(whole)} outputs for the batch, {len(outputs)} for one sample"
        alone, slope = [], []
        for k, slope_of_all in slopes.items():
            choices = rows_of(whole[k], outputs[k].shape, self.size, i)
            scale = whole[k].abs().nan_to_num(posinf=0).max().item()
            fits = [c for c, rows in enumerate(choices) if is_close(rows, outputs[k], tolerance * scale)]
            if not fits:
                return f"samples mix or are random: the outputs of sample {i} alone are not those in the batch"
            alone.append(outputs[k])
            slope.append(rows_of(slope_of_all, outputs[k].shape, self.size, i)[fits[0]])
        if loss is not None and not any(s.any() for s in slopes.values()):
            (loss / self.size).backward()  # nothing shows its weight: outputs may be copies in another precision
        elif loss is not None and (weight := weight_of(slopes_at(loss, alone), slope, tolerance)) is not None:
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
        return differentiable(result, loss), loss

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


@contextmanager
def _dtypes_saved() -> Iterator[set[torch.dtype]]:
    """Of all that is kept for the backward pass: what a model computes in, under autocast say, shows there alone."""
    dtypes: set[torch.dtype] = set()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            dtypes.add(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield dtypes


def _norm(gradient: Tensor) -> float:
    gradient = as_real(gradient)
    return torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)).item()


def _gradients_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """`.grad` by name, where there is one; dense."""
    return {n: p.grad.to_dense() if p.grad.is_sparse else p.grad for n, p in parameters.items() if p.grad is not None}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
