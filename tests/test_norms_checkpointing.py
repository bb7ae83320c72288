"""Activation checkpointing: measured as without it, and trained as without measuring."""

import functools
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from hf_clars.norms import PerSampleNorms
from hf_clars.norms.regions import Regions

BATCH, LENGTH, WIDTH = 4, 64, 8  # long enough for fused forms; LENGTH and WIDTH are multiples of BATCH
SELECTIVE = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
OPTIONS = {
    "plain": {},
    "early stop off": {"early_stop": False},
    "no check": {"determinism_check": "none"},
    "selective": {"context_fn": SELECTIVE},
    "random state not kept": {"preserve_rng_state": False},
    "reentrant": {"use_reentrant": True},
}


def run(function, *args, **options):
    return checkpoint(function, *args, **{"use_reentrant": False, **options})


def plainly(function, *args, **options):
    return function(*args)


class Block(nn.Module):
    """Layers of each kind: fused, with samples' copies, and a parameter that is used through another tensor."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.gain, self.dropout = nn.Parameter(torch.randn(WIDTH)), nn.Dropout(p)
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        mix = F.dropout(self.mix - self.mix.mean(), self.dropout.p)
        return x + self.dropout(self.down(self.up(self.norm(x)).tanh())) * self.gain + F.linear(x, mix)


class Model(nn.Module):
    """`use(model, x, run)` says how; `run` is `checkpoint`, or calls the function plainly."""

    def __init__(self, use, *blocks: nn.Module) -> None:
        super().__init__()
        self.use, self.run = use, plainly
        self.first, self.blocks, self.last = nn.Linear(WIDTH, WIDTH), nn.ModuleList(blocks), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.register_buffer("angles", torch.randn(LENGTH, WIDTH))

    def forward(self, x):
        return self.use(self, x, self.run)


class Handed(nn.Module):
    """Is handed a constant and a table whose lengths BATCH divides: no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, angles, table=None):
        y = self.inner(x + self.scale * angles)
        return y if table is None else y + table


