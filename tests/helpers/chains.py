"""Random chains of shape functions that know, element by element, which sample each element belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

LARGEST = 3000  # elements of a tensor


class Step(NamedTuple):
    """A function of a tensor's leading dimensions, and how to write it."""

    text: str
    function: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        return self.text


Make = Callable[[tuple[int, ...], int, Random], Step | None]  # of a shape, the leading dimensions, what to draw from


def permute(shape: tuple[int, ...], n: int, random: Random) -> Step:
    order = [*random.sample(range(n), n), *range(n, len(shape))]
    return Step(f"permute({order})", lambda x: x.permute(order))


def transpose(shape: tuple[int, ...], n: int, random: Random) -> Step:
    i, j = random.randrange(n), random.randrange(n)
    name = random.choice(["transpose", "swapaxes", "swapdims", "movedim", "moveaxis"])
    if random.random() < 0.3:
        i -= len(shape)
    return Step(f"{name}({i}, {j})", lambda x: getattr(x, name)(i, j))


def einsum(shape: tuple[int, ...], n: int, random: Random) -> Step:
    letters = "abcdefghij"[: len(shape)]
    order = "".join(random.sample(letters[:n], n)) + letters[n:]
    return Step(f"einsum({letters}->{order})", lambda x: torch.einsum(f"{letters}->{order}", x))


