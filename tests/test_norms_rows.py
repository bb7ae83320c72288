"""Rows that are samples', and rows that only look so: heads, experts, positions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_clars.norms import PerSampleNorms

from .helpers.verdicts import assert_right

BATCH = 4


class Uses(nn.Module):
    def __init__(self, forward, *shape):
        super().__init__()
        self.weight, self.use = nn.Parameter(torch.randn(shape)), forward

    def forward(self, x):
        return self.use(x, self.weight)


def mixture(x, w):
    each = x.reshape(-1, 6).repeat(len(w), 1).view(len(w), -1, 6)
    return torch.bmm(each, w).sum(0).view(*x.shape[:2], 5)


def absorbed(x, w):
    w = w.view(-1, 5, 6)
    heads = x.view(-1, len(w), 6).transpose(0, 1)
    return torch.bmm(heads, w.mT).transpose(0, 1).reshape(*x.shape[:2], -1)


def views(double):
    """Several views of each sample."""

    def use(x, w):
        one, other = F.linear(double(x), w).chunk(2)
        return torch.cat([one, other.tanh()], 1)

    return use


def repeated_one_by_one(x, w):
    return (torch.cat([x, x]) * (w * 1).repeat_interleave(x.shape[0], 0)).view(2, -1, 7).transpose(0, 1)


def repeated_for_the_samples(x, w):
    rows = (w - w.mean()).repeat(len(x), 1, 1)
    products = torch.bmm(x.flatten(0, 1), rows.transpose(-1, -2))
    return torch.cat([products.mT, rows.to(x.dtype)], -1).view(len(x), -1)


def masked(x, w):
    windows = torch.zeros(len(x) * x.shape[1], 1, 1).to(x)
    return (x.flatten(0, 1) + (w + windows)).view(len(x), -1)


USES = {
    **{f"mixture of {n}": (mixture, (n, 6, 5), (3, 6)) for n in (3, BATCH, 2 * BATCH)},
    **{f"{n} heads": (absorbed, (n * 5, 6), (3, n * 6)) for n in (3, BATCH, 2 * BATCH)},
    "two views": (views(lambda x: torch.cat([x, x.flip(-1)])), (3, 7), (7,)),
    "a view twice": (views(lambda x: x.repeat(2, 1)), (3, 7), (7,)),
    "rows repeated one by one": (repeated_one_by_one, (2, 7), (7,)),
    **{f"{n} rows repeated for the samples": (repeated_for_the_samples, (n, 3, 6), (n, 5, 6)) for n in (1, 2, 3)},
    **{f"{n} masks": (masked, (1, 5, 6), (n, 5, 6)) for n in (1, 2, 3)},
    # operands that broadcast
    "matmul": (lambda x, w: torch.matmul(x.unsqueeze(1), w), (2, 5, 5), (5, 5)),
    "matmul by keyword": (lambda x, w: torch.matmul(input=x.unsqueeze(1), other=w), (2, 5, 5), (5, 5)),
    "matmul from the left": (lambda x, w: torch.matmul(w.mT, x.unsqueeze(1)), (2, 5, 5), (5, 5)),
    "matmul by a matrix": (lambda x, w: torch.matmul(x, w[0]), (2, 5, 5), (5, 5)),
    "matmul by a vector": (lambda x, w: torch.matmul(x, other=w[0, 0]), (2, 5, 5), (5, 5)),
    "mm": (lambda x, w: x.flatten(1).mm(mat2=w.flatten(1).mT.repeat(5, 1)[:25]), (2, 5, 5), (5, 5)),
    "cat": (lambda x, w: torch.cat(tensors=[x, w[:1].expand(len(x), -1, -1)], dim=1), (2, 5, 5), (5, 5)),
    "cat of features": (lambda x, w: torch.cat([x, (w[:1] * 2).expand(len(x), 5, 5)], -1), (2, 5, 5), (5, 5)),
    "mask": (lambda x, w: F.scaled_dot_product_attention(*[x[:, None]] * 3, attn_mask=w[0]), (2, 5, 5), (5, 5)),
}


@pytest.mark.parametrize("name", USES)
def test_rows_are_samples(name):
    use, of_weight, of_sample = USES[name]
    assert_right(Uses(use, *of_weight), torch.randn(BATCH, *of_sample))


def test_what_torch_refuses_is_refused():
    x = torch.randn(BATCH, 3, 6)
    for use, shape in (
        (lambda x, w: torch.cat([w, x], 1), (1, 1, 6)),
        (torch.bmm, (6, 2)),
        (torch.bmm, (1, 6, 2)),
    ):
        model = Uses(use, *shape)
        with PerSampleNorms(model), pytest.raises(RuntimeError):
            model(x)


def test_hooks_in_a_plain_module_are_watched():
    class Normed(nn.BatchNorm1d):
        def __init__(self):
            super().__init__(6, affine=False)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(super().forward(x))

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.weight = Normed(), nn.Parameter(torch.randn(2, 6))
            self.norm.act.register_forward_hook(lambda module, args, out: out @ self.weight.T)

        def forward(self, x):
            return self.norm(x)

    assert_right(Hooked().eval(), torch.randn(BATCH, 6))


def test_saved_tensor_hooks_of_others():
    model = Uses(F.linear, 3, 6).double()
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.clone, torch.Tensor.clone):
        assert_right(model, torch.randn(BATCH, 6))


@pytest.mark.filterwarnings("ignore:PerSampleNorms cannot measure")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_whole_model_checkpointed_twice_in_one_loss(reentrant):
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(2, BATCH, 6).double().requires_grad_().unbind()
    sums = []
    for checkpointed in (False, True):
        with PerSampleNorms(model) as norms:
            call = (lambda t: checkpoint(model, t, use_reentrant=reentrant)) if checkpointed else model
            (call(x).square().sum() + call(y).exp().sum()).backward()
        sums.append(norms.per_sample())
    if reentrant:  # whose passes are separate ones
        assert sums[1] == {}
        assert set(norms.untracked) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    else:
        torch.testing.assert_close(sums[1], sums[0])


def test_a_checkpointed_module_that_is_handed_a_weight():
    class Handed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(BATCH, 6))
            self.block = Block()

        def forward(self, x):
            return checkpoint(self.block, x, self.weight - self.weight.mean(), use_reentrant=False)

    class Block(nn.Module):
        def forward(self, x, w):
            return F.linear(x, w).tanh()

    assert_right(Handed(), torch.randn(BATCH, 6))


def test_an_empty_batch_is_skipped():
    model = nn.Linear(4, 2).double()
    x = torch.randn(3, 4).double()
    with PerSampleNorms(model) as norms:
        model(x[:0]).sum().backward()
        model.zero_grad()
        model(x).sum().backward()
        torch.testing.assert_close(norms.per_sample()["weight"], 2**0.5 * x.norm(dim=1))
        assert norms.untracked == {}


def test_sums_asked_for_in_inference_mode():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    with PerSampleNorms(model) as norms:
        for passes in (1, 2):
            model(x).sum().backward()
            with torch.inference_mode():
                torch.testing.assert_close(norms.sums()["weight"], passes * 2**0.5 * x.norm(dim=1).sum())
        norms.close_gradient()


def test_backward_under_autocast():
    model, x = nn.Linear(64, 64), torch.randn(3, 2, 64)
    exact = []
    for enabled in (False, True):
        with PerSampleNorms(model) as norms:
            loss = model(x).square().sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss.backward()
        exact.append(norms.per_sample()["weight"])
    torch.testing.assert_close(exact[1], exact[0])
