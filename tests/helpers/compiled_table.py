"""Small models that use their parameters in a way which a compiler might see otherwise than eager torch does.

Single functions are in `function_table.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

Forward = Callable[[nn.Module, Tensor], Tensor]
Build = Callable[[], tuple[nn.Module, Tensor]]
TABLE: dict[str, Build] = {}


class Model(nn.Module):
    """Parameters and modules by name, and a forward pass given as a function of them and of x."""

    def __init__(self, forward: Forward, **parts: nn.Module | Tensor | tuple[int, ...]) -> None:
        super().__init__()
        self.way = forward
        for name, part in parts.items():
            if isinstance(part, tuple):
                setattr(self, name, nn.Parameter(torch.randn(part)))
            elif isinstance(part, nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def add(name: str, forward: Forward, sample: tuple[int, ...] | Tensor, **parts: nn.Module | Tensor | tuple[int, ...]):
    def build() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        x = torch.randn(4, *sample) if isinstance(sample, tuple) else sample
        return Model(forward, **parts), x

    TABLE[name] = build


def standardised(w: Tensor) -> Tensor:
    return (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()


def changed(w: Tensor, change: Callable[[Tensor], object]) -> Tensor:
    """A copy, changed in place."""
    u = w * 1.5
    change(u)
    return u


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(5, 1))

    def forward(self, w: Tensor) -> Tensor:
        return self.scale * w


def parametrized(scale: nn.Module) -> nn.Module:
    layer = nn.Linear(6, 5)
    parametrize.register_parametrization(layer, "weight", scale)
    return layer


V, M, IMAGE = (6,), (4, 6), (3, 8, 8)
IDS = torch.randint(0, 7, (4, 5), generator=torch.Generator().manual_seed(0))

# what torch writes in Python: of samples, of weights, and of both
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "rsub": lambda t: 1 - t,
    "rtruediv": lambda t: 1 / (t.abs() + 1),
    "rpow": lambda t: 2**t,
    "pow": lambda t: t**2,
    "rmod": lambda t: t + 3 % (t.detach().abs() + 1),
    "floordiv": lambda t: t + t.detach() // 2,
    "rfloordiv": lambda t: t + 3 // (t.detach().abs() + 1),
    "norm": lambda t: t / t.norm(dim=-1, keepdim=True),
    "split": lambda t: torch.cat(t.split(3, -1), -1),
    "unflatten": lambda t: t.unflatten(-1, (2, 3)).flatten(-2),
    "argsort": lambda t: t * (t.argsort(-1) // 2),
}
for operator, of in OPERATORS.items():
    add(f"{operator} of samples", lambda m, x, of=of: m.a(of(x)), V, a=nn.Linear(6, 5))
    add(f"{operator} of a weight", lambda m, x, of=of: F.linear(x, of(m.w)), V, w=(5, 6))
    add(f"{operator} of both", lambda m, x, of=of: of(x * m.w), V, w=(6,))

# what is made of weights
add("weight.T", lambda m, x: x @ m.w.T, V, w=(5, 6))
add("weight.H", lambda m, x: x @ m.w.H, M, w=(5, 6))
add("weight.transpose", lambda m, x: torch.matmul(x, m.w.transpose(0, 1)), M, w=(5, 6))
add("weight.data_ptr-free copy", lambda m, x: F.linear(x, m.w.clone()), V, w=(5, 6))
add("torch.chunk, one of them", lambda m, x: F.linear(x, torch.chunk(m.w, 3)[1]), V, w=(9, 6))
add("torch.split", lambda m, x: F.linear(x, torch.split(m.w, 2)[-1]), V, w=(10, 6))
add("tensor_split", lambda m, x: F.linear(x, m.w.tensor_split(3)[0]), V, w=(10, 6))
add("iteration", lambda m, x: sum(F.linear(x, c) for c in m.w), V, w=(3, 5, 6))
add("unbound biases", lambda m, x: F.linear(x, *[p[0] for p in (m.w.unsqueeze(0), m.b)]), V, w=(5, 6), b=(1, 5))
add("F.normalize", lambda m, x: F.linear(F.normalize(x), F.normalize(m.w)), V, w=(5, 6))
add("F.normalize, columns", lambda m, x: x @ F.normalize(m.w, dim=0), V, w=(6, 5))
add("w / w.norm", lambda m, x: F.linear(x, m.w / m.w.norm(dim=1, keepdim=True)), V, w=(5, 6))
add("standardised", lambda m, x: F.conv2d(x, standardised(m.w)), IMAGE, w=(4, 3, 3, 3))
add("cat", lambda m, x: F.linear(x, torch.cat([m.a, m.b])), V, a=(2, 6), b=(3, 6))
add("stack", lambda m, x: F.linear(x, torch.stack([m.a, m.b])), V, a=(6,), b=(6,))
add("low rank", lambda m, x: F.linear(x, m.w + 0.5 * (m.a @ m.b)), V, w=(5, 6), a=(5, 2), b=(2, 6))
add(
    "softmax of weights", lambda m, x: (m.w.softmax(0)[:, None, None] * m.v).sum(0).matmul(x.mT), M, w=(3,), v=(3, 5, 6)
)
add("masked", lambda m, x: F.linear(x, m.w.masked_fill(m.mask, 0.0)), V, w=(5, 6), mask=torch.eye(5, 6) > 0)
add("einsum of weights", lambda m, x: F.linear(x, torch.einsum("or,ri->oi", m.a, m.b)), V, a=(5, 2), b=(2, 6))
add("max of weights", lambda m, x: F.linear(x, m.w.max(0).values), V, w=(3, 5, 6))
add("kron", lambda m, x: F.linear(x, torch.kron(m.a, m.b)), V, a=(5, 2), b=(1, 3))
add("as a view", lambda m, x: F.linear(x, m.w.view(10, 3).view(5, 6)), V, w=(30,))
add("indexed by a constant", lambda m, x: x * m.w[m.i], V, w=(9, 6), i=torch.tensor([3]))
add("dropped out in eval mode", lambda m, x: F.linear(x, F.dropout(m.w, 0.5, False)), V, w=(5, 6))

# changed in place
add("mul_ of a copy", lambda m, x: F.linear(x, changed(m.w, lambda u: u.mul_(2.0))), V, w=(5, 6))
add("+= of a copy", lambda m, x: F.linear(x, changed(m.w, lambda u: u.__iadd__(m.b))), V, w=(5, 6), b=(1, 6))
add("tanh_ of a copy", lambda m, x: F.linear(x, changed(m.w, torch.tanh_)), V, w=(5, 6))
add("a row of a copy is zeroed", lambda m, x: F.linear(x, changed(m.w, lambda u: u.__setitem__(0, 0.0))), V, w=(5, 6))
add("a view of a copy is doubled", lambda m, x: F.linear(x, changed(m.w, lambda u: u[1].mul_(2.0))), V, w=(5, 6))
add(
    "a copy seen through a view, doubled",
    lambda m, x: F.linear(x, changed(m.w, lambda u: u.t().mul_(2.0))),
    V,
    w=(5, 6),
)
add("relu in place", lambda m, x: m.b(F.relu(m.a(x), inplace=True)), V, a=nn.Linear(6, 5), b=nn.Linear(5, 2))
add("+= of samples", lambda m, x: m.b(m.a(x).add_(m.w)), V, a=nn.Linear(6, 5), b=nn.Linear(5, 2), w=(5,))

# parametrizations
add("weight_norm", lambda m, x: m.layer(x), V, layer=parametrizations.weight_norm(nn.Linear(6, 5)))
add("orthogonal", lambda m, x: m.layer(x), V, layer=parametrizations.orthogonal(nn.Linear(6, 5)))
add("scaled", lambda m, x: m.layer(x), V, layer=parametrized(Scaled()))
add("pruned", lambda m, x: m.layer(x), V, layer=prune.l1_unstructured(nn.Linear(6, 5), "weight", 7))
add("old weight_norm", lambda m, x: F.linear(x, torch._weight_norm(m.v, m.g, 0)), V, v=(5, 6), g=(5, 1))


# tied and picked
def tied(m: Model, ids: Tensor) -> Tensor:
    return m.table(ids).relu() @ m.table.weight.T


add("tied embedding, transposed", tied, IDS, table=nn.Embedding(7, 6))
add("tied embedding, t()", lambda m, ids: m.table(ids).relu() @ m.table.weight.t(), IDS, table=nn.Embedding(7, 6))
add("tied, F.linear", lambda m, ids: F.linear(m.table(ids).relu(), m.table.weight), IDS, table=nn.Embedding(7, 6))
add("positions", lambda m, x: m.out(x + m.table(torch.arange(4))), M, table=nn.Embedding(9, 6), out=nn.Linear(6, 2))
add(
    "positions of a buffer",
    lambda m, x: m.out(x + m.table(m.ids[:, :4])),
    M,
    table=nn.Embedding(9, 6),
    out=nn.Linear(6, 2),
    ids=torch.arange(9)[None],
)
add("positions, sliced", lambda m, x: m.out(x + m.table[:, : x.shape[1]]), M, table=(1, 9, 6), out=nn.Linear(6, 2))
add(
    "positions, copied for all",
    lambda m, x: m.out(x + m.table(torch.arange(4).expand(len(x), 4))),
    M,
    table=nn.Embedding(9, 6),
    out=nn.Linear(6, 2),
)
add(
    "class token",
    lambda m, x: m.out(torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1)),
    M,
    token=(1, 1, 6),
    out=nn.Linear(6, 2),
)
add(
    "class token, repeated",
    lambda m, x: m.out(torch.cat([m.token.repeat(len(x), 1, 1), x], 1)),
    M,
    token=(1, 1, 6),
    out=nn.Linear(6, 2),
)


# attention and layouts
def attention(**options: object) -> nn.Module:
    return nn.MultiheadAttention(6, 2, **options)


def same(x: Tensor) -> Tensor:
    return x


def attend(first: bool, weights: bool, *of: Callable[[Tensor], Tensor]) -> Forward:
    """Attention, batch `first` or not, of three functions of samples."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x if first else x.transpose(0, 1)
        y = m.mha(*(f(y) for f in of), need_weights=weights)[0]
        return y if first else y.transpose(0, 1)

    return forward