def flatten(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i, j = sorted(random.sample(range(n), 2)) if n > 1 else (0, 0)
    return Step(f"flatten({i}, {j})", lambda x: x.flatten(i, j)) if n > 1 else None


def merge(shape: tuple[int, ...], n: int, random: Random) -> Step:
    i = random.randrange(n)
    merged = (*shape[:i], -1, *shape[n:])
    name = random.choice(["reshape", "contiguous().view"])
    return Step(f"{name}{merged}", lambda x: x.reshape(merged) if name == "reshape" else x.contiguous().view(merged))


def unsqueeze(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i = random.randrange(n + 1)
    return Step(f"unsqueeze({i})", lambda x: x.unsqueeze(i)) if n < 6 else None


def squeeze(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i = random.randrange(n)
    return Step(f"squeeze({i})", lambda x: x.squeeze(i)) if n > 1 and shape[i] == 1 else None


def contiguous(shape: tuple[int, ...], n: int, random: Random) -> Step:
    name = random.choice(["contiguous", "clone"])
    return Step(f"{name}()", lambda x: getattr(x, name)())


def split(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i = random.randrange(n)
    factor = random.choice([d for d in range(1, shape[i] + 1) if shape[i] % d == 0])
    sizes = (factor, shape[i] // factor)
    if random.random() < 0.5:
        return Step(f"unflatten({i}, {sizes})", lambda x: x.unflatten(i, sizes)) if n < 6 else None
    other = (*shape[:i], *sizes, *shape[i + 1 :])
    return Step(f"reshape{other}", lambda x: x.reshape(other)) if n < 6 else None


def reshape(shape: tuple[int, ...], n: int, random: Random) -> Step:
    """All leading elements in another shape, whatever that does to samples."""
    total = math.prod(shape[:n])
    first = random.choice([d for d in range(1, total + 1) if total % d == 0])
    other = (first, total // first, *shape[n:])
    return Step(f"reshape{other}", lambda x: x.reshape(other))


def repeat(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i, kind = random.randrange(n), random.choice(["expand", "repeat", "repeat_interleave"])
    if math.prod(shape) * 2 > LARGEST or n > 5:
        return None
    if kind == "expand":
        sizes = [2 if d == i else -1 for d in range(len(shape) + 1)]
        return Step(f"unsqueeze({i}).expand({sizes})", lambda x: x.unsqueeze(i).expand(sizes))
    if kind == "repeat":
        sizes = [2 if d == i else 1 for d in range(len(shape))]
        return Step(f"repeat({sizes})", lambda x: x.repeat(sizes))
    return Step(f"repeat_interleave(2, {i})", lambda x: x.repeat_interleave(2, i))


def unbind(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i, j = random.randrange(n), random.randrange(n)
    return Step(f"stack(unbind({i}), {j})", lambda x: torch.stack(x.unbind(i), j)) if shape[i] < 9 else None


def chunk(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i, j = random.randrange(n), random.randrange(n)
    name = random.choice(["chunk", "tensor_split"])
    step = Step(f"cat({name}(2, {i}), {j})", lambda x: torch.cat(getattr(x, name)(2, dim=i), j))
    return step if shape[i] % 2 == 0 else None


def views(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i, j, join = random.randrange(n), random.randrange(n), random.choice([torch.cat, torch.stack])
    step = Step(f"{join.__name__}([x, x.flip({i})], {j})", lambda x: join([x, x.flip(i)], j))
    return step if math.prod(shape) * 2 <= LARGEST and n < 6 else None


def cut(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i = random.randrange(n)
    first = random.randrange(shape[i])
    length = random.randint(1, shape[i] - first)
    kind = random.choice(["select", "slice", "narrow", "index"])
    if kind == "select" and n > 1:
        return Step(f"select({i}, {first})", lambda x: x.select(i, first))
    if kind == "index":
        rows = torch.tensor([random.randrange(shape[i]) for _ in range(length)])
        where = (*[slice(None)] * i, rows)
        return Step(f"index({i}, {rows.tolist()})", lambda x: x[where])
    if kind == "narrow":
        return Step(f"narrow({i}, {first}, {length})", lambda x: x.narrow(i, first, length))
    part = (*[slice(None)] * i, slice(first, None, random.choice([1, 2])))
    return Step(f"x[{part}]", lambda x: x[part])


def turn(shape: tuple[int, ...], n: int, random: Random) -> Step:
    i, by = random.randrange(n), random.randint(1, 3)
    return Step(f"flip({i})", lambda x: x.flip(i)) if by < 2 else Step(f"roll({by}, {i})", lambda x: x.roll(by, i))


def windows(shape: tuple[int, ...], n: int, random: Random) -> Step | None:
    i = random.randrange(n)
    if shape[i] < 2 or n > 5 or math.prod(shape) * 2 > LARGEST:
        return None
    step = random.randint(1, 2)
    return Step(f"unfold({i}, 2, {step}).movedim(-1, {i})", lambda x: x.unfold(i, 2, step).movedim(-1, i))


VIEWS: list[Make] = [permute, transpose, einsum, flatten, merge, unsqueeze, squeeze, contiguous]
ALL: list[Make] = [*VIEWS, split, reshape, repeat, unbind, chunk, views, cut, turn, windows]


def draw(x: Tensor, features: int, makes: Sequence[Make], random: Random) -> tuple[list[Step], Tensor]:
    """Up to as many steps as `makes` has, and what becomes of `x`; they leave its last `features` dimensions alone."""
    steps = []
    for make in makes:
        step = make(tuple(x.shape), x.ndim - features, random)
        if step is not None:
            steps.append(step)
            x = step.function(x)
    return steps, x


class Chain(nn.Module):
    """Layers with steps before, between and after them."""

    def __init__(self, layers: Sequence[nn.Module], steps: Sequence[Sequence[Step]]) -> None:
        super().__init__()
        self.layers, self.steps = nn.ModuleList(layers), steps

    def forward(self, x: Tensor) -> Tensor:
        for steps, layer in zip(self.steps, [*self.layers, nn.Identity()], strict=True):
            for step in steps:
                x = step.function(x)
            x = layer(x)
        return x


FEATURES = 3
FIRST = {
    "linear": lambda: nn.Linear(FEATURES, FEATURES),
    "layer norm": lambda: nn.LayerNorm(FEATURES),
    "RMS norm": lambda: nn.RMSNorm(FEATURES),
    "embedding": lambda: nn.Embedding(7, FEATURES),
}
SECOND = {"": None, "linear": lambda: nn.Linear(FEATURES, 4), "layer norm": lambda: nn.LayerNorm(FEATURES)}


def cases(makes: Sequence[Make]) -> dict[str, st.SearchStrategy]:
    """`[batch, positions, more]`, layers, what chains are made of, and a seed for the rest."""
    chain = st.lists(st.sampled_from(makes), max_size=4)
    return {
        "shape": st.tuples(st.integers(1, 4), st.sampled_from([2, 3, 4]), st.integers(1, 3)),
        "first": st.sampled_from(sorted(FIRST)),
        "second": st.sampled_from(sorted(SECOND)),
        "chains": st.tuples(chain, chain, chain),
        "seed": st.integers(0, 1 << 16),
    }
