"""`verify_norms`: what is right, named, unused, unknown and wrong, and that the model is as it was afterwards."""

import copy
import functools
import random
import re
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_clars import CLARS, PerSampleNorms, UserError, verify_norms
from hf_clars.norms import NormsVerification, NormVerdict
from hf_clars.norms.watch import Watch

from .helpers.models import Classifier, dataset


def mean_square(outputs, targets):
    return outputs.square().mean()


def contrastive(outputs, partners):
    return F.cross_entropy(outputs @ outputs.T, partners)


def digits(size=4):
    return torch.randn(size, 1, 4, 4), torch.randint(0, 3, (size,))


def labelled(size=4):
    images, labels = digits(size)
    return {"pixel_values": images, "labels": labels}


class Tied(nn.Module):
    """Its embedding is for the loss to use as well."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.layer = nn.Linear(6, 6)

    def forward(self, ids):
        return self.layer(self.table(ids))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class PositionsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class OnlyLoss(nn.Linear):
    def forward(self, x):
        return {"loss": super().forward(x).square().mean()}


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def convolutions():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


RIGHT = {
    "mlp": lambda: (mlp(), (torch.randn(4, 5), torch.randint(0, 3, (4,))), F.cross_entropy),
    "a tensor": lambda: (mlp(), torch.randn(4, 5), mean_square),
    "a list": lambda: (mlp(), [torch.randn(4, 5), torch.randn(4, 3)], F.mse_loss),
    "convolutions and BatchNorm": lambda: (convolutions(), digits(), F.cross_entropy),
    "transformer": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (torch.randn(3, 5, 8), torch.randn(3, 5, 8)),
        F.mse_loss,
    ),
    "a dictionary": lambda: (Classifier(), labelled(), lambda outputs, y: F.cross_entropy(outputs["logits"], y)),
    "positions first": lambda: (PositionsFirst(), torch.randn(2, 4, 6), mean_square),
    "a loss that compares samples": lambda: (mlp(), (torch.randn(4, 5), torch.tensor([1, 0, 3, 2])), contrastive),
    "classes that weigh differently": lambda: (
        mlp(),
        (torch.randn(4, 5), torch.tensor([0, 2, -100, 1])),
        lambda outputs, y: F.cross_entropy(outputs, y, torch.tensor([1.0, 5.0, 0.1]).to(outputs)),
    ),
    "a sum": lambda: (
        mlp(),
        (torch.randn(4, 5), torch.randint(0, 3, (4,))),
        lambda outputs, y: F.cross_entropy(outputs, y, reduction="sum"),
    ),
    "a loss alone": lambda: (OnlyLoss(5, 3), torch.randn(4, 5), None),
    "the model's loss": lambda: (Classifier(dropout=0.5), labelled(), None),
}


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("case", RIGHT)
def test_right(case, dtype):
    model, batch, loss_fn = RIGHT[case]()
    found = verify_norms(model, batch, loss_fn, dtype=dtype, verbose=False)
    assert found.ok
    assert found.with_status("right") == [name for name, _ in model.named_parameters()]
    assert found.largest_error < (1e-4 if dtype is None else 1e-12)
    for verdict in found.parameters.values():
        assert verdict.measured.shape == verdict.expected.shape == (found.batch_size,)


ARRANGED = {
    "positions before samples": lambda y: y.unflatten(1, (3, 1)).transpose(0, 1),
    "rows of a sample together": lambda y: y.reshape(-1, 1),
    "first rows of all samples before second ones": lambda y: torch.cat([y, y * 2]),
    "beside something that is not by sample": lambda y: (y, (y * 0).sum(0), {"y": y.T}),
    "unknown": lambda y: {"loss": y.square().mean()},
}


@pytest.mark.parametrize("arrange", ARRANGED.values(), ids=ARRANGED)
def test_wherever_samples_stand_in_outputs(arrange):
    class Arranged(nn.Linear):
        def forward(self, x):
            return arrange(super().forward(x))

    def loss_fn(outputs, targets):
        if isinstance(outputs, dict):
            return outputs["loss"]
        return (outputs[0] if isinstance(outputs, tuple) else outputs).square().mean()

    found = verify_norms(Arranged(5, 3), torch.randn(4, 5), loss_fn, dtype=torch.float64, verbose=False)
    assert found.with_status("right") == ["weight", "bias"]


def test_layers_that_mix_samples_or_draw_numbers_are_in_eval_mode_and_it_is_said():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    found = verify_norms(model, torch.randn(4, 5), mean_square, verbose=False)
    assert found.ok
    assert [note.split(":")[0] for note in found.notes] == [
        "BatchNorm by its running statistics (1 layer)",
        "dropout off (1 layer)",
    ]
    assert verify_norms(model.eval(), torch.randn(4, 5), mean_square, verbose=False).notes == ()


def test_a_function_that_draws_numbers_in_train_mode_is_checked_in_eval_mode():
    class Noisy(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    found = verify_norms(Noisy(5, 3), torch.randn(4, 5), mean_square, verbose=False)
    assert found.ok
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the whole model in eval mode: in train mode, samples mix or are random")


def test_samples_that_mix_are_not_checked():
    found = verify_norms(mixing(), torch.randn(4, 5), mean_square, verbose=False)
    assert not found.ok
    assert found.with_status("not checked") == list(found.parameters)
    assert "samples mix" in found.parameters["0.weight"].reason or "refuses" in found.parameters["0.weight"].reason
    assert found.parameters["0.weight"].expected is None


@given(weights=st.lists(st.floats(-4, 4).filter(lambda w: w == 0 or abs(w) > 0.01), min_size=4, max_size=4))
def test_samples_of_any_weight(weights):
    assume(any(weights))
    model = mlp().double()
    batch = torch.randn(4, 5).double(), torch.randn(4, 3).double()

    def loss_fn(outputs, targets):  # alone, a sample does not know its weight
        each = (outputs - targets).square().sum(1)
        return each @ torch.tensor(weights).double() if len(each) == 4 else each.mean()

    found = verify_norms(model, batch, loss_fn, verbose=False)
    assert found.with_status("right") == list(found.parameters)
    for verdict in found.parameters.values():
        assert [norm == 0 for norm in verdict.expected] == [w == 0 for w in weights]


@pytest.mark.parametrize("tied", [False, True])
def test_causal_language_model_with_padded_labels(tied):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=19,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(0, 19, (4, 7))
    labels = ids.clone()
    labels[0, 3:], labels[1, 5:], labels[2] = -100, -100, -100  # the third has no label at all
    batch = transformers.BatchEncoding({"input_ids": ids, "attention_mask": (labels != -100).long(), "labels": labels})
    batch["attention_mask"][2] = 1
    found = verify_norms(model, batch, verbose=False)
    assert found.ok, found
    assert found.with_status("right") == [name for name, _ in model.named_parameters()]
    head = found.parameters["model.norm.weight"].expected
    assert head[2] == 0
    assert not torch.allclose(head[0], head[3])


def test_a_loss_of_outputs_that_are_computed_from_each_other():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, 7)
            self.head = nn.Linear(7, 3)

        def forward(self, x):
            hidden = torch.tanh(self.body(x))
            logits = self.head(hidden)
            similar = logits @ logits.T + hidden @ hidden.T  # of all samples: by none
            loss = F.cross_entropy(similar, torch.arange(len(x)).roll(1)) if len(x) > 1 else similar.sum() * 0
            return {"hidden": hidden, "again": logits, "logits": logits, "similar": similar, "loss": loss}

    found = verify_norms(Two(), torch.randn(4, 5), dtype=torch.float64, verbose=False)
    assert found.with_status("right") == list(found.parameters)


def loss_with_table(model):
    return lambda outputs, _: F.linear(outputs, model.table.weight).square().mean()


def penalised(model, strength=10.0):
    """A penalty on the weights belongs to no sample, wherever it is computed."""
    return lambda outputs, _: outputs.square().mean() + strength * model[0].weight.exp().sum()


ANY = ("named", "wrong", "not checked")  # of what hardly changes norms, nothing may show whether it was measured
BESIDE = {
    "a weight that the loss uses": (Tied, lambda: torch.randint(0, 9, (3, 4)), loss_with_table, ("named",)),
    "a penalty": (mlp, lambda: torch.randn(4, 5), penalised, ("named",)),
    "a small penalty": (mlp, lambda: torch.randn(4, 5), functools.partial(penalised, strength=1e-3), ANY),
}


@pytest.mark.parametrize(("make", "batch", "loss_of", "statuses"), BESIDE.values(), ids=BESIDE)
def test_a_part_that_no_sample_of_a_watched_pass_has_is_not_right(make, batch, loss_of, statuses):
    model = make()
    first, *others = dict(model.named_parameters())
    found = verify_norms(model, batch(), loss_of(model), verbose=False)
    assert found.parameters[first].status in statuses
    assert found.ok == (found.parameters[first].status == "named")
    assert found.with_status("right") == others


MEASURED = PerSampleNorms.per_sample


def test_false_norms_are_wrong_with_both_numbers(monkeypatch, capsys):
    model = mlp()

    def permuted(self):  # as if rows were taken for others': the sum is the right one
        return {n: v.flip(0) if n == "0.weight" else v for n, v in MEASURED(self).items()}

    monkeypatch.setattr(PerSampleNorms, "per_sample", permuted)
    found = verify_norms(model, torch.randn(4, 5), mean_square)
    assert found.with_status("wrong") == ["0.weight"]
    verdict = found.parameters["0.weight"]
    assert verdict.error > found.tolerance
    torch.testing.assert_close(verdict.measured, verdict.expected.flip(0), rtol=1e-5, atol=0)
    assert not found.ok
    line = capsys.readouterr().out.splitlines()[0]
    assert re.match(r"wrong +0\.weight +\d\.\de.\d\d  ‖c_\d‖ is [\d.e-]+, by sample \d alone [\d.e-]+; Σ‖c_i‖", line)


def too_small(norms: PerSampleNorms) -> dict:
    return {name: each / 9 for name, each in MEASURED(norms).items()}


def changing(norms: PerSampleNorms) -> dict:
    norms.model[0].weight.grad.mul_(1.1)
    return MEASURED(norms)


def mixing():
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3))


WRONG = {  # model, what stands in for a method, names, reason
    "too small": (mixing, (PerSampleNorms, "per_sample", too_small), {"2.weight"}, ""),  # for the gradient, if mixed
    "nothing": (
        mlp, (PerSampleNorms, "per_sample", lambda norms: {}), {"0.weight", "2.weight"},
        "neither measured nor named in .untracked",
    ),
    "a gradient that changes": (
        mlp, (PerSampleNorms, "per_sample", changing), {"0.weight"}, "measuring changes its gradient",
    ),
    "an error": (
        mlp, (Watch, "begin_pass", mock.Mock(side_effect=RuntimeError("of the measuring"))),
        {"0.weight", "0.bias", "2.weight", "2.bias"}, "RuntimeError: of the measuring",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "stand_in", "names", "reason"), WRONG.values(), ids=WRONG)
def test_measuring_that_goes_wrong_shows(monkeypatch, make, stand_in, names, reason):
    model = make()
    monkeypatch.setattr(*stand_in)
    found = verify_norms(model, torch.randn(4, 5), mean_square, verbose=False)
    assert set(found.with_status("wrong")) >= names
    assert make is mixing or set(found.with_status("wrong")) == names
    assert all(reason in found.parameters[name].reason for name in names)
    assert all("forward" not in vars(module) for module in model.modules())


def test_what_cannot_be_measured_is_named(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = verify_norms(Recurrent(), torch.randn(3, 4, 4), mean_square)
    assert found.ok
    assert {"lstm.weight_ih_l0", "lstm.weight_hh_l0"} <= set(found.with_status("named"))
    assert "head.weight" in found.with_status("right")
    assert "lstm" in found.parameters["lstm.weight_ih_l0"].reason
    assert found.parameters["lstm.weight_ih_l0"].reason in " ".join(capsys.readouterr().out.split())


def test_frozen_and_unused_parameters():
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "frozen": nn.Linear(5, 3), "idle": nn.Linear(5, 3)})
    model["frozen"].requires_grad_(False)
    model.forward = lambda x: model["used"](x) + model["frozen"](x)
    found = verify_norms(model, torch.randn(4, 5), mean_square, verbose=False)
    assert found.with_status("right") == ["used.weight", "used.bias"]
    assert found.with_status("unused") == ["idle.weight", "idle.bias"]
    assert found.ok
    assert not model["frozen"].weight.requires_grad


def state(model):
    return {
        "values": {n: (t.dtype, t.clone()) for n, t in model.state_dict().items()},
        "grads": {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "trained": [p.requires_grad for p in model.parameters()],
        "attributes": [
            {name: dict(value) if isinstance(value, dict) else value for name, value in vars(each).items()}
            for each in (*model.modules(), *model.parameters())
        ],
        "identity": [id(t) for t in (*model.parameters(), *model.buffers())],
        "places": [t.data_ptr() for t in (*model.parameters(), *model.buffers())],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(dtype, fails):
    class Drawing(nn.Module):
        def forward(self, x):
            random.random()
            np.random.rand()
            return x + 0 * torch.rand(())

    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.3),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
        Drawing(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    model[1].eval()
    model[6].bias.requires_grad_(False)
    model[0].weight.grad = torch.randn_like(model[0].weight)
    model[0].register_forward_hook(lambda module, args, out: None)
    stepped, seen = [], []
    model[0].weight.register_post_accumulate_grad_hook(stepped.append)
    model[0].weight.register_hook(seen.append)
    x, y = digits()
    before = state(model)
    if fails:
        with pytest.raises(UserError):
            verify_norms(model, (x, y), lambda outputs, targets: outputs, dtype=dtype, verbose=False)
    else:
        found = verify_norms(model, (x, y), F.cross_entropy, dtype=dtype, verbose=False)
        assert found.with_status("right") + found.with_status("named") == list(found.parameters)
    after = state(model)
    for part in before:
        assert same(before[part], after[part]), part
    assert stepped == []
    seen.clear()
    F.cross_entropy(model(x), y).backward()
    assert len(stepped) == len(seen) == 1  # hooks of parameters are still there
    assert x.dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("mode", ["per_sample", "micro_batch"])
def test_an_attached_measurement_goes_on(mode, dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 6, 5)
    model = mlp()
    models = [model, copy.deepcopy(model)]
    results = []
    for model, checked in zip(models, (False, True), strict=True):
        norms = PerSampleNorms(model, mode)
        optimizer = CLARS(model.parameters(), lr=0.1, norms=norms)
        for step, micro_batch in enumerate(x):
            (model(micro_batch).square().mean() / 2).backward()
            if checked:
                assert verify_norms(model, micro_batch, mean_square, dtype=dtype, verbose=False).ok
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
        results.append((norms.sums(), norms.per_sample(), [p.detach() for p in model.parameters()], norms.untracked))
        with pytest.raises(UserError, match="another PerSampleNorms"):
            PerSampleNorms(model)
        norms.detach()
        PerSampleNorms(model).detach()  # nothing is left attached
    assert results[0][0]
    assert same(*results)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (torch.randn(1, 5), {}, "a batch of 1 sample(s), by inputs, shows nothing"),
        ((torch.randn(4, 5), torch.zeros(1, 3)), {}, "a batch of 1 sample(s), by targets, shows nothing"),
        ((torch.randn(5), torch.zeros(4)), {}, "no tensor of the inputs has 4 rows, by targets: give batch_size"),
        (
            torch.randn(4, 5),
            {"batch_size": 3},
            "no tensor of the inputs has 3 rows, by batch_size: there is nothing to cut",
        ),
        (torch.randn(4, 5), {"batch_size": 2.0}, "batch_size=2.0 must be a whole number"),
        (torch.randn(4, 5), {"tolerance": 0}, "tolerance=0 must be between 0 and 1"),
        (torch.randn(4, 5), {"dtype": torch.int64}, "dtype=torch.int64 must be a floating-point dtype"),
        ((torch.randn(4, 5),), {}, "got a tuple of 1 parts"),
        (7, {}, "got a int"),
        ({"input": torch.randn(4, 5)}, {}, "needs its targets under 'labels'; it has input"),
        (torch.randn(4, 5), {"loss_fn": lambda o, y: o}, "the loss is a tensor of shape [4, 3]"),
        (torch.randn(4, 5), {"loss_fn": lambda o, y: 3.0}, "the loss is a float"),
        (torch.randn(4, 5), {"loss_fn": lambda o, y: o.detach().sum()}, "the loss depends on no parameter"),
        (torch.randn(4, 5), {"loss_fn": None}, "returned a Tensor without a loss: give loss_fn(outputs, targets)"),
        ({"input": torch.randn(4, 5)}, {"loss_fn": None}, "returned a Tensor without a loss"),
        ({"input": 3}, {"loss_fn": None}, "no tensor of the batch has a dimension"),
    ],
)
def test_bad_input_is_one_line(batch, options, message):
    model = mlp()
    if isinstance(batch, dict):
        model = model[0]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        verify_norms(model, batch, **{"loss_fn": mean_square, **options})
    assert "\n" not in str(error.value)


def test_a_model_without_trained_parameters():
    with pytest.raises(UserError, match="no parameter that is trained"):
        verify_norms(nn.Linear(5, 3).requires_grad_(False), torch.randn(4, 5), mean_square)


def test_tensors_that_disagree_are_said():
    class Masked(nn.Linear):
        def forward(self, mask, x):
            return super().forward(x) * mask

    model = Masked(5, 3)
    batch = {"x": torch.randn(4, 5), "mask": torch.ones(1, 3), "labels": torch.randn(4, 3)}
    found = verify_norms(model, batch, F.mse_loss, verbose=False)
    assert found.batch_size == 4
    assert found.notes[0] == "4 samples, by targets; every sample is given the whole of inputs['mask'] [1, 3]"


def test_under_autocast_and_in_half_precision():
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    batch = dataset(4)
    x, y = torch.randn(4, 5), torch.tensor([example["labels"] for example in batch])
    with torch.autocast("cpu", torch.bfloat16):
        found = verify_norms(model, (x, y), F.cross_entropy, verbose=False)
    assert found.ok, found
    assert found.tolerance == 5e-2
    assert verify_norms(model.bfloat16(), (x.bfloat16(), y), F.cross_entropy, verbose=False).ok


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)).double()
    ids = torch.randint(0, 9, (3, 5))
    found = verify_norms(model, ids, mean_square, verbose=False)
    each = [torch.autograd.grad(mean_square(model(i[None]), None), model[0].weight)[0].to_dense() / 3 for i in ids]
    expected = found.parameters["0.weight"].expected
    torch.testing.assert_close(expected, torch.stack([gradient.norm() for gradient in each]))


def test_the_table():
    names = ["a", "layer." * 12 + "weight", "\x1b[31mred\x1b[0m\n\x07"]
    values = torch.tensor([1.0, 2.0])
    found = NormsVerification(
        {
            names[0]: NormVerdict(names[0], "right", values, values, 0.0),
            names[1]: NormVerdict(names[1], "wrong", values, 2 * values, 0.5),
            names[2]: NormVerdict(names[2], "named", reason="it is used by a function of a very long name " * 4),
        },
        2,
        1e-3,
        ("dropout off (1 layer)",),
    )
    text = str(found)
    assert all(len(line) <= 120 for line in text.splitlines())
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f]*", text)
    assert text.splitlines()[-1] == (
        "3 parameters: 1 right, 1 named, 1 wrong; largest relative error 5.0e-01, tolerance 1e-03, 2 samples"
    )
    assert "‖c_1‖ is 2, by sample 1 alone 4" in " ".join(text.split())


def test_the_example_of_the_docs(capsys):
    page = (Path(__file__).parents[1] / "docs" / "guides" / "verify.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["found"].ok
    printed = capsys.readouterr().out
    assert re.search(r"^right +words\.weight ", printed, re.MULTILINE)
    assert re.search(r"^named +rnn\.weight_ih_l0 ", printed, re.MULTILINE)


@pytest.mark.usefixtures("new_accelerator")
@pytest.mark.parametrize("own_loss", [False, True])
def test_a_model_that_accelerate_runs_in_half_precision(own_loss):
    """Its outputs are float32 copies, of which the loss it returns does not come. In float64 it is exact."""
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = accelerator.prepare(ViTForImageClassification(config))
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))
    if own_loss:
        check = functools.partial(verify_norms, model, {"pixel_values": images, "labels": labels})
    else:
        loss_fn = lambda outputs, targets: F.cross_entropy(outputs.logits, targets)  # noqa: E731
        check = functools.partial(verify_norms, model, (images, labels), loss_fn)
    for options, largest in (({}, 5e-2), ({"dtype": torch.float64}, 1e-6)):
        found = check(verbose=False, **options)
        assert found.ok, found
        assert {verdict.status for verdict in found.parameters.values()} == {"right"}
        assert found.tolerance == largest
