"""Where samples may stand when a layer sees them: every way from `[batch, positions, …]` to other layouts and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Function = Callable[..., Tensor]


class Layout(NamedTuple):
    """What a layer sees instead of `[batch, positions, …]`.

    Args:
        into: of `x [B, T, …]`, T even.
        back: of the layer's output and B, to `[B, T, …]`.
        order: "BT" if each sequence is a row of what the layer sees, "TB" if it is a column, "" if it is taken apart.
        right: whether the layers that every model is made of must be measured, not just named.
    """

    into: Function
    back: Function
    order: str
    right: bool = True


def rest(x: Tensor) -> range:
    return range(2, x.ndim)


def split(x: Tensor) -> Tensor:
    """`[B, 2, T/2, …]`"""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:])


def transposed(y: Tensor, batch: int) -> Tensor:
    return y.transpose(0, 1)


def as_it_is(y: Tensor, batch: int) -> Tensor:
    return y


# Functions that do the same by other names are drawn by `chains.py`.
LAYOUTS = {
    "plain": Layout(lambda x: x, as_it_is, "BT"),
    "transpose": Layout(lambda x: x.transpose(0, 1), transposed, "TB"),
    "permute": Layout(
        lambda x: x.permute(1, 0, *rest(x)).contiguous(), lambda y, b: torch.permute(y, (1, 0, *rest(y))), "TB"
    ),
    "movedim": Layout(lambda x: x.movedim(0, 1), lambda y, b: y.movedim((0, 1), (1, 0)), "TB"),
    "flatten": Layout(lambda x: x.flatten(0, 1), lambda y, b: y.unflatten(0, (b, -1)), ""),
    "transpose, reshape": Layout(
        lambda x: x.transpose(0, 1).reshape(-1, *x.shape[2:]),
        lambda y, b: y.view(-1, b, *y.shape[1:]).transpose(0, 1).contiguous(),
        "",
    ),
    "samples in the middle": Layout(
        lambda x: split(x).permute(1, 0, 2, *[d + 1 for d in rest(x)]),
        lambda y, b: y.transpose(0, 1).flatten(1, 2),
        "",
    ),
    "samples after positions": Layout(
        lambda x: split(x).movedim(0, 2), lambda y, b: y.movedim(2, 0).flatten(1, 2), ""
    ),
    "windows first": Layout(
        lambda x: split(x).transpose(0, 1).flatten(0, 1),
        lambda y, b: y.view(2, b, *y.shape[1:]).transpose(0, 1).reshape(b, -1, *y.shape[2:]),
        "BT",
    ),
    "windows last": Layout(
        lambda x: split(x).flatten(0, 1), lambda y, b: y.reshape(b, -1, *y.shape[2:]), "BT"
    ),
    "columns of images": Layout(
        lambda x: split(x).permute(2, 1, 0, *[d + 1 for d in rest(x)]).reshape(x.shape[1] // 2, -1, *x.shape[2:]),
        lambda y, b: y.view(-1, 2, b, *y.shape[2:]).permute(2, 1, 0, *[d + 1 for d in rest(y)]).flatten(1, 2),
        "TB",
    ),
    "two views": Layout(
        lambda x: torch.cat([x, x.flip(1)]), lambda y, b: torch.cat(y.chunk(2), 1), "BT", right=False
    ),
    "two views, positions first": Layout(
        lambda x: torch.cat([x, x.flip(1)]).transpose(0, 1),
        lambda y, b: torch.cat(y.transpose(0, 1).split(b), 1),
        "TB",
        right=False,
    ),
    "two views side by side": Layout(
        lambda x: torch.stack([x, x.flip(1)], 1).flatten(0, 1), lambda y, b: y.unflatten(0, (b, 2)).flatten(1, 2), "BT",
        right=False,
    ),
    "chunks": Layout(
        lambda x: torch.cat(x.transpose(0, 1).chunk(2), 1),
        lambda y, b: torch.cat(y.chunk(2, 1), 0).transpose(0, 1),
        "TB",
        right=False,
    ),
    "unbind and stack": Layout(
        lambda x: torch.stack(x.unbind(1)), lambda y, b: torch.stack(y.unbind(0), 1), "TB", right=False
    ),
    "positions by index": Layout(
        lambda x: torch.stack([x[:, t] for t in range(x.shape[1])]),
        lambda y, b: torch.stack([y[t] for t in range(y.shape[0])], 1),
        "TB",
        right=False,
    ),
    "samples by index": Layout(
        lambda x: torch.stack([x[i] for i in range(x.shape[0])], 1),
        lambda y, b: torch.stack([y[:, i] for i in range(b)]),
        "TB",
        right=False,
    ),
    "samples turned round": Layout(lambda x: x.flip(0), lambda y, b: y.flip(0), "BT", right=False),
    "samples rolled": Layout(
        lambda x: x.transpose(0, 1).roll(1, 1), lambda y, b: y.roll(-1, 1).transpose(0, 1), "TB", right=False
    ),
    "samples sorted": Layout(
        lambda x: x[torch.arange(x.shape[0] - 1, -1, -1)],
        lambda y, b: y.index_select(0, torch.arange(b - 1, -1, -1)),
        "BT",
        right=False,
    ),
}  # fmt: skip


class Behind(nn.Module):
    """A layer that sees its inputs, `[B, T, …]` each, in another layout; what it returns comes back as `[B, T, …]`.

    Args:
        rows: whether the layer wants one leading dimension, all that the layout has taken together.
    """

    def __init__(self, layer: nn.Module, layout: Layout, rows: bool) -> None:
        super().__init__()
        self.layer, self.layout, self.rows = layer, layout, rows

    def forward(self, *xs: Tensor) -> Tensor:
        batch, own = xs[0].shape[0], xs[0].ndim - 2
        seen = [self.layout.into(x) for x in xs]
        shape = seen[0].shape[: seen[0].ndim - own]
        folded = self.rows and len(shape) > 1
        y = self.layer(*(s.flatten(0, len(shape) - 1) if folded else s for s in seen))
        y = y[0] if isinstance(y, tuple) else y
        return self.layout.back(y.unflatten(0, shape) if folded else y, batch)


class Loop(nn.Module):
    """A layer that sees one position after the other."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.stack([self.layer(*(x[:, t] for x in xs)) for t in range(xs[0].shape[1])], 1)