class Twice(nn.Module):
    """Two results, one of them computed from parameters alone and used in another region: as T5 does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = Block(), nn.Parameter(torch.randn(LENGTH, WIDTH))

    def forward(self, x):
        table = self.table.tanh()
        return self.inner(x) + table, table


def module(m, x, run):
    return m.last(run(m.blocks[0], m.first(x)))


def function(m, x, run):
    return m.last(run(lambda t: m.blocks[1](m.blocks[0](t).sin()) + t, m.first(x)))


def nested(m, x, run):
    return m.last(run(lambda t: m.blocks[1](run(lambda s: run(m.blocks[0], s).sin(), t)), m.first(x)))


def over_time(m, x, run):
    h = m.first(x)
    for _ in range(3):
        h = run(m.blocks[0], h)
    return m.last(h)


def offloaded(m, x, run):
    with save_on_cpu():
        return module(m, x, run)


def first_of(m, x, run):
    y, table = run(m.blocks[0], m.first(x))
    return m.last(run(m.blocks[1], y, m.angles, table))


def attention():
    return nn.MultiheadAttention(WIDTH, 2, batch_first=True)


def encoder():
    return nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)


FORMS = {  # how the model is run, and what its blocks are
    "module": (module, Block),
    "function": (function, Block, Block),
    "without gradient": (lambda m, x, run: m.last(run(lambda t: m.blocks[0](m.first(t)), x.detach())), Block),
    "nested": (nested, Block, Block),
    "over time": (over_time, Block),
    "over time inside": (lambda m, x, run: m.last(run(lambda t: m.blocks[0](m.blocks[0](t)), m.first(x))), Block),
    "inside and outside": (lambda m, x, run: m.last(m.blocks[0](run(m.blocks[0], m.first(x)))), Block),
    "handed": (lambda m, x, run: m.last(run(lambda t: m.blocks[0](t, m.angles), m.first(x))), Handed),
    "handed table": (lambda m, x, run: m.last(run(m.blocks[0], m.first(x), m.angles, m.table.tanh())), Handed),
    "offloaded": (offloaded, Block),
    "attention": (
        lambda m, x, run: m.last(run(lambda t: m.blocks[0](t, t, t, need_weights=False)[0], m.first(x))), attention
    ),
    "encoder layer": (module, encoder),
    "table out of a region": (first_of, Twice, Handed),
}  # fmt: skip
# What reentrant checkpointing cannot do right is named; without it everything is measured.
NAMED = {
    "over time": {"blocks.0.up.weight", "blocks.0.down.weight", "blocks.0.mix"},
    "inside and outside": {"blocks.0.up.weight", "blocks.0.down.weight", "blocks.0.mix"},
    "handed table": {"table"},
    "table out of a region": {"blocks.0.table"},
}


def gradients(model, x, measured=True, passes=1):
    """Gradients, norms, names of what is not measured, and the random state afterwards."""
    model.zero_grad()
    torch.manual_seed(1)
    norms = PerSampleNorms(model) if measured else None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "PerSampleNorms cannot measure")
            loss = model(x).square().sum(2).mean()
            for i in range(passes):
                loss.backward(retain_graph=i < passes - 1)
            if norms is not None:
                norms.denominators()
    finally:
        if norms is not None:
            norms.detach()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    state = torch.get_rng_state()
    return found, norms.per_sample() if norms else {}, set(norms.untracked) if norms else set(), state


def check(model, x, options, named=frozenset(), passes=1):
    expected_gradients, expected, _, _ = gradients(model, x, passes=passes)
    model.run = functools.partial(run, **options)
    unmeasured, _, _, state = gradients(model, x, measured=False, passes=passes)
    found, norms, untracked, state_measured = gradients(model, x, passes=passes)
    torch.testing.assert_close(found, unmeasured, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, expected_gradients, rtol=1e-10, atol=1e-12)
    assert torch.equal(state, state_measured)
    assert untracked == {name for name in expected if name not in norms}
    assert {n for n in untracked if dict(model.named_parameters())[n].ndim >= 2} == named
    torch.testing.assert_close(norms, {n: expected[n] for n in norms}, rtol=1e-9, atol=1e-12)


def inputs(gradient=True):
    torch.manual_seed(0)
    return torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, requires_grad=gradient)


@pytest.mark.filterwarnings("ignore:.*saved.tensors.hooks:FutureWarning")  # torch's, of selective and save_on_cpu
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_measured_as_without_checkpointing(form, option):
    reentrant = option == "reentrant"
    if reentrant and form in ("without gradient", "nested"):
        pytest.skip("reentrant checkpointing itself takes no gradients there")
    use, *blocks = FORMS[form]
    x, model = inputs(), Model(use, *(make() for make in blocks))
    options = {key: value for key, value in OPTIONS[option].items() if key != "early_stop"}
    with set_checkpoint_early_stop(option != "early stop off"):
        check(model.double(), x, options, NAMED.get(form, set()) if reentrant else set())


@pytest.mark.parametrize("reentrant", [False, True])
def test_dropout_and_two_backward_passes(reentrant):
    """Random numbers are the same as without measuring, those that a parameter is dropped by as well."""
    check(Model(module, Block(0.3)).double(), inputs(), {"use_reentrant": reentrant})
    if not reentrant:
        check(Model(function, Block(0.3), Block(0.3)).double(), inputs(), {}, passes=2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_frozen_layers(reentrant):
    model = Model(function, Block(), Block()).double()
    for parameter in (model.blocks[0].up.weight, model.blocks[1].norm.weight, model.blocks[1].mix):
        parameter.requires_grad_(False)
    check(model, inputs(), {"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [False, True])
def test_sequential(reentrant):
    def use(m, x, run):
        layers = nn.Sequential(*m.blocks)
        h = m.first(x)
        return m.last(layers(h) if run is plainly else checkpoint_sequential(layers, 2, h, use_reentrant=reentrant))

    check(Model(use, *(Block() for _ in range(4))).double(), inputs(), {})


@pytest.mark.parametrize("reentrant", [False, True])
def test_autocast_rounds_as_without_measuring(reentrant):
    """Two layers that are given the same leaf, as reentrant checkpointing makes of everything: autocast casts it once,
    and adds up their gradients in half precision."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.one(x) * self.other(x)

    def use(m, x, run):
        with torch.autocast("cpu", torch.bfloat16):
            return run(m.blocks[0], m.first(x).float()).float()

    model, x = Model(use, Two()), inputs().float()
    model.run = functools.partial(run, use_reentrant=reentrant)
    unmeasured, _, _, _ = gradients(model, x[:, :4], measured=False)
    found, norms, untracked, _ = gradients(model, x[:, :4])
    torch.testing.assert_close(found, unmeasured, rtol=1e-6, atol=1e-7)
    assert not untracked
    assert set(norms) >= {"first.weight", "blocks.0.one.weight", "blocks.0.other.weight"}


