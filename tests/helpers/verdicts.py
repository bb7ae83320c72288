"""What becomes of a model's norms: right, named, wrong or crashed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_clars.norms import PerSampleNorms

TOLERANCE = 1e-9  # of norms, gradients and outputs, in float64
TINY = 1e-6  # of the model's largest gradient: errors of smaller ones, maybe mere rounding, are relative to this

Loss = Callable[..., Tensor]


class Verdict(NamedTuple):
    """`word` is "right", "named", "wrong" or "crashed"; `why` says of what."""

    word: str
    why: str = ""


class Run(NamedTuple):
    losses: Tensor
    gradients: dict[str, Tensor]


def functional(model: nn.Module, *xs: Tensor) -> Tensor:
    """`f_i` for every sample, `[batch]`: random linear plus square in the sample's outputs, which come batch first."""
    output = model(*xs).unsqueeze(-1)
    weight = torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(7), dtype=output.dtype)
    return (output * weight + 0.5 * output.square()).flatten(1).mean(1)


def verdict(
    model: nn.Module,
    xs: Tensor | tuple[Tensor, ...],
    loss: Loss = functional,
    alone: tuple[nn.Module, Tensor | tuple[Tensor, ...]] | None = None,
    together: bool = False,
    unchecked: bool = False,
) -> Verdict:
    """Compare the norms of one backward pass of `(1/B) Σ f_i` with those of passes over single samples.

    - right: every norm agrees, for every parameter with a gradient;
    - named: those that are not measured are in `.untracked`, the others agree;
    - wrong: a norm, a denominator, a gradient or an output is another than without measuring, or a parameter is neither
      measured nor named;
    - crashed: measuring raises an error where the plain passes raise none.

    Args:
        model: float64, in the mode that is meant; it is left with the measured pass's gradients.
        xs: its inputs, each with samples as the first dimension.
        loss: `(model, *xs)` → `f_i`, `[batch]`.
        alone: model and inputs for the passes over single samples, where samples mix: what of them does not.
        together: take each `f_i` of the batch instead, for models that depend on the batch's size but do not mix.
        unchecked: measure the third pass, of which the gradient is not checked, after two in which it was zero.
    """
    xs = xs if isinstance(xs, tuple) else (xs,)
    batch = xs[0].shape[0]
    plain = _run(copy.deepcopy(model), xs, loss, batch)
    truth = _truth(*(alone or (model, xs)), loss, plain.gradients, together)
    try:
        with warnings.catch_warnings(), PerSampleNorms(model) as norms:
            warnings.simplefilter("ignore", UserWarning)  # that something cannot be measured
            for _ in range(2 if unchecked else 0):
                (0 * loss(model, *xs).sum()).backward()
            norms.reset()
            measured = _run(model, xs, loss, batch)
            each = norms.per_sample()
            of = norms.denominators()  # which also names those whose gradient came past all that is watched
            denominators = {n: of[p] for n, p in model.named_parameters() if p in of}
            untracked = dict(norms.untracked)
    except Exception as error:
        return Verdict("crashed", f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:200]}")
    wrong = _differences(plain, measured)
    if batch:
        wrong += _wrong_norms(each, denominators, truth, untracked, plain.gradients)
    if wrong:
        return Verdict("wrong", "; ".join(wrong))
    named = {n: reason for n, reason in untracked.items() if n in truth}
    return Verdict("named", "; ".join(f"{n}: {r}" for n, r in named.items())) if named else Verdict("right")


def assert_right(model: nn.Module, *xs: Tensor, loss: Loss = functional) -> None:
    """That every norm of a model, which is made float64, is that of passes over single samples."""
    found = verdict(model.double(), tuple(x.double() if x.is_floating_point() else x for x in xs), loss)
    assert found.word == "right", f"{found.word}: {found.why}"


def _run(model: nn.Module, xs: tuple[Tensor, ...], loss: Loss, batch: int) -> Run:
    model.zero_grad()
    torch.manual_seed(1)
    losses = loss(model, *xs)
    (losses.sum() / max(batch, 1)).backward()
    found = {n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None}
    return Run(losses.detach(), {n: g.clone() for n, g in found.items()})


def _truth(
    model: nn.Module, xs: Tensor | tuple[Tensor, ...], loss: Loss, whole: Mapping[str, Tensor], together: bool
) -> dict[str, Tensor]:
    """`‖c_i‖` of every parameter with a gradient; `c_i = ∇f_i / B` must add up to the batch's gradient."""
    xs = xs if isinstance(xs, tuple) else (xs,)
    batch = xs[0].shape[0]
    norms = {n: torch.zeros(batch, dtype=g.dtype) for n, g in whole.items()}
    rest = {n: g.clone() for n, g in whole.items()}
    model = copy.deepcopy(model)
    taken = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for i in range(batch):
        if together:
            each = torch.autograd.grad(loss(model, *xs)[i] / batch, list(taken.values()), allow_unused=True)
            found = {n: g for n, g in zip(taken, each, strict=True) if g is not None}
        else:
            found = _run(copy.deepcopy(model), tuple(x[i : i + 1] for x in xs), loss, batch).gradients
        for n, g in found.items():
            norms[n][i] = g.norm()
            rest[n] -= g
    floor = _floor(whole)
    off = [n for n, g in rest.items() if batch and not g.norm() <= TOLERANCE * max(float(whole[n].norm()), floor)]
    assert not off, f"samples mix, so passes over single samples are no oracle: {off}"
    return norms


def _floor(gradients: Mapping[str, Tensor]) -> float:
    return TINY * max((float(g.norm()) for g in gradients.values()), default=0.0) + 1e-300


def _differences(plain: Run, measured: Run) -> list[str]:
    """Where measuring has changed what is trained."""
    wrong, floor = [], _floor(plain.gradients)
    if not torch.allclose(plain.losses, measured.losses, rtol=TOLERANCE, atol=1e-12):
        wrong.append("the outputs changed")
    for n, g in plain.gradients.items():
        got = measured.gradients.get(n, torch.zeros_like(g))
        if not (got - g).norm() <= TOLERANCE * max(float(g.norm()), floor):
            wrong.append(f"{n}: the gradient changed")
    return wrong


def _wrong_norms(
    each: Mapping[str, Tensor],
    denominators: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    untracked: Mapping[str, str],
    gradients: Mapping[str, Tensor],
) -> list[str]:
    wrong, floor = [], _floor(gradients)
    for n, norms in truth.items():
        if n in untracked:
            continue
        limit = TOLERANCE * max(float(norms.max()), floor)
        if n not in each or n not in denominators:
            if norms.max() > limit:
                wrong.append(f"{n}: neither measured nor named")
        elif each[n].shape != norms.shape:
            wrong.append(f"{n}: {each[n].numel()} norms of {norms.numel()} samples")
        elif not (each[n] - norms).abs().max() <= limit:
            wrong.append(f"{n}: {each[n].tolist()[:4]} instead of {norms.tolist()[:4]}")
        elif not (denominators[n] - norms.sum()).abs() <= limit * len(norms):
            wrong.append(f"{n}: a denominator of {denominators[n].item()} instead of {norms.sum().item()}")
    return wrong
