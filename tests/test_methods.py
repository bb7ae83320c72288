"""What CLARS is compared with: mNAG, LAMB, CLARS as a warmup alone, and CLARS as its authors released it."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.optim import Lamb
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_clars import CLARS, LARS, NAG, ClarsTrainer, GradientStatisticsCallback, PerSampleNorms, UserError
from hf_clars.formulas import adascale_gain
from hf_clars.norms.extra_passes import mean_gradient_norms
from hf_clars.norms.watch import watches_of
from hf_clars.optimizers import AdaScale, AuthorsCLARS
from hf_clars.trainer.authors_norms import AuthorsNorms, samples_to_keep

from .helpers.launch import Ordered
from .helpers.models import Classifier, dataset
from .helpers.parameters import parameters
from .helpers.processes import by_two
from .helpers.reference import NumpyAuthors
from .helpers.training import (
    StopAfter,
    arguments,
    assert_close,
    assert_same_weights,
    layer_statistics,
    seeded,
)

layers_of = partial(parameters, dtype=torch.float64)


def set_gradients(*groups: list[nn.Parameter]) -> None:
    for twins in zip(*groups, strict=True):
        gradient = torch.randn_like(twins[0])
        for w in twins:
            w.grad = gradient.clone()


def twins_of(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in parameters]


# --- mNAG, Eq. 2 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_mnag_with_a_constant_rate_is_nesterov_sgd(momentum):
    """And mGD at β = 0, which is plain SGD and keeps no state."""
    mine = layers_of((4, 3), (6,), (2, 3, 3, 3))
    theirs = twins_of(mine)
    ours = NAG(mine, 0.1, momentum=momentum)
    sgd = torch.optim.SGD(theirs, 0.1, momentum=momentum, nesterov=momentum > 0)
    for _ in range(6):
        set_gradients(mine, theirs)
        ours.step()
        sgd.step()
    assert_close(mine, theirs, rtol=1e-12, atol=1e-13)
    assert bool(ours.state_dict()["state"]) == (momentum > 0)


def test_mnag_under_a_schedule_is_equation_2():
    """`v_{t+1} = w_t − γ g`, `w_{t+1} = v_{t+1} + β (v_{t+1} − v_t)`: γ inside the momentum; vectors not decayed."""
    matrix, vector = layers_of((4, 3), (5,))
    w = [matrix.detach().numpy().copy(), vector.detach().numpy().copy()]
    v = [x.copy() for x in w]
    optimizer = NAG([matrix, vector], 1.0, momentum=0.8, weight_decay=0.1)
    for step in range(5):
        rate = optimizer.param_groups[0]["lr"] = 0.3 / (1 + step)
        set_gradients([matrix, vector])
        optimizer.step()
        for k, (p, decay) in enumerate(((matrix, 0.1), (vector, 0.0))):
            new = w[k] - rate * (p.grad.numpy() + decay * w[k])
            w[k], v[k] = new + 0.8 * (new - v[k]), new
            np.testing.assert_allclose(p.detach().numpy(), w[k], rtol=1e-12)
            assert optimizer.layer_rates()[p].item() == rate


# --- AdaScale ------------------------------------------------------------------------------------------------------


def test_adascale_is_its_formula_over_gradients_of_single_samples():
    """24 samples in two micro-batches, 4 in the small batch: S = 6. Unbiased estimates, averaged over four steps."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(), torch.randn(4, 24, 3).double()
    w = [p.detach().numpy().copy() for p in model.parameters()]
    v = [each.copy() for each in w]
    twin, average = copy.deepcopy(model), np.zeros(2)
    optimizer = AdaScale(model.parameters(), 0.6, momentum=0.8, base_batch_size=4, norms=PerSampleNorms(model))
    for samples in x:
        single = []
        for sample in samples:
            twin.zero_grad()
            twin(sample).square().sum().backward()
            single.append(np.concatenate([p.grad.flatten() for p in twin.parameters()]))
        mean = np.mean(single, 0)
        variance = np.var(single, 0, ddof=1).sum()
        average = (1 - 6 / 1000) * average + 6 / 1000 * np.array([(mean**2).sum() - variance / 24, variance / 4])
        square, noise = average
        rate = 0.6 / 6 * (noise + square) / (noise / 6 + square)
        for half in samples.split(12):
            (model(half).square().sum() / 24).backward()
        optimizer.step()
        optimizer.zero_grad()
        for k, (p, q) in enumerate(zip(model.parameters(), twin.parameters(), strict=True)):
            size = sum(each.size for each in w[:k])
            new = w[k] - rate * mean[size : size + w[k].size].reshape(w[k].shape)
            w[k], v[k] = new + 0.8 * (new - v[k]), new
            np.testing.assert_allclose(p.detach().numpy(), w[k], rtol=1e-9)
            assert optimizer.layer_rates()[p].item() == pytest.approx(rate)
            q.data.copy_(p)


