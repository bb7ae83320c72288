"""PerSampleNorms around the rules: whole networks, sharing, accumulation, modes, and leaving no trace."""

import copy
import gc
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from hf_clars.errors import UserError
from hf_clars.norms import PerSampleNorms

from .helpers.reference import contributions
from .helpers.verdicts import assert_right, verdict


def small(name: str) -> nn.Module:
    options = {
        "resnet18": {"channels": (4, 8, 8, 8)},
        "densenet121": {"growth_rate": 4, "block_config": (2, 2)},
        "mobilenetv2_035": {},
    }[name]
    return timm.create_model(name, num_classes=5, **options).double()


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv2_035"])
def test_batchnorm_networks_in_train_mode(name):
    """The paper's architectures, samples coupled by BatchNorm: norms are those of the expanded weight."""
    model = small(name)
    x, y = torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 2, 3])
    plain = copy.deepcopy(model)
    F.cross_entropy(plain(x), y).backward()
    names = [n for n, p in model.named_parameters() if p.ndim >= 2]
    chosen = names[:3] + names[len(names) // 2 : len(names) // 2 + 3] + names[-3:]
    expected = {n: contributions(model, n, lambda: F.cross_entropy(model(x), y), 4) for n in chosen}

    with PerSampleNorms(model) as norms:
        F.cross_entropy(model(x), y).backward()
        assert norms.untracked == {}
        assert norms.sums().keys() == {n for n, _ in model.named_parameters()}
    for n, p in plain.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[n].grad, p.grad, rtol=1e-9, atol=1e-12)
    for n, truth in expected.items():
        torch.testing.assert_close(norms.per_sample()[n], truth.flatten(1).norm(dim=1), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(truth.sum(0), dict(plain.named_parameters())[n].grad, rtol=1e-9, atol=1e-12)


class Twice(nn.Module):
    """One linear layer used twice, an embedding tied to the output layer, a bias shared by two layers."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.other = nn.Linear(4, 4)
        self.other.bias = self.mix.bias
        self.head.weight = self.embed.weight

    def forward(self, ids):
        h = self.embed(ids)
        return self.head(self.other(self.mix(torch.tanh(self.mix(h)))))


def test_shared_parameters_have_the_norm_of_their_summed_contribution():
    model = Twice().double()
    ids, target = torch.randint(0, 5, (3, 6)), torch.randn(3, 6, 5).double()

    def loss():
        return (model(ids) * target).mean()

    each = {n: contributions(model, n, loss, 3) for n, _ in model.named_parameters()}
    expected = {n: c.flatten(1).norm(dim=1) for n, c in each.items()}
    with PerSampleNorms(model) as norms:
        for _ in range(2):  # also when the graphs of an earlier pass are still alive
            model.zero_grad()
            value = loss()
            value.backward()
            torch.testing.assert_close(norms.per_sample(), expected, rtol=1e-9, atol=0)
        abandoned = loss()  # a forward pass whose backward never comes
        loss().backward()
        del abandoned
        torch.testing.assert_close(norms.per_sample(), expected, rtol=1e-9, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * each[name].sum(0), rtol=1e-9, atol=1e-12)


def test_retained_graph_can_be_walked_twice():
    model = Twice().double()
    with PerSampleNorms(model) as norms:
        loss = model(torch.randint(0, 5, (3, 6))).square().mean()
        loss.backward(retain_graph=True)
        first = norms.per_sample()
        loss.backward()
    torch.testing.assert_close(norms.per_sample(), first)


@pytest.mark.parametrize("micro_batches", [1, 8, 64])
def test_accumulation_adds_up(micro_batches):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)).double()
    x, y = torch.randn(64, 2, 6, 6).double(), torch.randint(0, 4, (64,))
    with PerSampleNorms(model) as norms:
        F.cross_entropy(model(x), y).backward()
        whole, squares = norms.sums(), norms.square_sums()
        model.zero_grad()
        norms.reset()
        for part, target in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            (F.cross_entropy(model(part), target) / micro_batches).backward()
        torch.testing.assert_close(norms.sums(), whole, rtol=1e-9, atol=0)
        torch.testing.assert_close(norms.square_sums(), squares, rtol=1e-9, atol=0)


def test_subset_measures_evenly_spread_samples_and_scales_up():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 4)).double()
    x, y = torch.randn(32, 2, 6, 6).double(), torch.randint(0, 4, (32,))
    with PerSampleNorms(model) as norms:
        F.cross_entropy(model(x), y).backward()
        exact, gradient = norms.per_sample(), model[0].weight.grad.clone()
    model.zero_grad()
    with PerSampleNorms(model, "subset", 16, total_batch_size=64) as norms:
        F.cross_entropy(model(x), y).backward()
    for name, values in norms.per_sample().items():
        torch.testing.assert_close(values, exact[name][::4], rtol=1e-9, atol=0)  # 16 of 64: 8 of these 32
        torch.testing.assert_close(norms.sums()[name], 4 * exact[name][::4].sum(), rtol=1e-9, atol=0)
        torch.testing.assert_close(norms.square_sums()[name], 4 * exact[name][::4].square().sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(model[0].weight.grad, gradient, rtol=1e-9, atol=1e-12)
    with PerSampleNorms(model, "subset", 512) as norms:
        F.cross_entropy(model(x), y).backward()
    assert norms.per_sample()["2.weight"].shape == (32,)


def test_micro_batch_mode_is_the_norm_of_each_pass_and_covers_everything():
    model = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with PerSampleNorms(model, "micro_batch") as norms:
        truth = dict.fromkeys(dict(model.named_parameters()), 0.0)
        for x in torch.randn(3, 2, 5, 8).double():
            model.zero_grad()
            model(x, x, x)[0].square().mean().backward()
            truth = {n: truth[n] + p.grad.norm() for n, p in model.named_parameters()}
        torch.testing.assert_close(norms.sums(), truth)
        assert norms.untracked == {}


def test_frozen_parameters_and_evaluation_are_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    with PerSampleNorms(model) as norms:
        model(torch.randn(5, 4)).sum().backward()
        before = norms.sums()
        assert "0.weight" not in before
        assert "0.bias" in before
        with torch.no_grad():
            model.eval()(torch.randn(9, 4))
        assert all(torch.equal(v, before[n]) for n, v in norms.sums().items())
        assert norms.per_sample()["2.weight"].shape == (5,)


class Odd(nn.Module):
    """A parameter that no layer holds, and a weight that others read."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 3))
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.outer(F.linear(x @ self.scale.T @ self.scale, self.inner.weight))


class Constants(nn.Module):
    """What depends on parameters alone is followed to where samples come in."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.positions, self.head = nn.Embedding(7, 3), nn.Linear(3, 2)
        self.grid = nn.Linear(2, 3)  # sees a constant grid, and no sample
        self.table = nn.Parameter(torch.randn(5, 3))
        self.standardised = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.positions(torch.arange(x.shape[1])) + self.positions(torch.tensor([[0, 0, 6]]))
        x = x * self.table[torch.tensor([0, 3, 3])] + self.table.sum(0)
        x += self.grid(torch.linspace(0, 1, 6, dtype=x.dtype).view(1, 3, 2)).tanh()
        x = x - self.grid(torch.ones(x.shape[0], 1, 2, dtype=x.dtype)).relu()  # repeated for each sample
        weight = self.standardised - self.standardised.mean(1, keepdim=True)
        return self.head(F.linear(x, weight / weight.norm(dim=1, keepdim=True)))


class Positions(nn.Module):
    """As many positions as a multiple of the batch: their rows are no samples' all the same."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 4), nn.Embedding(16, 4)

    def forward(self, ids):
        return self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))


