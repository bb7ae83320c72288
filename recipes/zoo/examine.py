"""Whether the norms of one architecture are there and right."""

import fnmatch
import math
import warnings
from collections import defaultdict
from typing import Any

import torch
from architecture import Case, Inputs, Setting, call, count_parameters, functional, one_line, wants_float32
from checkpointing import checkpoint_activations
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from hf_clars import PerSampleNorms

# Of a norm; rounding inside a model (a cast to float32) included.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
TINY_GRADIENT = 1e-6  # of the model's largest: errors of smaller gradients, maybe mere rounding, are relative to this
MIXES = {  # what equal outputs do not show, so that ∇f_i is not what a sample contributes
    "timm/csatv2*": "samples mix: its spatial attention is q @ k.transpose(-1, -2) of [batch, positions]",
}


def examine(case: Case, setting: Setting) -> dict[str, Any]:
    """Everything that is known about one architecture."""
    for dtype in TOLERANCE:
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            model, inputs = case.build(setting)
            model = model.to(dtype).eval()
            randomize(model, inputs)
            if setting.checkpointing:
                checkpoint_activations(model)
            mixed = next((reason for pattern, reason in MIXES.items() if fnmatch.fnmatch(case.name, pattern)), "")
            return {
                "dtype": str(dtype).removeprefix("torch."),
                **compare(model, inputs, setting, TOLERANCE[dtype], mixed),
            }
        except RuntimeError as error:
            if not wants_float32(error):
                raise
    raise AssertionError