@pytest.mark.parametrize(("square", "noise", "gain"), [(1, 0, 1), (0, 1, 8), (-1, 2, 8), (1, 8, 4.5), (0, 0, 1)])
def test_the_gain_is_between_1_and_all_batches(square, noise, gain):
    assert adascale_gain(torch.tensor(float(square)), torch.tensor(float(noise)), 8).item() == gain


def test_adascale_in_a_trainer_goes_on_as_if_it_had_not_been_cut_off(tmp_path):
    """Its averages are in checkpoints; γ_k and M_k are recorded; nothing is measured afterwards."""
    options = {
        "optim": "adascale", "base_learning_rate": 0.1, "base_batch_size": 4, "total_batch_size": 16,
        "learning_rate": None, "num_train_epochs": 3, "save_strategy": "epoch", "layer_statistics_steps": 2,
    }  # fmt: skip
    trainers = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        trainer = ClarsTrainer(seeded(), arguments(tmp_path, **options), train_dataset=dataset(64))
        trainer.train(resume_from_checkpoint=resume)
        trainers.append(trainer)
    assert_same_weights(*trainers)
    optimizer = trainers[0].optimizer.optimizer
    assert (type(optimizer), optimizer.base_batch_size, optimizer.defaults["lr"]) == (AdaScale, 4, 0.4)
    assert not watches_of(trainers[0].model)
    for layers in layer_statistics(tmp_path):
        assert all({"gamma", "variance_factor"} <= entry.keys() for entry in layers["layers"].values())


def test_adascale_refuses_what_it_cannot_use():
    with pytest.raises(UserError, match="base_batch_size=0 must be a whole number"):
        AdaScale(layers_of((2, 2)), 1.0, base_batch_size=0, norms=PerSampleNorms(nn.Linear(2, 2)))


# --- CLARS or LARS, and then mNAG ----------------------------------------------------------------------------------


def test_uniform_groups_go_on_as_nesterov_sgd_and_ask_for_no_norms():
    mine = layers_of((4, 3), (6,))
    norms = {}
    clars = CLARS(mine, 0.7, eta=0.02, norms=norms)
    for _ in range(3):
        set_gradients(mine)
        norms[mine[0]] = 2 * mine[0].grad.norm()
        clars.step()
    theirs = twins_of(mine)
    sgd = torch.optim.SGD(theirs, 0.7, momentum=0.9, nesterov=True)
    for a, b in zip(mine, theirs, strict=True):  # u = −γ · torch's buffer, of what is under way
        sgd.state[b]["momentum_buffer"] = -clars.state[a]["momentum_buffer"] / 0.7
    norms.clear()
    clars.param_groups[0]["uniform"] = True
    for _ in range(4):
        set_gradients(mine, theirs)
        clars.step()
        sgd.step()
    assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    restored = CLARS(mine, 0.7, norms={})
    restored.load_state_dict(clars.state_dict())
    assert not restored.adapts


