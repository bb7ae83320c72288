"""Functions in which a parameter meets samples, in every place that a parameter can have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Use = Callable[..., Tensor]
Entry = tuple[Use, tuple[int, ...], tuple[tuple[int, ...], ...]]  # of samples and parameters; their shapes

V, M, IMAGE = (6,), (4, 6), (3, 4, 4)  # a sample: a vector, a sequence of vectors, an image
W, S, R = (5, 6), (4, 4), (1, 6)  # a parameter: a linear layer's weight, a square, a row
eye = torch.eye(4, dtype=torch.float64)
sdpa = F.scaled_dot_product_attention


def per(x: Tensor, w: Tensor) -> Tensor:
    """`[batch, *w.shape]`: the same for every sample."""
    return w.expand(x.shape[0], *w.shape)


def definite(a: Tensor) -> Tensor:
    """Symmetric, with eigenvalues of at least 1."""
    return a @ a.mT + torch.eye(a.shape[-2], dtype=a.dtype)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return 2 * w

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.mT

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return gradient @ w, (gradient.flatten(0, -2).mT @ x.flatten(0, -2))


def set_row(x: Tensor, w: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = w[0]
    return y * x


def filled(x: Tensor, w: Tensor) -> Tensor:
    y = x.new_zeros(x.shape)
    y[:] = w
    return y * x


def elementwise(function: Use, **options) -> dict[str, Entry]:
    """With the parameter first and last, a row of it and one for every position."""
    name = function.__name__
    return {
        f"{name}(x, row)": (lambda x, w: function(x, w[0], **options), V, (R,)),
        f"{name}(row, x)": (lambda x, w: function(w, x, **options), V, (R,)),
        f"{name}(x, w)": (lambda x, w: function(x, w, **options), M, (M,)),
        f"{name}(w, x)": (lambda x, w: function(w, x, **options), M, (M,)),
    }


def positive(function: Use) -> Use:
    def of_positive(a: Tensor, b: Tensor) -> Tensor:
        return function(a.abs() + 0.5, b.abs() + 0.5)

    of_positive.__name__ = function.__name__
    return of_positive


def einsum(equation: str, sample: tuple[int, ...], *shapes: tuple[int, ...], samples: int = 0, out: int = 0):
    """`samples`: which operand x is; `out`: which dimension of the result holds samples."""

    def use(x: Tensor, *ws: Tensor) -> Tensor:
        operands = list(ws)
        operands.insert(samples, x)
        return torch.einsum(equation, *operands).movedim(out, 0)

    return {f"einsum {equation}": (use, sample, shapes)}


def summed_up(x: Tensor, h0: Tensor, w: Tensor) -> Tensor:
    """A state of the parameter's that samples are added to in place."""
    h = torch.zeros(len(x), 6, dtype=x.dtype) + h0
    for t in range(4):
        h += x[:, t] * w
    return h


def decaying(x: Tensor, w: Tensor) -> Tensor:
    """A tensor that is used, and then changed in place."""
    h, ys = w.clone(), []
    for _ in range(3):
        ys.append(x + h)
        h.mul_(0.5)
    return torch.stack(ys, 1)


def turned(x: Tensor, w: Tensor) -> Tensor:
    u = w * 1.0
    y = F.linear(x, u)
    u.t_()
    return y


def beside(x: Tensor, w: Tensor) -> Tensor:
    """Rows of a parameter under those of the samples."""
    h = torch.cat([x, w]).tanh()
    return h[: len(x)] @ h[len(x) :].mT


def after_nothing(x: Tensor, w: Tensor) -> Tensor:
    nothing = x[:, :0]
    return torch.cat([nothing.unflatten(2, (2, 3)), x.unflatten(2, (2, 3))], 1).flatten(2) * w


CONSTANT = torch.tensor([0, 2, 2, 1])
ZEROS, ONES = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
MEAN_AND_VARIANCE = {"running_mean": ZEROS, "running_var": ONES}
REST = {"bias": None, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}