def compare(model: nn.Module, inputs: Inputs, setting: Setting, tolerance: float, mixed: str) -> dict[str, Any]:
    batch = setting.batch
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    owners = {id(p): type(m).__name__ for m in model.modules() for p in m._parameters.values()}
    kind = {n: owners.get(id(p), "?") for n, p in parameters.items()}

    def gradients(f: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(f, list(parameters.values()), allow_unused=True)
        return {n: g for n, g in zip(parameters, found, strict=True) if g is not None}

    with Casts() as casts:
        outputs = call(model, inputs)
    if not outputs or any(o.shape[:1] != (batch,) for o in outputs):
        raise ValueError(f"outputs {[tuple(o.shape) for o in outputs]} are not one per sample")
    if not all(o.isfinite().all() for o in outputs):
        raise ValueError("outputs are not finite")
    weights = [torch.randn_like(o[:1]) for o in outputs]
    plain = gradients(functional(outputs, weights).mean())

    if not all(g.isfinite().all() for g in plain.values()):
        raise ValueError("gradients are not finite")
    floor = max((g.norm().item() for g in plain.values()), default=0.0) * TINY_GRADIENT

    truth, rest = {n: torch.zeros(batch) for n in plain}, {n: g.clone() for n, g in plain.items()}
    for i in range(0 if mixed else batch):
        try:
            alone = call(model, inputs, slice(i, i + 1))
            off = max(_relative(a - o[i : i + 1], o) for a, o in zip(alone, outputs, strict=True))
        except Exception as error:
            mixed = f"refuses a batch of one ({one_line(error)})"
            break
        if off > tolerance:
            mixed = f"samples mix in eval mode (outputs differ by {off:.0e})"
            break
        for n, g in gradients(functional(alone, weights).sum() / batch).items():
            truth[n][i] = g.norm()
            rest[n] -= g
    # Where gradients of batches of one do not add up to the batch's, PyTorch is wrong about one of them (BatchNorm2d in
    # eval mode with one sample, CPU, torch 2.14: finite differences side with the batch): take each f_i of the batch.
    adds_up = all(g.norm() <= tolerance * max(plain[n].norm().item(), floor) for n, g in rest.items())
    if not mixed and not adds_up:
        values = functional(call(model, inputs), weights) / batch
        for i in range(batch):
            found = torch.autograd.grad(values[i], [parameters[n] for n in plain], retain_graph=True, allow_unused=True)
            for n, g in zip(plain, found, strict=True):
                truth[n][i] = 0.0 if g is None else g.norm()
    del rest

    run = torch.compile(model, backend=setting.backend) if setting.backend else model
    result: dict[str, Any] = {"parameters": count_parameters(model), "inputs": _shapes(inputs), "mixed": mixed}
    result["rounds"] = casts.narrower
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PerSampleNorms(model, bias_and_norm=True) as norms:
                again = call(run, inputs)
                functional(again, weights).mean().backward()
                measured = norms.per_sample()
                norms.denominators()  # what the optimizer asks for; it is when unmeasured parameters are noticed
                untracked = norms.untracked
    except Exception as error:
        if setting.backend:  # which may refuse the model itself
            functional(call(run, inputs), weights).mean().backward()
        return {**result, "crashed": one_line(error), "counts": {"crashed": len(plain)}}
    result["reference"] = "batches of one" if adds_up else "each f_i of the batch"
    result["output_change"] = max(_relative(a - o, o) for a, o in zip(again, outputs, strict=True))
    off_gradients = {
        n: ((torch.zeros_like(g) if (p := parameters[n].grad) is None else p) - g).norm().item()
        / max(g.norm().item(), floor)
        for n, g in plain.items()
    }
    result["gradient_error"], result["gradient_error_at"] = _worst(off_gradients)

    matrices = {n for n in plain if parameters[n].ndim >= 2}
    vectors = plain.keys() - matrices
    tracked = {n for n in plain if n in measured and n not in untracked}
    result["matrices"], result["matrices_measured"] = len(matrices), len(matrices & tracked)
    result["vectors"], result["vectors_measured"] = len(vectors), len(vectors & tracked)
    result["elements"] = sum(parameters[n].numel() for n in matrices)
    result["elements_measured"] = sum(parameters[n].numel() for n in matrices & tracked)
    result["no_gradient"] = sorted(parameters.keys() - plain.keys())
    exceptions = defaultdict(list)
    for n in sorted(plain.keys() - tracked):
        if n in matrices:
            exceptions[untracked.get(n, f"no norm and no reason ({kind[n]})")].append(n)
        else:
            exceptions[f"1-d: no norm ({kind[n]})"].append(n)
    result["exceptions"] = dict(exceptions)
    named = len(untracked.keys() & plain.keys())
    counts = {"named": named, "absent": len(plain) - len(tracked) - named, "not compared": len(tracked)}
    result["counts"] = counts

    if not mixed:
        result["tiny_gradients"] = sum(truth[n].max().item() < floor for n in tracked)
        errors = {n: _error(measured[n], truth[n], floor) for n in tracked}
        result["error"], result["error_at"] = _worst(errors)
        result["wrong"] = [
            {
                "parameter": n,
                "layer": kind[n],
                "shape": list(parameters[n].shape),
                "error": errors[n],
                "measured": measured[n].flatten().tolist()[:8],
                "truth": truth[n].tolist(),
            }
            for n in sorted(tracked, key=lambda n: -errors[n])
            if not errors[n] <= tolerance
        ]
        wrong = len(result["wrong"])
        counts |= {"not compared": 0, "wrong": wrong, "right": len(tracked) - wrong}
    return result


class Casts(TorchFunctionMode):
    """Whether a model casts to a narrower type than it runs in: sums of gradients in another order then differ by its
    rounding, as a parameter's are that is cast too."""

    narrower = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.requires_grad and out.is_floating_point():
            self.narrower = self.narrower or out.dtype.itemsize < torch.get_default_dtype().itemsize
        return out


def randomize(model: nn.Module, inputs: Inputs) -> None:
    """Break what initialisation leaves constant (zero gradients would hide errors); let BatchNorm see some data."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() > 1 and parameter.min() == parameter.max():
                scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
                parameter += scale * torch.randn_like(parameter)
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        if norms:
            call(model, inputs)
        for norm in norms:
            norm.eval()
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var.mul_(0.8 + 0.4 * torch.rand_like(norm.running_var)).add_(1e-3)


def _error(measured: Tensor, truth: Tensor, floor: float) -> float:
    if measured.shape != truth.shape:
        return float("inf")
    error = ((measured - truth).abs().max() / max(truth.max().item(), floor)).item()
    return float("inf") if math.isnan(error) else error


def _relative(difference: Tensor, reference: Tensor) -> float:
    return (difference.abs().max() / reference.abs().max().clamp(min=1e-30)).item()


def _worst(errors: dict[str, float]) -> tuple[float, str]:
    name = max(errors, key=lambda n: errors[n], default="")
    return errors.get(name, 0.0), name


def _shapes(inputs: Inputs) -> str:
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return " ".join("×".join(map(str, v.shape)) for v in values)