def test_other_batches_between_forward_and_backward():
    """The second run has the batch size of the first, whatever was run since."""
    model, x = Model(function, Block(), Block()).double(), inputs()
    _, expected, _, _ = gradients(model, x)
    model.run = run
    with PerSampleNorms(model) as norms:
        loss, other = model(x).square().sum(2).mean(), model(x[:3]).square().sum(2).mean()
        with torch.no_grad():
            model(x[:1])
        loss.backward()
        torch.testing.assert_close(norms.per_sample(), {n: expected[n] for n in norms.per_sample()})
        other.backward()
        assert {len(each) for each in norms.per_sample().values()} == {3}
        assert not norms.untracked


def test_accumulated_gradients():
    model, x = Model(module, Block()).double(), inputs()
    sums = []
    for how in (plainly, run):
        model.run = how
        model.zero_grad()
        with PerSampleNorms(model) as norms:
            for part in x.detach().split(2):
                model(part).square().sum(2).mean().backward()
        sums.append((norms.sums(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(sums[1], sums[0])


def test_attached_between_forward_and_backward():
    """What nobody watched the first time is not watched the second."""
    model, x = Model(function, Block(), Block()).double(), inputs()
    model.run = run
    expected, _, _, _ = gradients(model, x, measured=False)
    model.zero_grad()
    loss = model(x).square().sum(2).mean()
    with PerSampleNorms(model) as norms:
        loss.backward()
    assert norms.per_sample() == {}
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_function_computes_itself_is_named(reentrant):
    def use(m, x, run):
        return m.last(run(lambda t: m.blocks[0](F.linear(t, m.last.weight.tanh())), m.first(x)))

    check(Model(use, Block()).double(), inputs(), {"use_reentrant": reentrant}, {"last.weight"})


@pytest.mark.parametrize("reentrant", [False, True])
def test_torch_still_has_the_private_names(reentrant):
    """Both runs of a region are recognised, and as the same one."""
    seen = []

    def function(x):
        code = test_torch_still_has_the_private_names.__code__
        seen.append(_entered(Regions(), code))
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    checkpoint(function, x, use_reentrant=reentrant).sum().backward()
    (first, second) = seen
    assert first.key is second.key
    assert first.run is None
    assert second.run is not None
    assert (first.reentrant, second.reentrant) == (reentrant, reentrant)


def _entered(regions, code):
    regions.watched = code
    return (lambda: regions.entered(True))()


LANGUAGE = {
    "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96},
    "LlamaForCausalLM": {
        "hidden_size": 16, "intermediate_size": 32, "attention_dropout": 0.1, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "BertForMaskedLM": {
        "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "T5ForConditionalGeneration": {
        "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2, "decoder_start_token_id": 0,
    },
}  # fmt: skip
VISION = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2),
    },
}  # fmt: skip


def made(name):
    if name in VISION:
        return timm.create_model(name, num_classes=5, drop_path_rate=0.2, **VISION[name])
    kind = getattr(transformers, name)
    config = kind.config_class(vocab_size=61, **LANGUAGE[name])
    config.use_cache = False
    return kind(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reentrant"),
    [*[(name, reentrant) for name in LANGUAGE for reentrant in (False, True)], *[(name, False) for name in VISION]],
)
def test_networks(name, reentrant):
    """With their own dropout. What crosses a border of reentrant checkpointing is T5's table of relative positions."""
    language = name in LANGUAGE

    def step(checkpointed, measured):
        torch.manual_seed(0)
        model = made(name).double().train()
        if checkpointed and language:
            older = getattr(model, "gradient_checkpointing_enable", None)
            getattr(model, "activation_checkpointing_enable", older)({"use_reentrant": reentrant})
        elif checkpointed:
            model.set_grad_checkpointing()
        ids = torch.randint(1, 61, (BATCH, 96))
        x = None if language else torch.randn(BATCH, 3, *model.patch_embed.img_size).double()

        norms = PerSampleNorms(model) if measured else None
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "PerSampleNorms cannot measure")
            loss = model(input_ids=ids, labels=ids).loss if x is None else model(x).square().mean()
            loss.backward()
        found = {n: p.grad for n, p in model.named_parameters()}
        return found, norms and norms.per_sample(), norms and set(norms.untracked)

    _, expected, _ = step(False, True)
    unmeasured, _, _ = step(True, False)
    found, norms, untracked = step(True, True)
    torch.testing.assert_close(found, unmeasured, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(norms, {n: expected[n] for n in norms}, rtol=1e-9, atol=1e-14)
    table = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    named = {f"encoder.{table}", f"decoder.{table}"} if reentrant and name[0] == "T" else set()
    assert untracked == named == set(expected) - set(norms)