ITSELF = (same, same, same)
INPUTS = {"to itself": ITSELF, "three inputs": (torch.tanh, torch.sin, same), "two inputs": (torch.tanh, same, same)}
for first in (False, True):
    for weights in (False, True):
        how = f"{'batch' if first else 'positions'} first, {'with' if weights else 'without'} weights"
        for inputs, of in INPUTS.items():
            name = f"attention {inputs}, {how}" if of is ITSELF else f"attention, {inputs}, {how}"
            add(name, attend(first, weights, *of), (3, 6), mha=attention(batch_first=first))
    other_sizes = attention(batch_first=first, kdim=6, vdim=6, bias=False)
    add(f"attention, other sizes, {first}", attend(first, True, *ITSELF), (3, 6), mha=other_sizes)
    block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=first)
    add(
        f"TransformerEncoderLayer, batch_first={first}",
        lambda m, x, first=first: m.block(x) if first else m.block(x.transpose(0, 1)).transpose(0, 1),
        (3, 6),
        block=block,
    )
add(
    "attention, keys and values added",
    attend(True, True, *ITSELF),
    (3, 6),
    mha=attention(batch_first=True, add_bias_kv=True),
)
add(
    "decoder layer",
    lambda m, x: m.block(x, x.tanh()),
    (3, 6),
    block=nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True),
)
add("positions first, transpose", lambda m, x: m.l(x.transpose(0, 1)).transpose(0, 1), M, l=nn.Linear(6, 5))
add("positions first, permute", lambda m, x: m.l(x.permute(1, 0, 2)).movedim(1, 0), M, l=nn.Linear(6, 5))
add("channels last", lambda m, x: m.l(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), IMAGE, l=nn.Linear(3, 5))