FORMS: dict[str, Entry] = {  # in which torch takes its functions, and few write them
    # whatever broadcasts is a bias
    **{f"linear, bias {s}": (lambda x, b, w: F.linear(x, w, b), V, (s, W)) for s in ((), (1,), (1, 1), (1, 5))},
    **{f"linear, bias {s}": (lambda x, b, w: F.linear(x, w, b), M, (s, W)) for s in ((4, 5), (1, 4, 5))},
    **{f"addmm, bias {s}": (lambda x, b, w: torch.addmm(b, x, w.t()), V, (s, W)) for s in ((), (1,), (1, 1), (1, 5))},
    "linear, a vector": (lambda x, w: F.linear(x, w[0]), M, (W,)),
    "linear, a vector itself": (F.linear, V, ((6,),)),
    "linear without outputs": (lambda x, v, w: torch.cat([F.linear(x, w), x * v], 1), V, ((6,), (0, 6))),
    # a parameter twice in one call
    "einsum(x, w, w)": (lambda x, w: torch.einsum("bi,oi,pi->bop", x, w, w), V, (W,)),
    "clamp(x, w, w)": (lambda x, w: torch.clamp(x, w, w.clone()) + torch.clamp(x, w, w), V, ((6,),)),
    "addcmul(w, x, w), a number of rows": (lambda x, w: torch.addcmul(w, x[:, None], w), V, ((3, 6),)),
    "stack([x, w, w])": (lambda x, w: torch.stack([x, *[w.expand_as(x)] * 2], 1), V, (R,)),
    "rnn cell of one weight": (lambda x, w: torch.rnn_tanh_cell(x, x, w, w), V, ((6, 6),)),
    # in place
    "+= to a state": (summed_up, M, ((6,), (6,))),
    "zeros += w": (lambda x, w: x.new_zeros(x.shape).add_(w).add_(x), M, ((6,),)),
    "written into a part of zeros": (lambda x, w: (y := x.new_zeros(4, 6), y[1].copy_(w), x * y)[-1], M, ((6,),)),
    "set in a part of a part": (
        lambda x, w: (y := torch.ones(4, 6).double(), y[1:].__setitem__(0, w), x * y)[-1],
        M,
        ((6,),),
    ),
    "expanded, mul_": (lambda x, w: w.expand(len(x), 4, 6).clone().mul_(x), M, ((1, 1, 6),)),
    "repeated, mul_": (lambda x, w: w.repeat(len(x), 1, 1).mul_(x), M, (M,)),
    "repeated, relu_": (lambda x, w: F.relu(w.repeat(len(x), 1), inplace=True) * x, V, (R,)),
    "tiled, add_ to a part": (lambda x, w: x * w.tile(len(x), 1, 1).index_add_(1, CONSTANT[:1], x[:, :1]), M, (M,)),
    "used, then changed": (decaying, M, ((6,),)),
    "used, then transposed": (turned, V, ((6, 6),)),
    "relu_ of an embedding": (lambda x, w: x * F.relu(F.embedding(CONSTANT, w), inplace=True), M, (W,)),
    "mul_ of a part of an embedding": (
        lambda x, w: (e := F.embedding(CONSTANT, w), e[:2].mul_(3.0), x * e)[-1],
        M,
        (W,),
    ),
    "t_ of an embedding": (lambda x, w: x.mT * F.embedding(CONSTANT, w).t_(), M, (W,)),
    # rows beside those of samples, and none at all
    "cat beside samples": (beside, V, ((3, 6),)),
    "cat beside samples, negative": (lambda x, w: torch.cat([w, x], -2)[-len(x) :] * 2, V, ((3, 6),)),
    "cat after nothing": (after_nothing, M, ((6,),)),
    "linear of nothing": (lambda x, w: torch.cat([F.linear(x[:, :0], w).flatten(1), F.linear(x[:, 0], w)], 1), M, (W,)),
    "repeat_interleave, never": (lambda x, w: torch.cat([x.repeat_interleave(0, 0), x]) * w, V, (R,)),
    # arguments by name, of NumPy, and as they were written once
    "batch_norm by name": (
        lambda x, w: torch.batch_norm(x, weight=w, training=False, **MEAN_AND_VARIANCE, **REST),
        V,
        ((6,),),
    ),
    "instance_norm by name": (
        lambda x, w: torch.instance_norm(x.mT, weight=w, use_input_stats=False, **MEAN_AND_VARIANCE, **REST),
        M,
        ((6,),),
    ),
    "embedding by name": (lambda x, w: torch.embedding(w, indices=(x > 0).long(), padding_idx=1), V, (W,)),
    "embedding of constants by name": (lambda x, w: x + torch.embedding(w, padding_idx=1, indices=CONSTANT), M, (W,)),
    "embedding of constants, by frequency": (
        lambda x, w: x + F.embedding(CONSTANT, w, scale_grad_by_freq=True),
        M,
        (W,),
    ),
    "relu_ by name": (lambda x, w: x * torch.relu_(input=w * 1.0), V, ((6,),)),
    "tile by name": (lambda x, w: x * torch.tile(input=w, dims=(len(x), 1)), V, ((6,),)),
    "broadcast_to by name": (lambda x, w: x * torch.broadcast_to(input=w, size=x.shape), V, ((6,),)),
    "addmm with a number first": (lambda x, b, w: torch.addmm(1, b, x, w), V, ((5,), (6, 5))),
    "conv1d, NumPy's stride": (lambda x, w: F.conv1d(x, w, stride=np.int64(2)), M, ((3, 4, 2),)),
    "attention, w keys and values of fewer dimensions": (
        lambda x, k, v: sdpa(x.unflatten(2, (2, 3)).transpose(1, 2), k, v).view(len(x), -1),
        M,
        ((2, 5, 3), (2, 5, 3)),
    ),
}
FUNCTIONS: dict[str, Entry] = {
    **FORMS,
    **elementwise(torch.add), **elementwise(torch.mul), **elementwise(torch.sub), **elementwise(positive(torch.div)),
    **elementwise(torch.hypot), **elementwise(torch.maximum), **elementwise(torch.logaddexp),
    **elementwise(positive(torch.atan2)), **elementwise(positive(torch.pow)), **elementwise(positive(torch.xlogy)),
    **elementwise(torch.copysign), **elementwise(F.cosine_similarity, dim=-1), **elementwise(F.pairwise_distance),
    **elementwise(F.mse_loss, reduction="none"), **elementwise(F.huber_loss, reduction="none"),
    # distances
    "cdist(x, w)": (torch.cdist, V, (W,)),
    "cdist(w, x)": (lambda x, w: torch.cdist(w, x).t(), V, (W,)),
    "cdist(x, w), 3-d": (torch.cdist, M, (W,)),
    "cdist(x, w), one matrix": (torch.cdist, M, ((1, 5, 6),)),
    "cdist(x, w), p=1": (lambda x, w: torch.cdist(x, w, p=1.0), M, (W,)),
    "pairwise_distance with all": (lambda x, w: F.pairwise_distance(x[:, None], w), V, (W,)),
    "cosine_similarity with all": (lambda x, w: F.cosine_similarity(x[:, None], w, -1), V, (W,)),
    "triplet_margin_loss": (lambda x, w: F.triplet_margin_loss(x, w[:1], w[1:2], reduction="none"), V, (W,)),
    # linear algebra
    "solve(w, x)": (lambda x, w: torch.linalg.solve(definite(w), x), M, (S,)),
    "solve(w, x) itself": (lambda x, w: torch.linalg.solve(w, x), M, (S,)),
    "solve(x, w)": (lambda x, w: torch.linalg.solve(definite(x), w), M, ((4, 3),)),
    "solve_triangular": (lambda x, w: torch.linalg.solve_triangular(w.tril() + 5 * eye, x, upper=False), M, (S,)),
    "inv(w) @ x": (lambda x, w: torch.linalg.inv(definite(w)) @ x, M, (S,)),
    "cholesky(w) @ x": (lambda x, w: torch.linalg.cholesky(definite(w)) @ x, M, (S,)),
    "matrix_exp(w) @ x": (lambda x, w: torch.linalg.matrix_exp(0.1 * w) @ x, M, (S,)),
    "det(w) x": (lambda x, w: torch.linalg.det(w) * x, M, (S,)),
    "multi_dot": (lambda x, w, v: torch.linalg.multi_dot([x, w.T, v]), V, (W, (5, 3))),
    "vector_norm(x - w)": (lambda x, w: torch.linalg.vector_norm(x[:, None] - w, dim=-1), V, (W,)),
    "w / norm(w)": (lambda x, w: F.linear(x, w / w.norm()), V, (W,)),
    "w / std(w)": (lambda x, w: F.linear(x, (w - w.mean()) / w.std()), V, (W,)),
    "_weight_norm": (lambda x, w, g: F.linear(x, torch._weight_norm(w, g, 0)), V, (W, (5, 1))),
    # cells
    "rnn_tanh_cell": (lambda x, w, v: torch.rnn_tanh_cell(x, x[:, :5], w, v), V, (W, (5, 5))),
    "rnn_relu_cell": (lambda x, w, v: torch.rnn_relu_cell(x, x[:, :5], w, v), V, (W, (5, 5))),
    "gru_cell": (lambda x, w, v: torch.gru_cell(x, x[:, :5], w, v), V, ((15, 6), (15, 5))),
    "gru_cell, state": (lambda x, h, w, v: torch.gru_cell(x, h.expand(len(x), 5), w, v), V, ((1, 5), (15, 6), (15, 5))),
    "lstm_cell": (
        lambda x, w, v: torch.cat(torch.lstm_cell(x, (x[:, :5], x[:, 1:]), w, v), 1), V, ((20, 6), (20, 5))
    ),
    # products
    "linear(x, w)": (F.linear, M, (W,)),
    "linear(x, w, b)": (lambda x, w, b: F.linear(x, w, b[0]), M, (W, (1, 5))),
    "linear(w, x)": (lambda x, w: F.linear(w, x).t(), V, (W,)),
    "bilinear": (lambda x, w: F.bilinear(x, x.tanh(), w), V, ((5, 6, 6),)),
    "bilinear, w as input": (lambda x, w, v: F.bilinear(x, w.expand(len(x), 6), v), V, (R, (5, 6, 6))),
    "x @ w.t()": (lambda x, w: x @ w.t(), V, (W,)),
    "x @ w.T": (lambda x, w: x @ w.T, M, (W,)),
    "x @ w.mT": (lambda x, w: x @ w.mT, M, (W,)),
    "w @ x.mT": (lambda x, w: w @ x.mT, M, (W,)),
    "w @ x.t()": (lambda x, w: (w @ x.t()).t(), V, (W,)),
    "inner": (torch.inner, M, (W,)),
    "mv": (lambda x, w: torch.mv(x, w[0]), V, (W,)),
    "mv(w, x)": (lambda x, w: torch.stack([torch.mv(w, r) for r in x]) if len(x) else x @ w.T, V, (W,)),
    "outer(x, w)": (lambda x, w: torch.outer(x[:, 0], w[0]), V, (W,)),
    "outer(w, x)": (lambda x, w: torch.outer(w[0], x[:, 0]).t(), V, (W,)),
    "kron(x, w)": (torch.kron, V, ((1, 3),)),
    "kron(w, x)": (lambda x, w: torch.kron(w, x).unflatten(0, (2, -1)).transpose(0, 1), V, ((2, 3),)),
    "tensordot(x, w)": (lambda x, w: torch.tensordot(x, w, ([2], [1])), M, (W,)),
    "tensordot(w, x)": (lambda x, w: torch.tensordot(w, x, ([1], [2])).movedim(1, 0), M, (W,)),
    "tensordot, two dimensions": (lambda x, w: torch.tensordot(x, w, 2), M, ((4, 6, 3),)),
    "bmm(x, expanded)": (lambda x, w: torch.bmm(x, per(x, w.mT)), M, (W,)),
    "bmm(expanded, x)": (lambda x, w: torch.bmm(per(x, w), x.mT), M, (W,)),
    "bmm(x, repeated)": (lambda x, w: torch.bmm(x, w.mT.repeat(len(x), 1, 1)), M, (W,)),
    "bmm, positions first": (lambda x, w: torch.bmm(x.transpose(0, 1), w).transpose(0, 1), M, ((4, 6, 3),)),
    "bmm(w, x), positions first": (lambda x, w: torch.bmm(w, x.permute(1, 2, 0)).permute(2, 0, 1), M, ((4, 3, 6),)),
    "baddbmm(w, x, x)": (lambda x, w: torch.baddbmm(w, x, x.mT), M, (S,)),
    "baddbmm(x, x, expanded)": (lambda x, w: torch.baddbmm(x, x, per(x, w)), M, ((6, 6),)),
    "baddbmm, positions first": (
        lambda x, b, w: torch.baddbmm(b[:, None], x.transpose(0, 1), w).transpose(0, 1), M, ((4, 3), (4, 6, 3))
    ),
    "addbmm, positions first": (lambda x, b, w: torch.addbmm(b, x.transpose(0, 1), w), M, ((1, 3), (4, 6, 3))),
    "addmm": (lambda x, b, w: torch.addmm(b[0], x, w.t()), V, ((1, 5), W)),
    "addmm, bias of samples": (lambda x, w: torch.addmm(x[:, :5], x, w.t()), V, (W,)),
    "addmm(x, x, w)": (lambda x, w: torch.addmm(x, x, w, alpha=0.5), V, ((6, 6),)),
    "addmv": (lambda x, b, w: torch.addmv(b[0], x, w[0]), V, ((1, 1), W)),
    "addmv of samples": (lambda x, w: torch.addmv(x[:, 0], x, w[0]), V, (W,)),
    "addr": (lambda x, w: torch.addr(x, x[:, 0], w[0]), V, (W,)),
    "addr(w, x, w)": (lambda x, b, w: torch.addr(b, x[:, 0], w[0]), V, (R, W)),
    **einsum("bi,oi->bo", V, W), **einsum("oi,bi->bo", V, W, samples=1), **einsum("bti,oi->bto", M, W),
    **einsum("bti,oi->tbo", M, W, out=1), **einsum("bti,tio->bto", M, (4, 6, 3)), **einsum("bti,ti->bt", M, M),
    **einsum("ti,bti->bt", M, M, samples=1), **einsum("...i,oi->...o", M, W), **einsum("...i,...i->...i", M, R),
    **einsum("bi,ij->bji", V, (6, 6)), **einsum("bti,tj->bij", M, S), **einsum("ii,bti->bt", M, (6, 6), samples=1),
    **einsum("bti,io,po->btp", M, (6, 3), (2, 3)), **einsum("bti,o->btoi", M, (3,)),
    "einsum bi,ij,bj->b": (lambda x, w: torch.einsum("bi,ij,bj->b", x, w, x), V, ((6, 6),)),
    "einsum bi,kij,bj->bk": (lambda x, w: torch.einsum("bi,kij,bj->bk", x, w, x), V, ((5, 6, 6),)),
    "einsum, numbers for dimensions": (lambda x, w: torch.einsum(x, [0, 1, 2], w, [3, 2], [0, 1, 3]), M, (W,)),
    # what is made of a parameter first
    "normalize(w)": (lambda x, w: F.linear(F.normalize(x), F.normalize(w)), V, (W,)),
    "softmax(w) x": (lambda x, w: w.softmax(0) * x, M, (M,)),
    "softmax(w) @ x": (lambda x, w: w.softmax(-1) @ x, M, (S,)),
    "cumsum(w) x": (lambda x, w: w.cumsum(0) * x, M, (M,)),
    "cumprod(w) x": (lambda x, w: w.cumprod(1) * x, M, (M,)),
    "chunk": (lambda x, w: torch.cat([F.linear(x, c) for c in w.chunk(2)], -1), M, ((6, 6),)),
    "split": (lambda x, w: sum(F.linear(x, c) for c in w.split([2, 3, 1])[1:2]), M, ((6, 6),)),
    "unbind": (lambda x, w: sum(x * r for r in w.unbind()), M, (W,)),
    "unbind, positions": (lambda x, w: torch.stack([x[:, t] * r for t, r in enumerate(w.unbind())], 1), M, (M,)),
    "select": (lambda x, w: x * w.select(0, 2), M, (W,)),
    "index": (lambda x, w: F.linear(x, w[[0, 2, 2]]), M, (W,)),
    "index by a tensor": (lambda x, w: x * w[torch.tensor([3, 1, 0, 1])], M, (W,)),
    "slice": (lambda x, w: F.linear(x, w[1:4, :]), M, (W,)),
    "index_select": (lambda x, w: F.linear(x, w.index_select(0, torch.tensor([1, 1, 4]))), M, (W,)),
    "gather": (lambda x, w: x * w.gather(0, torch.tensor([[0, 1, 2, 3, 4, 0]])), M, (W,)),
    "take": (lambda x, w: x * w.take(torch.arange(6)), M, (W,)),
    "narrow": (lambda x, w: F.linear(x, w.narrow(0, 1, 3)), M, (W,)),
    "flip": (lambda x, w: F.linear(x, w.flip(0)), M, (W,)),
    "roll": (lambda x, w: F.linear(x, w.roll(1, 0)), M, (W,)),
    "tril": (lambda x, w: w.tril() @ x, M, (S,)),
    "view": (lambda x, w: F.linear(x, w.view(10, 3).reshape(5, 6)), M, (W,)),
    "flatten": (lambda x, w: x.flatten(1) @ w.flatten(), M, (M,)),
    "repeat_interleave": (lambda x, w: x * w.repeat_interleave(2, 0), M, ((2, 6),)),
    "tile": (lambda x, w: x * w.tile(2, 1), M, ((2, 6),)),
    "diag_embed": (lambda x, w: x @ torch.diag_embed(w[0]), M, (W,)),
    "sort": (lambda x, w: F.linear(x, w.sort(0).values), M, (W,)),
    "topk": (lambda x, w: F.linear(x, w.topk(2, 0).values), M, (W,)),
    "amax": (lambda x, w: x * w.amax(0), M, (W,)),
    "clone, cast": (lambda x, w: F.linear(x, w.clone().contiguous().to(x)), M, (W,)),
    "glu": (lambda x, w: F.linear(x, F.glu(w, 0)), M, ((4, 6),)),
    "interpolate": (lambda x, w: x + F.interpolate(w, 4, mode="linear").mT, M, ((1, 6, 3),)),
    "pad": (lambda x, w: x * F.pad(w, (0, 1)), M, ((4, 5),)),
    "view_as_complex": (lambda x, w: torch.view_as_real(torch.view_as_complex(w) * x), V, ((6, 2),)),
    "fft(w) fft(x)": (lambda x, w: torch.fft.irfft(torch.fft.rfft(w) * torch.fft.rfft(x), 6), M, (M,)),
    "fft2(w) fft2(x)": (lambda x, w: torch.fft.irfft2(torch.fft.rfft2(w) * torch.fft.rfft2(x), (4, 6)), M, (M,)),
    "autograd.Function of w": (lambda x, w: F.linear(x, Doubled.apply(w)), M, (W,)),
    "autograd.Function of x and w": (Joined.apply, M, (W,)),
    # choices, mixtures, places
    "where(x, x, w)": (lambda x, w: torch.where(x > 0, x, w[0]), M, (W,)),
    "where(x, w, x)": (lambda x, w: torch.where(x > 0, w, x), M, (M,)),
    "where(w, w, x)": (lambda x, w: torch.where(w > 0, w, x), M, (M,)),
    "lerp(x, w)": (lambda x, w: torch.lerp(x, w, 0.3), M, (M,)),
    "lerp(w, x)": (lambda x, w: torch.lerp(w, x, 0.3), M, (M,)),
    "lerp by w": (lambda x, w: torch.lerp(x, x.flip(1), w.sigmoid()), M, (M,)),
    "addcmul": (lambda x, w: torch.addcmul(x, w, w.tanh()), M, (M,)),
    "addcmul(w, x, w)": (lambda x, w: torch.addcmul(w, x, w), M, (M,)),
    "addcdiv": (lambda x, w: torch.addcdiv(w, x, w.exp()), M, (M,)),
    "clamp by w": (lambda x, w: x.clamp(min=w), M, (M,)),
    "cross": (lambda x, w: torch.linalg.cross(x[:, :3], w[:, :3]), V, (R,)),
    "masked_fill": (lambda x, w: per(x, w).masked_fill(x > 0, 0.0), M, (M,)),
    "index_add": (lambda x, w: x.index_add(1, torch.tensor([0, 2]), per(x, w)), M, ((2, 6),)),
    "scatter": (lambda x, w: x.scatter(1, torch.zeros(len(x), 1, 6, dtype=torch.long), per(x, w)), M, (R,)),
    "setitem": (set_row, M, (R,)),
    "setitem of all": (filled, M, (M,)),
    "add_": (lambda x, w: x.clone().add_(w), M, (M,)),
    "mul_": (lambda x, w: (x + 1).mul_(w), M, (M,)),
    "cat": (lambda x, w: torch.cat([x, per(x, w)], 1), M, (W,)),
    "cat, w first": (lambda x, w: torch.cat([w.expand(len(x), -1, -1), x], 1), M, ((1, 2, 6),)),
    "stack": (lambda x, w: torch.stack([x, w.expand_as(x)], 1), V, (R,)),
    "hstack": (lambda x, w: torch.hstack([x, w.expand(len(x), 6)]), V, (R,)),
    "broadcast_tensors": (lambda x, w: torch.mul(*torch.broadcast_tensors(x, w)), M, (M,)),
    "logsumexp": (lambda x, w: torch.logsumexp(x[:, None] + w, -1), V, (W,)),
    "cumsum(x w)": (lambda x, w: (x * w).cumsum(1), M, (M,)),
    "prelu": (lambda x, w: F.prelu(x, w[0]), M, ((1, 4),)),
    "kl_div": (lambda x, w: F.kl_div(x, w.softmax(-1), reduction="none"), M, (M,)),
    "binary_cross_entropy": (
        lambda x, w: F.binary_cross_entropy_with_logits(w.expand_as(x), x.sigmoid(), reduction="none"), M, (M,)
    ),
    # layers as functions
    "embedding of constants": (lambda x, w: x + F.embedding(torch.arange(4), w), M, (W,)),
    "embedding of constants, for all": (lambda x, w: x + F.embedding(torch.arange(4).expand(len(x), 4), w), M, (W,)),
    "embedding of samples": (lambda x, w: F.embedding((x > 0).long(), w), M, (W,)),
    "one_hot @ w": (lambda x, w: F.one_hot((x > 0).long(), 5).double() @ w, M, (W,)),
    "index by samples": (lambda x, w: w[(x > 0).long()], V, (W,)),
    "embedding_bag": (lambda x, w: F.embedding_bag((x > 0).long(), w), V, (W,)),
    "conv1d": (lambda x, w: F.conv1d(x, w), M, ((3, 4, 2),)),
    "conv1d of w by samples": (lambda x, w: F.conv1d(w, x).movedim(1, 0), M, ((1, 4, 8),)),
    "conv_transpose1d": (lambda x, w: F.conv_transpose1d(x, w), M, ((4, 3, 2),)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (6,), w[0], b[0]), M, (R, R)),
    "rms_norm": (lambda x, w: F.rms_norm(x, (4, 6), w), M, (M,)),
    "group_norm": (lambda x, w: F.group_norm(x, 2, w[0]), M, ((1, 4),)),
    "grid_sample, w the grid": (
        lambda x, w: F.grid_sample(x, w.tanh().expand(len(x), 3, 3, 2), align_corners=False), IMAGE, ((1, 3, 3, 2),)
    ),
    "grid_sample, w the image": (
        lambda x, w: F.grid_sample(w.expand(len(x), 2, 5, 5), x[:, :2].movedim(1, 3).tanh(), align_corners=False),
        IMAGE, ((1, 2, 5, 5),),
    ),
    "affine_grid": (
        lambda x, w: F.grid_sample(
            x, F.affine_grid(per(x, w), [len(x), 3, 4, 4], align_corners=False), align_corners=False
        ),
        IMAGE, ((2, 3),),
    ),
    "attention, w the queries": (lambda x, w: sdpa(per(x, w), x, x), M, (W,)),
    "attention, w the keys": (lambda x, w: sdpa(x, per(x, w), x), M, (M,)),
    "attention, w the values": (lambda x, w: sdpa(x, x, per(x, w)), M, (M,)),
    "attention, w keys and values": (lambda x, w: sdpa(x[:, None], w, w), M, ((1, 2, 5, 6),)),
    "attention, w the mask": (lambda x, w: sdpa(x, x, x, attn_mask=w), M, (S,)),
    "attention, w the mask of heads": (lambda x, w: sdpa(*[x[:, None].expand(-1, 2, 4, 6)] * 3, attn_mask=w), M,
        ((2, 4, 4),)),
    "vmap": (lambda x, w: torch.vmap(lambda r: F.linear(r, w))(x), M, (W,)),
    "vmap over w": (lambda x, w: torch.vmap(lambda r: x * r, out_dims=1)(w), V, (W,)),
}  # fmt: skip
REFUSES_EMPTY = {  # by torch itself
    "instance_norm by name", "attention, w keys and values of fewer dimensions",
    "addmv", "fft(w) fft(x)", "fft2(w) fft2(x)", "conv1d of w by samples", "affine_grid", "attention, w the mask",
    "attention, w the mask of heads",
}  # fmt: skip
UNWATCHED = ("autograd.Function of w", "autograd.Function of x and w", "vmap", "vmap over w")


class Function(nn.Module):
    """A function alone, or `beside` a product that can be measured."""

    def __init__(self, name: str, beside: bool) -> None:
        super().__init__()
        self.use, _, shapes = FUNCTIONS[name]
        self.weights, self.beside = nn.ParameterList(torch.randn(shape) for shape in shapes), beside

    def function(self, x: Tensor) -> Tensor:
        return self.use(x, *self.weights)

    def products(self, x: Tensor) -> Tensor:
        return torch.cat([x.flatten(1)[:, :1] * w.flatten() for w in self.weights], 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(x)
        return torch.cat([y.reshape(len(x), -1), self.products(x)], 1) if self.beside else y
