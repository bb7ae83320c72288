"""`verify_norms`: what `PerSampleNorms` measures, held against passes over single samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from ...errors import UserError
from ..batches import in_dtype, sample_count, split_batch
from ..restored import restored
from .sample_passes import SamplePasses
from .verdicts import NormsVerification


def verify_norms(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    verbose: bool = True,
) -> NormsVerification:
    """Hold `‖c_i‖` of every parameter, as `PerSampleNorms(model)` measures it, against passes over single samples.

    Sample i alone goes through the model, and its loss `f_i` backward with the weight `w_i` that it has in the batch's
    loss `L`: `c_i = w_i ∇f_i`. The weight is read off the model's outputs, where `∂L/∂o_i = w_i ∂f_i/∂o_i`: 1/B in a
    mean, a sample's share of the tokens in a mean over tokens. Where no weight makes the two equal, because the loss
    compares samples, `∂L/∂o_i` itself goes backward from the outputs of sample i alone. A reference counts only where
    `Σ_i c_i` is the gradient of `L`, and where sample i alone has the outputs that it has in the batch; elsewhere the
    parameter is "not checked", or "wrong" if `Σ_i ‖c_i‖` is smaller than the gradient, which cannot be.

    BatchNorm in train mode mixes samples, and dropout draws others for a sample alone, so these layers are in eval mode
    meanwhile; all layers are if outputs still differ. The table says so. Everything runs in the model's dtype, on its
    device, and takes B + 3 passes and the memory of two more gradients. The model, its gradients,
    buffers, random states and an attached `PerSampleNorms` are as they were afterwards. Under DistributedDataParallel
    the wrapped module is checked, on this process alone.

    Args:
        model: called as `model(inputs)`, or `model(**inputs)` for dictionary batches.
        batch: a pair `(inputs, targets)`, a dictionary with the targets under `"labels"`, or a tensor, which has no
            targets (None). Every tensor in it with B rows is cut into rows; what else it holds is given whole.
        loss_fn: `loss_fn(outputs, targets)` → the loss of the batch, as in `gradient_variance`. None takes the `loss`
            that the model itself returns, as those of transformers do: `model(**batch)`, or `model(*batch)`.
        batch_size: B; by default the number of rows of the first tensor, of the targets if they have one.
        dtype: in which to check instead, e.g. `torch.float64`: model and batch are converted for the time.
        tolerance: the largest relative error that counts as rounding: by default 1e-6 in float64, 1e-3 in float32,
            5e-2 where the model, or autocast, computes in less. Norms smaller than this share of the model's largest
            are held against that share.
        verbose: print the table, a line for each parameter and one for all.

    Returns:
        A verdict for each parameter. What is wrong is said, not raised.

    Raises:
        UserError: a batch with fewer than two samples, or of which they cannot be told; a loss that is not a number;
            nothing that is trained; a model under FSDP; a tolerance or dtype that is none.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise UserError("verify_norms takes no model under FSDP: call it before fully_shard")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("the model has no parameter that is trained (requires_grad)")
    if tolerance is not None and not 0 < tolerance < 1:
        raise UserError(f"tolerance={tolerance!r} must be between 0 and 1")
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"dtype={dtype} must be a floating-point dtype, such as torch.float64")
    inputs, targets = _taken_apart(batch, loss_fn)
    size, note = sample_count(inputs, targets, batch_size)
    if dtype is not None:
        batch = in_dtype(batch, dtype)
    with restored(model, dtype) as rewind, torch.inference_mode(False), torch.enable_grad():
        check = SamplePasses(model, batch, loss_fn, size, tolerance, rewind)
        notes = [note] if note else []
        notes += check.fix_layers()
        evidence = check.evidence()
        if evidence.doubt and any(module.training for module in model.modules()):
            model.eval()
            notes = [*notes[: bool(note)], "the whole model in eval mode: in train mode, " + evidence.doubt]
            evidence = check.evidence()
    verdicts = {name: evidence.verdict(name, size) for name in evidence.parameters}
    verification = NormsVerification(verdicts, size, evidence.tolerance, tuple(notes))
    if verbose:
        print(verification)
    return verification


def _taken_apart(batch: Any, loss_fn: Any) -> tuple[Any, Any]:
    """Inputs and targets, as far as a batch has them."""
    if isinstance(batch, Tensor):
        return batch, None
    if loss_fn is not None:
        return split_batch(batch)
    return batch, batch.get("labels") if isinstance(batch, Mapping) else None
