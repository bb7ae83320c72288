"""The layers that public suites of per-sample gradients cover, as a table: how each is made and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Shape = tuple[int, ...]


class Row(NamedTuple):
    """
    Args:
        make: the layer.
        shapes: of each input behind `[batch, positions]`; `IDS` where it is one of indices.
        wants: leading dimensions: "any", "one" (layouts are taken together), sequences as columns "TB" or rows "BT".
        extra: positions that each input has beyond the first's.
        right: whether it must be measured, not just named, in the usual layouts.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    wants: str = "any"
    extra: tuple[int, ...] = (0, 0, 0)
    right: bool = False

    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Random tensors of `[batch, length, …]`."""
        return tuple(
            torch.randint(0, 7, (batch, length + more, *shape[1:]))
            if shape[:1] == IDS
            else torch.randn(batch, length + more, *shape, dtype=torch.float64)
            for shape, more in zip(self.shapes, self.extra, strict=False)
        )


IDS = (-1,)


class Attend(nn.Module):
    """Attention with a mask made of what it is given, in the layer's own layout."""

    def __init__(self, kind: str = "", dims: int = 6, **options) -> None:
        super().__init__()
        self.attention, self.kind = nn.MultiheadAttention(dims, 2, **options), kind

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        k = q if k is None else k
        v = k if v is None else v
        columns = not self.attention.batch_first
        targets, sources = (t.shape[0] if columns else t.shape[1] for t in (q, k))
        options: dict = {}
        if "weights" in self.kind:
            options["need_weights"] = False
        if "padding" in self.kind:  # never the first position, which leaves something to attend to
            padding = (k[..., 0].t() if columns else k[..., 0]) > 0.3
            options["key_padding_mask"] = padding & (torch.arange(sources) > 0)
        if "causal" in self.kind:
            options["attn_mask"] = torch.ones(targets, sources).triu(1).bool()
        if "bias" in self.kind:
            options["attn_mask"] = torch.linspace(-1, 1, targets * sources, dtype=q.dtype).view(targets, sources)
        return self.attention(q, k, v, **options)[0]


class Tied(nn.Module):
    """A token's embedding, which is the output layer's weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).tanh())


class Cell(nn.Module):
    """A recurrent cell, two steps of it."""

    def __init__(self, make: Callable[..., nn.Module], **options) -> None:
        super().__init__()
        self.cell = make(6, 5, **options)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x)
        state = self.cell(x.flip(-1), state)
        return state[0] if isinstance(state, tuple) else state


def transformer(make: Callable[..., nn.Module], **options) -> Callable[[], nn.Module]:
    return lambda: make(6, 2, dim_feedforward=10, dropout=0.0, **options)


def whole(**options) -> nn.Module:
    return nn.Transformer(6, 2, 1, 1, dim_feedforward=10, dropout=0.0, **options)


def stack(**options) -> nn.Module:
    return nn.TransformerEncoder(transformer(nn.TransformerEncoderLayer, **options)(), 2, enable_nested_tensor=False)


class Causal(nn.Module):
    """A causal encoder layer."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.layer = transformer(nn.TransformerEncoderLayer, **options)()
        self.batch_first = options.get("batch_first", False)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[self.batch_first], dtype=x.dtype)
        return self.layer(x, src_mask=mask, is_causal=True)