def parametrised(kind: str) -> nn.Module:
    return nn.Sequential(getattr(nn.utils.parametrizations, kind)(nn.Linear(3, 4)), nn.Linear(4, 2)).eval()


MODELS = {
    "no layer's parameter": lambda: (Odd(), torch.randn(4, 3)),
    "constants": lambda: (Constants(), torch.randn(4, 2, 3)),
    "positions": lambda: (Positions(), torch.randint(0, 9, (4, 16))),
    "weight norm": lambda: (parametrised("weight_norm"), torch.randn(3, 3)),
    "orthogonal": lambda: (parametrised("orthogonal"), torch.randn(3, 3)),
    "spectral norm": lambda: (parametrised("spectral_norm"), torch.randn(3, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_samples_that_do_not_mix_have_the_norms_of_passes_of_their_own(name):
    assert_right(*MODELS[name]())


def test_what_cannot_be_measured_is_named_and_warned_about_once():
    class Shuffles(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.mix @ x)  # of all samples

    model = Shuffles()
    norms = PerSampleNorms(model)
    with pytest.warns(UserWarning, match=r"mix: .*matmul.*|head.weight: .*matmul") as caught:
        model(torch.randn(4, 3)).sum().backward()
    assert len(caught) == 2
    assert set(norms.untracked) == {"mix", "head.weight", "head.bias"}  # what is learnt from mixed rows is nobody's
    assert model.mix not in norms.denominators()
    model(torch.randn(4, 3)).sum().backward()


def test_layers_that_join_later_are_named():
    model = nn.Sequential(nn.Linear(4, 3))
    norms = PerSampleNorms(model)
    model.append(nn.Linear(3, 2))
    model(torch.randn(5, 4)).sum().backward()
    with pytest.warns(UserWarning, match=r"1\.weight: it joined the model after"):
        norms.denominators()
    assert set(norms.untracked) == {"1.weight", "1.bias"}
    assert set(norms.sums()) == {"0.weight", "0.bias"}


def test_double_backward_is_refused_not_wrong():
    model = nn.Linear(3, 1)
    with PerSampleNorms(model):
        loss = model(torch.randn(2, 3)).square().sum()
        with pytest.raises(RuntimeError, match="create_graph"):
            torch.autograd.grad(loss, model.weight, create_graph=True)


def traces(model: nn.Module) -> list:
    """All that a module's instance has, its hooks included."""
    return [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
        for module in model.modules()
    ]


@pytest.mark.parametrize("mode", ["per_sample", "subset", "micro_batch"])
def test_detach_leaves_no_trace_even_after_an_exception(mode):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.Flatten()))
    before, x = traces(model), torch.randn(2, 3, 8, 8)

    def fail():
        with PerSampleNorms(model, mode):
            model(x).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert traces(model) == before
    norms = PerSampleNorms(model, mode)
    norms.attach()
    norms.detach()
    norms.detach()
    assert traces(model) == before
    model(x).sum().backward()
    assert norms.sums() == {}  # hooks of parameters are gone, too


def test_a_model_can_be_freed_while_attached():
    model = nn.Linear(3, 2)
    seen = weakref.ref(model)
    norms = PerSampleNorms(model)
    model(torch.randn(4, 3)).sum().backward()
    del model, norms
    gc.collect()
    assert seen() is None


def test_bad_arguments():
    model = nn.Linear(3, 2)
    with pytest.raises(UserError, match="mode='exact' is unknown; choose one of per_sample, subset, micro_batch"):
        PerSampleNorms(model, "exact")
    with pytest.raises(UserError, match="norm_samples=0 must be a whole number of at least 1"):
        PerSampleNorms(model, "subset", 0)
    with PerSampleNorms(model), pytest.raises(UserError, match=r"another PerSampleNorms is attached .* detach\(\) it"):
        PerSampleNorms(model)
    PerSampleNorms(model).detach()


class Experts(nn.Module):
    """Samples in the order of their experts."""

    def __init__(self):
        super().__init__()
        self.router, self.expert, self.head = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        order = self.router(x)[:, 0].argsort()
        y = self.expert(x[order])[order.argsort()]
        return self.head(torch.zeros_like(y).index_add_(0, order, y[order]) + x)


def test_what_is_learnt_from_routed_rows_is_named_and_what_follows_is_measured():
    found = verdict(Experts().double(), torch.randn(4, 3).double())
    assert found.word == "named"
    assert "expert.weight: it sees rows that were picked by an index" in found.why
    assert "head" not in found.why