def chunked_qkv(m: Model, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, dim=-1)
    return m.out(F.scaled_dot_product_attention(q, k, v))


def stacked_qkv(m: Model, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def split_qkv(m: Model, x: Tensor) -> Tensor:
    """The weight in three parts, as open_clip and MultiheadAttention have it."""
    q, k, v = (F.linear(x, w, b) for w, b in zip(m.w.chunk(3), m.b.chunk(3), strict=True))
    return m.out(F.scaled_dot_product_attention(q, k, v))


def windows(m: Model, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    y = m.out(y) + m.table[m.i].view(16, 16, 5).mean(0)
    return y.view(b, h // 4, w // 4, 4, 4, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h, w)


add("chunked qkv", chunked_qkv, M, qkv=nn.Linear(6, 18), out=nn.Linear(6, 6))
add("stacked qkv", stacked_qkv, M, qkv=nn.Linear(6, 18), out=nn.Linear(6, 6))
add("qkv of parts of a weight", split_qkv, M, w=(18, 6), b=(18,), out=nn.Linear(6, 6))
add("windows", windows, IMAGE, out=nn.Linear(3, 5), table=(9, 5), i=torch.arange(256) % 9)
add(
    "relative positions",
    lambda m, x: (x @ x.mT + m.table[m.i]).softmax(-1) @ m.l(x),
    M,
    table=(7,),
    l=nn.Linear(6, 5),
    i=torch.arange(4)[:, None] - torch.arange(4) + 3,
)

# convolutions, norms, products
add("F.pad in front", lambda m, x: m.conv(F.pad(x, (0, 1, 0, 1))), IMAGE, conv=nn.Conv2d(3, 4, 3, 2))
add("F.pad, reflected", lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), "reflect")), IMAGE, conv=nn.Conv2d(3, 4, 3))
add("padding='same'", lambda m, x: m.conv(x), IMAGE, conv=nn.Conv2d(3, 4, 2, padding="same"))
add(
    "padding_mode='circular'",
    lambda m, x: m.conv(x),
    IMAGE,
    conv=nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
)
add("transposed convolution", lambda m, x: m.conv(x), IMAGE, conv=nn.ConvTranspose2d(3, 4, 2, 2))
add("depthwise", lambda m, x: m.conv(x), IMAGE, conv=nn.Conv2d(3, 6, 3, groups=3))
add("conv1d of a sequence", lambda m, x: m.conv(x.transpose(1, 2)).transpose(1, 2), M, conv=nn.Conv1d(6, 5, 2))
add("group norm", lambda m, x: m.norm(m.conv(x)), IMAGE, conv=nn.Conv2d(3, 4, 3), norm=nn.GroupNorm(2, 4))
add("batch norm", lambda m, x: m.norm(m.conv(x)), IMAGE, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
add(
    "instance norm",
    lambda m, x: m.norm(m.conv(x)),
    IMAGE,
    conv=nn.Conv2d(3, 4, 3),
    norm=nn.InstanceNorm2d(4, affine=True),
)
add(
    "layer norm, by hand",
    lambda m, x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt() * m.w + m.b,
    M,
    w=(6,),
    b=(6,),
)
add("rms norm", lambda m, x: m.norm(x), M, norm=nn.RMSNorm(6))
add("layer scale", lambda m, x: x + m.scale * m.l(x), M, scale=(6,), l=nn.Linear(6, 6))
add("cdist", lambda m, x: torch.cdist(x, m.w), V, w=(5, 6))
add("solve", lambda m, x: torch.linalg.solve(m.w.T @ m.w + m.i, x.mT).mT, M, w=(6, 6), i=torch.eye(6))
add("gru cell", lambda m, x: m.cell(x), V, cell=nn.GRUCell(6, 5))
add("checked samples", lambda m, x: m.l(torch.where(x > 0, x, m.w)), V, l=nn.Linear(6, 5), w=(6,))
add(
    "views of the batch, one after the other",
    lambda m, x: sum(m.l(torch.cat([x, x.flip(-1)])).chunk(2)),
    V,
    l=nn.Linear(6, 5),
)
add("used twice", lambda m, x: m.l(m.l(x).relu()), V, l=nn.Linear(6, 6))
add("used as it is, and computed from", lambda m, x: m.l(x) + F.linear(x, m.l.weight.exp()), V, l=nn.Linear(6, 6))