V, M, TB, BT, ONE = (6,), (2, 6), "TB", "BT", "one"
TOKENS = {
    "linear": Row(lambda: nn.Linear(6, 5), (V,), right=True),
    "linear, wide": Row(lambda: nn.Linear(6, 40, bias=False), (V,), right=True),
    "linear, narrow": Row(lambda: nn.Linear(6, 1), (V,), right=True),
    "linear, one more dimension": Row(lambda: nn.Linear(6, 5), ((3, 6),), right=True),
    "linear, two more dimensions": Row(lambda: nn.Linear(6, 5), ((3, 2, 6),), right=True),
    "linear, twice": Row(lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), (V,), right=True),
    "embedding": Row(lambda: nn.Embedding(7, 5), (IDS,), right=True),
    "embedding, more dimensions": Row(lambda: nn.Embedding(7, 5), ((-1, 3),), right=True),
    "embedding, padding_idx": Row(lambda: nn.Embedding(7, 5, padding_idx=2), (IDS,), right=True),
    "embedding, sparse": Row(lambda: nn.Embedding(7, 5, sparse=True), (IDS,)),
    "embedding, tied": Row(Tied, (IDS,)),
    "layer norm": Row(lambda: nn.LayerNorm(6), (V,), right=True),
    "layer norm, two dimensions": Row(lambda: nn.LayerNorm((2, 6)), (M,), right=True),
    "layer norm, no bias": Row(lambda: nn.LayerNorm(6, bias=False), (V,), right=True),
    "RMS norm": Row(lambda: nn.RMSNorm(6), (V,), right=True),
    "RMS norm, two dimensions": Row(lambda: nn.RMSNorm((2, 6)), (M,), right=True),
    "bilinear": Row(lambda: nn.Bilinear(6, 4, 5), (V, (4,))),
    "PReLU": Row(nn.PReLU, (V,)),
    "weight norm": Row(lambda: parametrizations.weight_norm(nn.Linear(6, 5)), (V,)),
    "spectral norm": Row(lambda: parametrizations.spectral_norm(nn.Linear(6, 5)), (V,)),
    "orthogonal": Row(lambda: parametrizations.orthogonal(nn.Linear(6, 5)), (V,)),
}
C1, C2, C3 = (4, 8), (4, 6, 5), (2, 4, 5, 3)
CONVOLUTIONS = {  # of one kind and another; `test_norms_rules.py` has their options
    "Conv1d {'kernel_size': 3}": Row(lambda: nn.Conv1d(4, 4, 3), (C1,), ONE),
    "Conv1d, same": Row(lambda: nn.Conv1d(4, 4, 3, padding="same", dilation=2), (C1,), ONE),
    "Conv1d, circular": Row(lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), (C1,), ONE),
    "Conv2d {'kernel_size': 3}": Row(lambda: nn.Conv2d(4, 4, 3), (C2,), ONE),
    "Conv2d, pixels": Row(lambda: nn.Conv2d(4, 4, 1), (C2,), ONE),
    "Conv2d, groups": Row(lambda: nn.Conv2d(4, 4, 3, padding=(1, 2), stride=(2, 1), groups=2), (C2,), ONE),
    "Conv2d, depthwise": Row(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (C2,), ONE),
    "Conv3d": Row(lambda: nn.Conv3d(2, 4, 2, dilation=(1, 2, 1), groups=2), (C3,), ONE),
    "ConvTranspose1d": Row(lambda: nn.ConvTranspose1d(4, 4, 3, stride=2, output_padding=1), (C1,), ONE),
    "ConvTranspose2d": Row(lambda: nn.ConvTranspose2d(4, 4, (2, 3), padding=1, groups=2), (C2,), ONE),
    "ConvTranspose3d": Row(lambda: nn.ConvTranspose3d(2, 4, 2), (C3,), ONE),
}
ROWS = {
    "linear, one leading dimension": Row(lambda: nn.Linear(6, 5), (V,), ONE, right=True),
    "group norm": Row(lambda: nn.GroupNorm(2, 4), (C1,), ONE),
    "group norm, images": Row(lambda: nn.GroupNorm(4, 4), (C2,), ONE),
    "instance norm 2d": Row(lambda: nn.InstanceNorm2d(4, affine=True), (C2,), ONE),
    "instance norm, statistics": Row(lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), (C1,), ONE),
    "batch norm 2d, eval": Row(lambda: nn.BatchNorm2d(4).eval(), (C2,), ONE),
    "batch norm, train": Row(lambda: nn.BatchNorm1d(6), (V,), ONE),
    "batch norm 2d, train": Row(lambda: nn.BatchNorm2d(4), (C2,), ONE),
    "PReLU, channels": Row(lambda: nn.PReLU(4), (C1,), ONE),
    "embedding bag, mean": Row(lambda: nn.EmbeddingBag(7, 5), ((-1, 3),), ONE),
    "embedding bag, sum": Row(lambda: nn.EmbeddingBag(7, 5, mode="sum", padding_idx=1), ((-1, 3),), ONE),
    "embedding bag, max": Row(lambda: nn.EmbeddingBag(7, 5, mode="max"), ((-1, 3),), ONE),
    "RNN cell": Row(lambda: Cell(nn.RNNCell), (V,), ONE),
    "RNN cell, relu": Row(lambda: Cell(nn.RNNCell, nonlinearity="relu", bias=False), (V,), ONE),
    "GRU cell": Row(lambda: Cell(nn.GRUCell), (V,), ONE),
    "LSTM cell": Row(lambda: Cell(nn.LSTMCell), (V,), ONE),
    "weight norm, convolution": Row(lambda: parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), (C1,), ONE),
    "spectral norm, convolution": Row(lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), (C2,), ONE),
}
SEQUENCES = {
    f"{name}{', batch first' if order == BT else ''}": Row(
        lambda make=make, order=order: make(batch_first=order == BT), shapes, order, extra, right
    )
    for name, make, shapes, extra, right in (
        ("attention", lambda **o: Attend(**o), (V,), (0,), True),
        ("attention, no bias", lambda **o: Attend(bias=False, **o), (V,), (0,), True),
        ("attention, no weights", lambda **o: Attend("weights", **o), (V,), (0,), True),
        ("attention, q and k", lambda **o: Attend(**o), (V, V), (0, 2), True),
        ("attention, q, k, v", lambda **o: Attend("weights", **o), (V, V, V), (0, 2, 2), True),
        ("attention, padding", lambda **o: Attend("padding", **o), (V, V, V), (0, 2, 2), True),
        ("attention, causal", lambda **o: Attend("causal, weights", **o), (V,), (0,), True),
        ("attention, bias", lambda **o: Attend("bias, padding, weights", **o), (V, V, V), (0, 2, 2), True),
        ("attention, kdim, vdim", lambda **o: Attend(kdim=4, vdim=3, **o), (V, (4,), (3,)), (0, 2, 2), True),
        ("attention, bias_kv", lambda **o: Attend(add_bias_kv=True, **o), (V, V, V), (0, 2, 2), False),
        ("attention, zero_attn", lambda **o: Attend(add_zero_attn=True, **o), (V, V, V), (0, 2, 2), False),
        ("attention, bias_kv, zero_attn, padding",
            lambda **o: Attend("padding", add_bias_kv=True, add_zero_attn=True, **o), (V,), (0,), False),
        ("RNN", lambda **o: nn.RNN(6, 5, **o), (V,), (0,), False),
        ("LSTM", lambda **o: nn.LSTM(6, 5, bidirectional=True, **o), (V,), (0,), False),
        ("LSTM, projected", lambda **o: nn.LSTM(6, 5, 2, proj_size=3, **o), (V,), (0,), False),
        ("GRU", lambda **o: nn.GRU(6, 5, **o), (V,), (0,), False),
        ("encoder layer", lambda **o: transformer(nn.TransformerEncoderLayer, **o)(), (V,), (0,), True),
        ("encoder layer, norm first",
            lambda **o: transformer(nn.TransformerEncoderLayer, norm_first=True, activation="gelu", **o)(),
            (V,), (0,), True),
        ("encoder layer, causal", lambda **o: Causal(**o), (V,), (0,), True),
        ("encoder", stack, (V,), (0,), True),
        ("decoder layer", lambda **o: transformer(nn.TransformerDecoderLayer, **o)(), (V, V), (0, 2), False),
        ("decoder layer, norm first",
            lambda **o: transformer(nn.TransformerDecoderLayer, norm_first=True, **o)(), (V, V), (0, 2), False),
        ("transformer", whole, (V, V), (0, 2), False),
        ("transformer, norm first", lambda **o: whole(norm_first=True, bias=False, **o), (V, V), (0, 2), False),
    )
    for order in (TB, BT)
}  # fmt: skip
TABLE = {**TOKENS, **CONVOLUTIONS, **ROWS, **SEQUENCES}
