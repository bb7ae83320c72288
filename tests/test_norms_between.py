"""Parts of a model called one after the other, as a training step of one's own does, with something in between."""

from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

from hf_clars.norms import PerSampleNorms

from .helpers.chains import ALL, FEATURES, FIRST, SECOND, VIEWS, cases, draw
from .helpers.slow import slow_but
from .helpers.verdicts import verdict

BATCH, LENGTH, WIDTH = 4, 6, 8

BETWEEN = {
    "as it is": lambda z: z,
    "relu": torch.relu,
    "gelu, scaled and shifted": lambda z: 1 + 2 * F.gelu(z),
    "plus noise": lambda z: z + torch.ones(LENGTH, 1, dtype=z.dtype),
    "softmax": lambda z: z.softmax(1),
    "positions first": lambda z: z.transpose(0, 1),
    "positions first, flat": lambda z: z.transpose(0, 1).flatten(0, 1),
    "permuted": lambda z: z.permute(1, 0, 2).contiguous(),
    "flat": lambda z: z.flatten(0, 1),
    "heads": lambda z: z.unflatten(2, (2, WIDTH // 2)).transpose(1, 2).flatten(2),
    "a position": lambda z: z[:, 0],
    "all but one": lambda z: z[:, 1:],
    "mean": lambda z: z.mean(1),
    "largest": lambda z: z.amax(1),
    "halves": lambda z: torch.cat(z.chunk(2, 1)[::-1], 2),
    "stacked": lambda z: torch.stack([z, z.sin()], 1),
    "two views": lambda z: torch.cat([z, -z]),
    "residual": lambda z: z + z.tanh(),
    "normalised": lambda z: F.normalize(z, dim=-1),
    "padded": lambda z: F.pad(z, (1, 1)),
    "one dimension more": lambda z: z.unsqueeze(0),
    "other dtype and back": lambda z: z.float().double(),
}
NAMED = {
    "product": lambda z: z.transpose(1, 2) @ z,
    "flipped": lambda z: z.flip(0),
    "some samples": lambda z: z[:3],
    "indexed": lambda z: z[torch.tensor([0, 1, 3, 2])],
    "a function of one's own": lambda z: Transposed.apply(z),
}


class Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.transpose(0, 1).clone()

    @staticmethod
    def backward(ctx, d):
        return d.transpose(0, 1)


class Parts(nn.Module):
    """Two nets, of which nobody calls the whole."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh())
        self.dec = nn.Linear(width, 2)


def owners(between) -> torch.Tensor:
    """The sample to which each row of what comes out belongs: the one that has a derivative there."""
    z = torch.randn(BATCH, LENGTH, WIDTH).double().requires_grad_()
    rows = (between(z) * torch.randn(between(z).shape[-1]).double()).sum(-1).flatten()
    of_rows = [torch.autograd.grad(row, z, retain_graph=True)[0].abs().sum((1, 2)) for row in rows]
    assert all((of_row > 0).sum() == 1 for of_row in of_rows)
    return torch.stack(of_rows).argmax(1)


def judge(between, call=lambda part: part):
    torch.manual_seed(0)
    owner, width = owners(between), between(torch.zeros(BATCH, LENGTH, WIDTH).double()).shape[-1]

    def loss(model, x):
        y = call(model.dec)(between(call(model.enc)(x)))
        return y.new_zeros(BATCH).index_add(0, owner, y.square().sum(-1).flatten())

    return verdict(Parts(width).double(), torch.randn(BATCH, LENGTH, 3).double(), loss, together=True)


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_right_after_functions_whose_shapes_tell(between):
    assert judge(between).word == "right"


@pytest.mark.parametrize("between", NAMED.values(), ids=NAMED)
def test_named_where_the_graph_does_not_tell(between):
    found = judge(between)
    assert found.word == "named"
    assert "dec.weight: " in found.why
    assert "enc" not in found.why


@given(**cases(ALL))
def test_right_or_named_after_any_chain(shape, first, second, chains, seed):
    assert chained(shape, first, second or "linear", chains, seed).word in ("right", "named")


@given(**cases(VIEWS))
def test_right_after_chains_of_views(shape, first, second, chains, seed):
    plain = [[make for make in chain if make.__name__ != "einsum"] for chain in chains]
    assert chained(shape, first, second or "linear", plain, seed).word == "right"


def chained(shape, first, second, chains, seed):
    """The cases of test_norms_layout_fuzz.py, with steps that nobody watches between two layers."""
    random, batch = Random(seed), shape[0]
    torch.manual_seed(seed)
    ids = first == "embedding"
    x = torch.randint(0, 7, shape) if ids else torch.randn(*shape, FEATURES, dtype=torch.float64)
    layers = nn.ModuleList([FIRST[first](), SECOND[second]()]).double()
    owner = torch.arange(batch).view(-1, 1, 1).expand(shape).unsqueeze(-1).expand(*shape, FEATURES)
    steps, owner = draw(owner, 1, chains[1], random)

    def loss(model, x):
        z = model[0](x)
        for step in steps:
            z = step.function(z)
        y = model[1](z)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
        f = (y * weight + 0.5 * y.square()).mean(-1)
        return f.new_zeros(batch).index_add(0, owner[..., 0].flatten(), f.flatten())

    return verdict(layers, x, loss, together=True)


def test_results_of_two_calls_meet():
    def loss(model, x):
        one, other = model.enc(x[:, :3]), model.enc(x[:, 3:])
        return model.dec(torch.cat([one.transpose(0, 1), other.transpose(0, 1)], 2)).square().sum((0, 2))

    assert verdict(Parts(2 * WIDTH).double(), torch.randn(BATCH, 6, 3).double(), loss).word == "right"


def test_other_arguments_of_the_second_call():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.of_z, self.of_other = nn.Linear(WIDTH, 2), nn.Linear(3, 2)

        def forward(self, z, other):
            return self.of_z(z) + self.of_other(other).transpose(0, 1)

    model = Parts()
    model.dec = Decoder()

    def loss(model, x):
        return model.dec(model.enc(x).transpose(0, 1), x).square().sum((0, 2))

    assert verdict(model.double(), torch.randn(BATCH, LENGTH, 3).double(), loss).word in ("right", "named")


def test_a_backbone_that_nobody_watches_hands_over_new_inputs():
    backbone, head = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()

    def loss(model, x):
        return model(backbone(x).relu()).square().sum((1, 2))

    assert verdict(head, torch.randn(BATCH, LENGTH, 3).double(), loss).word == "right"


def test_the_whole_model_called_on_its_own_result():
    def loss(model, x):
        return model(model(x).transpose(0, 1).exp()).square().sum((0, 2))

    assert verdict(nn.Linear(3, 3).double(), torch.randn(BATCH, LENGTH, 3).double(), loss).word == "right"


def test_a_pass_of_another_size_begins_anew():
    """The last batch of an epoch is smaller."""
    model = Parts().double()
    with PerSampleNorms(model) as norms:
        for batch in (4, 3):
            model.zero_grad()
            model.dec(model.enc(torch.randn(batch, LENGTH, 3).double()).transpose(0, 1)).mean().backward()
            assert {len(each) for each in norms.per_sample().values()} == {batch}
        assert norms.untracked == {}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, of its compiler
@pytest.mark.parametrize("part", slow_but(["both"], ["both", "enc", "dec"]))
def test_parts_that_are_compiled_alone(part):
    """Of those the graph has one node, whatever they do."""

    def call(net):
        wanted = part == "both" or isinstance(net, nn.Linear) == (part == "dec")
        return torch.compile(net, backend="aot_eager") if wanted else net

    assert judge(BETWEEN["positions first"], call).word in ("right", "named")


@pytest.mark.filterwarnings("ignore:PerSampleNorms cannot measure")
def test_batches_of_two_sizes_in_one_backward_pass_are_named():
    """As a loss with negatives has it, that calls the model once for anchors and once for all candidates."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(3 * BATCH, 3).double()
    plain = torch.autograd.grad((model(x[:BATCH]) @ model(x[BATCH:]).T).logsumexp(1).mean(), model.parameters())
    with PerSampleNorms(model) as norms:
        (model(x[:BATCH]) @ model(x[BATCH:]).T).logsumexp(1).mean().backward()
        assert norms.denominators() == {}
        assert all("batches of 8 and 4 samples" in reason for reason in norms.untracked.values())
        assert set(norms.untracked) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    torch.testing.assert_close([p.grad for p in model.parameters()], list(plain))