def test_checkpoints_from_before_the_option():
    for optimizer in (LARS(layers_of((2, 2)), 1.0), NAG(layers_of((2, 2)), 1.0)):
        state = optimizer.state_dict()
        del state["param_groups"][0]["uniform"]
        optimizer.load_state_dict(state)
        assert optimizer.adapts == isinstance(optimizer, LARS)


def test_an_unannounced_scaler_is_unscaled_in_uniform_groups_too():
    (mine,) = layers_of((3, 3))
    (theirs,) = twins_of([mine])
    ours = CLARS([{"params": [mine], "uniform": True}], 0.1, norms={})
    plain = NAG([theirs], 0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((mine**2).sum()).backward()
    (theirs**2).sum().backward()
    scaler.step(ours)
    plain.step()
    torch.testing.assert_close(mine, theirs)


class Attached(TrainerCallback):
    """Whether the model was measured when a step's gradient was there."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.seen.append(bool(watches_of(model)))


@pytest.mark.parametrize("mode", ["per_sample", "micro_batch", "authors"])
def test_layerwise_epochs_are_followed_by_one_rate_for_all(tmp_path, mode):
    """4 steps an epoch and E = 1.5: six of CLARS, and then γ_scale for each layer, with nothing measured."""
    attached = Attached()
    args = arguments(
        tmp_path, mode=mode, layerwise_epochs=1.5, learning_rate=0.05, total_batch_size=16, num_train_epochs=3,
        layer_statistics_steps=1, lr_scheduler_type="constant",
    )  # fmt: skip
    others = [GradientStatisticsCallback(every=1)] if mode == "per_sample" else []
    trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(64), callbacks=[attached, *others])
    trainer.train()
    assert attached.seen == [mode != "authors"] * 6 + [False] * 6
    lines = layer_statistics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        for layer in line["layers"].values():
            assert ("denominator" in layer) == (line["step"] <= 6)
            assert (layer["gamma"] == pytest.approx(0.05)) == (line["step"] > 6)
    trainer.train()  # begins with CLARS again
    assert attached.seen[12:] == attached.seen[:12]


def resumed_and_whole(tmp_path, stop: int, **options) -> tuple[ClarsTrainer, ClarsTrainer]:
    options = {"total_batch_size": 16, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3, **options}

    def run(folder: str, *callbacks, **keywords) -> ClarsTrainer:
        args = arguments(tmp_path / folder, **options)
        trainer = ClarsTrainer(Normed(0.3), args, train_dataset=dataset(64), callbacks=list(callbacks))
        trainer.train(**keywords)
        return trainer

    whole = run("a")
    run("b", StopAfter(stop))
    return whole, run("b", resume_from_checkpoint="auto")


@pytest.mark.parametrize(
    ("mode", "stop"),
    [
        ("per_sample", 4),
        ("authors", 7),
        *(pytest.param("per_sample", stop, marks=pytest.mark.slow) for stop in (7, 10)),
        *(pytest.param("authors", stop, marks=pytest.mark.slow) for stop in (4, 10)),
    ],
)
def test_resumed_on_either_side_of_the_switch_is_uninterrupted(tmp_path, mode, stop):
    whole, resumed = resumed_and_whole(tmp_path, stop, mode=mode, layerwise_epochs=1.5, learning_rate=0.05)
    assert resumed.state.global_step == 12
    assert_same_weights(whole, resumed)


def resumed_with(tmp_path, before: dict, after: dict) -> ClarsTrainer:
    """Six steps with the options `before`, the rest with `after`."""
    common = {"total_batch_size": 16, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3,
              "learning_rate": 0.05}  # fmt: skip
    first = ClarsTrainer(Normed(), arguments(tmp_path, **common, **before), train_dataset=dataset(64),
                         callbacks=[StopAfter(6)])  # fmt: skip
    first.train()
    trainer = ClarsTrainer(Normed(), arguments(tmp_path, **common, **after), train_dataset=dataset(64))
    trainer.train(resume_from_checkpoint="auto")
    return trainer


def test_a_checkpoint_from_after_the_switch_goes_on_with_clars_where_that_is_asked_for(tmp_path):
    trainer = resumed_with(tmp_path, {"layerwise_epochs": 0.5}, {})
    optimizer = trainer.optimizer.optimizer
    assert optimizer.adapts
    assert len({rate.item() for rate in optimizer.layer_rates().values()}) > 2


@pytest.mark.parametrize("modes", [("per_sample", "authors"), ("authors", "subset")])
def test_a_checkpoint_of_another_method_is_refused(tmp_path, modes):
    with pytest.raises(UserError, match=r"the checkpoint is of optim='clars.*it cannot go on with it"):
        resumed_with(tmp_path, {"mode": modes[0]}, {"mode": modes[1]})


# --- CLARS as its authors released it ------------------------------------------------------------------------------


class Normed(nn.Module):
    """Convolution, BatchNorm, linear."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(64, 3)

    def forward(self, pixel_values, labels=None):
        h = self.dropout(torch.relu(self.norm(self.conv(pixel_values.to(self.head.weight.dtype)))))
        logits = self.head(h.flatten(1))
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def norms_of(model: nn.Module, x, y, size: int) -> dict[str, float]:
    """Each parameter's mean gradient norm over batches of `size`, by ordinary backward passes of a copy."""
    found: dict[str, list[float]] = {}
    for part, target in zip(x.split(size), y.split(size), strict=True):
        twin = copy.deepcopy(model)
        twin.zero_grad()
        twin(part, target)["loss"].backward()
        for name, p in twin.named_parameters():
            found.setdefault(name, []).append(np.linalg.norm(p.grad.numpy()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_extra_passes_measure_and_leave_everything_alone():
    model = Normed().double()
    x, y = torch.randn(24, 1, 4, 4).double(), torch.randint(0, 3, (24,))
    model(x, y)["loss"].backward()
    expected = norms_of(model, x, y, 8)
    gradients = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    pairs = zip(x.split(8), y.split(8), strict=True)
    losses = [lambda part=part, target=target: model(part, target)["loss"] for part, target in pairs]
    norms = mean_gradient_norms(model, list(model.parameters()), losses)
    np.testing.assert_allclose(norms, list(expected.values()), rtol=1e-12)
    with pytest.raises(ZeroDivisionError):
        mean_gradient_norms(model, list(model.parameters()), [losses[0], lambda: 1 / 0])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_the_authors_update_with_and_without_the_cap():
    layers = layers_of((4, 3), (3, 3), (5,))
    optimizer = AuthorsCLARS(layers, 1.0, momentum=0.8, eta=0.01, weight_decay=0.1)
    reference = NumpyAuthors([w.detach().numpy() for w in layers], 0.8, 0.01, 0.1)
    set_gradients(layers)
    with pytest.raises(RuntimeError, match=r"call measured\(\) first, or train with ClarsTrainer"):
        optimizer.step()
    for step in range(4):
        rate = optimizer.param_groups[0]["lr"] = 0.5 / (1 + step)
        measured = [1e-3 * (1 + step), 5.0 + step, None]
        optimizer.measured({w: torch.tensor(d).double() for w, d in zip(layers, measured, strict=True) if d})
        set_gradients(layers)
        optimizer.step()
        gammas = reference.step(rate, [w.grad.numpy() for w in layers], measured)
        assert gammas[0] == 0.1 * rate
        assert gammas[1] < 0.1 * rate
        for w, expected, gamma in zip(layers, reference.w, gammas, strict=True):
            np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-12)
            assert optimizer.layer_rates()[w].item() == pytest.approx(gamma, rel=1e-6)


def test_what_was_measured_without_a_finite_result_does_not_count():
    old, new = layers_of((2, 2), (3, 3))
    optimizer = AuthorsCLARS([old, new], 1.0)
    optimizer.measured({old: torch.tensor(2.0)})
    optimizer.measured({old: torch.tensor(torch.nan), new: torch.tensor(torch.inf)})
    assert optimizer.denominators()[old] == 2
    before = new.detach().clone()
    set_gradients([old, new])
    optimizer.step()
    assert torch.equal(new, before)


class Recording(ClarsTrainer):
    """Remembers each step's micro-batches."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.__dict__.setdefault("seen", []).append({k: v.clone() for k, v in inputs.items()})
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("eta", [1e-2, 1.0])
def test_three_steps_of_the_authors_method_in_numpy(tmp_path, eta):
    """B = 32 in two micro-batches, so four extra passes of 8 after each step; η = 1 makes all layers meet the cap."""
    model = Normed().double()
    start = copy.deepcopy(model)
    args = arguments(
        tmp_path, mode="authors", eta=eta, learning_rate=0.5, weight_decay=0.01, total_batch_size=32, max_steps=3,
        per_device_train_batch_size=16, lr_scheduler_type="constant", layer_statistics_steps=1,
    )  # fmt: skip
    trainer = Recording(model, args, train_dataset=dataset(96))
    trainer.train()

    names = [name for name, _ in start.named_parameters()]
    reference = NumpyAuthors([p.detach().numpy() for p in start.parameters()], 0.9, eta, 0.01)
    denominators: dict[str, float] = {}
    for step, line in enumerate(layer_statistics(tmp_path)):
        parts = trainer.seen[2 * step : 2 * step + 2]
        x, y = (torch.cat([p[key] for p in parts]) for key in ("pixel_values", "labels"))
        denominators = denominators or norms_of(start, x, y, 8)
        start.zero_grad()
        for part in parts:
            (start(**part)["loss"] / 2).backward()
        given = [denominators[n] if n in ("conv.weight", "head.weight") else None for n in names]
        gammas = reference.step(0.5, [p.grad.numpy() for p in start.parameters()], given)
        for name, gamma, denominator in zip(names, gammas, given, strict=True):
            if denominator is not None:
                assert line["layers"][name]["gamma"] == pytest.approx(gamma, rel=1e-6)
                assert line["layers"][name]["denominator"] == pytest.approx(denominator, rel=1e-6)
                assert (gamma == 0.1 * 0.5) == (eta == 1.0)
        with torch.no_grad():
            for p, w in zip(start.parameters(), reference.w, strict=True):
                p.copy_(torch.from_numpy(w))
        denominators = norms_of(start, x, y, 8)
    assert_close(model.parameters(), start.parameters(), rtol=1e-6, atol=1e-9)
    assert_close(model.buffers(), start.buffers(), rtol=1e-6, atol=1e-9)  # as if there were no extra passes


@pytest.mark.parametrize(
    ("count", "size", "world_size", "kept"),
    [
        (1, 1024, 1, 512), (4, 256, 1, 512), (4, 256, 2, 256), (4, 256, 3, 168), (1, 100, 1, 96), (3, 10, 1, 24),
        (1, 5, 1, 5), (2, 3, 1, 6), (1000, 16, 1, 512), (2, 64, 100, 8),
    ],
)  # fmt: skip
def test_how_many_samples_are_kept(count, size, world_size, kept):
    parts = [samples_to_keep(i, count, size, world_size) for i in range(count)]
    assert sum(parts) == kept
    assert max(parts) - min(parts) <= 1
    assert max(parts) <= size


def one_of_the_processes(rank: int, folder: Path, size: int) -> None:
    args = arguments(folder, mode="authors", total_batch_size=64, per_device_train_batch_size=size, max_steps=4)
    trainer = ClarsTrainer(seeded(), args, train_dataset=Ordered(320))
    trainer.train()
    assert trainer.args.world_size == 16 // size
    if rank == 0:
        torch.save(trainer.model.state_dict(), folder / f"{size}.pt")


def test_two_processes_of_the_authors_mode_are_one(tmp_path):
    for world_size, size in ((1, 16), (2, 8)):
        by_two(one_of_the_processes, tmp_path, size, world_size=world_size)
    one, two = (torch.load(tmp_path / f"{size}.pt", weights_only=True) for size in (16, 8))
    assert_close(two.values(), one.values(), rtol=1e-5, atol=1e-7)


# --- LAMB ----------------------------------------------------------------------------------------------------------


def test_lamb_is_lamb(tmp_path):
    """`r = m̂ / (√v̂ + ε) + λ w`, `w ← w − γ ‖w‖/‖r‖ r` (You et al. 2020), and no ratio for what is not decayed."""
    model = Classifier().double()
    args = arguments(
        tmp_path, optim="lamb", learning_rate=0.01, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6
    )
    trainer = ClarsTrainer(model, args, train_dataset=dataset(64))
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, Lamb)
    assert optimizer.defaults["max_grad_norm"] is None
    parameters = list(model.parameters())
    w = [p.detach().numpy().copy() for p in parameters]
    m, v = ([np.zeros_like(x) for x in w] for _ in range(2))
    for step in range(1, 4):
        set_gradients(parameters)
        optimizer.step()
        for k, p in enumerate(parameters):
            g, decay = p.grad.numpy(), 0.1 if p.ndim >= 2 else 0.0
            m[k] = 0.8 * m[k] + 0.2 * g
            v[k] = 0.9 * v[k] + 0.1 * g**2
            r = m[k] / (1 - 0.8**step) / (np.sqrt(v[k] / (1 - 0.9**step)) + 1e-6) + decay * w[k]
            w[k] = w[k] - 0.01 * (np.linalg.norm(w[k]) / np.linalg.norm(r) if decay else 1.0) * r
            np.testing.assert_allclose(p.detach().numpy(), w[k], rtol=1e-8, atol=1e-12)


# --- names, options and errors -------------------------------------------------------------------------------------


def test_methods_are_chosen_by_name(tmp_path):
    def optimizer(**options):
        args = arguments(tmp_path, weight_decay=0.1, **options)
        return ClarsTrainer(seeded(), args, train_dataset=dataset(16)).create_optimizer()

    mnag = optimizer(optim="mnag", optim_args="momentum=0.5")
    assert isinstance(mnag, NAG)
    assert [(g["momentum"], g["weight_decay"]) for g in mnag.param_groups] == [(0.5, 0.1), (0.5, 0.0)]
    for options in ({"mode": "authors"}, {"optim_args": "mode=authors"}):
        authors = optimizer(**options)
        assert isinstance(authors, AuthorsCLARS)
        assert [(g["bias_and_norm"], g["weight_decay"]) for g in authors.param_groups] == [("authors", 0.1)] * 2
    assert optimizer(mode="authors", bias_and_norm="eta").param_groups[1]["bias_and_norm"] == "eta"
    for options in ({}, {"optim": "lars"}):
        assert optimizer(**options).param_groups[1]["bias_and_norm"] == "eta"


def test_what_needs_clars_trainer(tmp_path):
    args = TrainingArguments(
        str(tmp_path), optim="clars", optim_args="mode=authors", learning_rate=1.0, max_grad_norm=0.0, report_to=[],
        use_cpu=True,
    )  # fmt: skip
    with pytest.raises(UserError, match="mode='authors' needs ClarsTrainer"):
        Trainer(seeded(), args, train_dataset=dataset(16)).create_optimizer()
    with pytest.raises(UserError, match="mode='authors'"):
        PerSampleNorms(seeded(), "authors")


def test_fsdp_is_refused_in_the_authors_mode(tmp_path):
    trainer = ClarsTrainer(seeded(), arguments(tmp_path, mode="authors"), train_dataset=dataset(16))
    trainer.is_fsdp_enabled = True
    with pytest.raises(UserError, match="which FSDP does not allow: use DDP"):
        AuthorsNorms(trainer).on_train_begin(None, None, None, optimizer=AuthorsCLARS(layers_of((2, 2)), 1.0))
