"""Gradients that are changed between the backward pass and the step are noticed, and nothing else is taken for that."""

import copy
import linecache
import warnings

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_clars import CLARS, ClarsTrainer, PerSampleNorms

from .helpers import processes
from .helpers.models import Classifier, dataset
from .helpers.training import arguments

CHANGED = "gradients were changed between backward() and step()"


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss_of(model) -> torch.Tensor:
    return model(torch.randn(6, 3)).square().sum()


def parts(**options) -> tuple[nn.Module, CLARS]:
    model = network()
    return model, CLARS(model.parameters(), 1e-3, norms=PerSampleNorms(model, **options))


def clip(model) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


def double(model) -> None:
    for parameter in model.parameters():
        parameter.grad *= 2


def replace(model) -> None:
    model[0].weight.grad = model[0].weight.grad / 2


CHANGES = {
    "clip_grad_norm_": clip,
    "clip_grad_value_": lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
    "accelerate": lambda model: Accelerator(cpu=True).clip_grad_norm_(model.parameters(), 1e-3),
    "multiplied": double,
    "replaced": replace,
}


def said(caught) -> list:
    return [w for w in caught if CHANGED in str(w.message)]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("passes", [1, 3])
def test_a_change_is_noticed_once_at_the_line_of_the_step(change, passes):
    model, optimizer = parts()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            for _ in range(passes):
                loss_of(model).backward()
            change(model)
            optimizer.step()
            optimizer.zero_grad()
    (warning,) = said(caught)
    assert warning.filename == __file__
    assert "optimizer.step()" in linecache.getline(__file__, warning.lineno)


@pytest.mark.parametrize(
    "options", [{"mode": "micro_batch"}, {"mode": "subset", "norm_samples": 4, "total_batch_size": 48}], ids=str
)
def test_in_each_mode(options):
    model, optimizer = parts(**options)
    for _ in range(2):
        for _ in range(8):
            loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    loss_of(model).backward()
    clip(model)
    with pytest.warns(UserWarning, match=r"gradients were changed"):
        optimizer.step()


@pytest.mark.slow
def test_in_compiled_models():
    model = network()
    norms = PerSampleNorms(model)
    optimizer, compiled = CLARS(model.parameters(), 1e-3, norms=norms), torch.compile(model, backend="aot_eager")
    for _ in range(2):
        loss_of(compiled).backward()
        optimizer.step()
        optimizer.zero_grad()
    loss_of(compiled).backward()
    clip(model)
    with pytest.warns(UserWarning, match=r"gradients were changed"):
        optimizer.step()


def test_every_512th_gradient_is_looked_at_later():
    model, optimizer = parts()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(514):
            loss_of(model).backward()
            if step > 8:
                clip(model)
            optimizer.step()
            optimizer.zero_grad()
            assert len(said(caught)) == (step >= 512), step
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_clipping_after_gradients_are_unscaled():
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = CLARS(model.parameters(), 1e-3, norms=PerSampleNorms(model), grad_scaler=scaler)
    for clips in (False, True):
        scaler.scale(loss_of(model)).backward()
        scaler.unscale_(optimizer)
        if clips:
            clip(model)
            with pytest.warns(UserWarning, match=r"gradients were changed"):
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


# --- what is legitimate, in which a warning would end the test ------------------------------------------------------


def accumulate(model, optimizer) -> None:
    for _ in range(4):
        (loss_of(model) / 4).backward()
    optimizer.step()


def clip_nothing(model, optimizer) -> None:
    """As Trainer and loops do that want the norm alone."""
    loss_of(model).backward()
    nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    optimizer.step()


def in_a_closure(model, optimizer) -> None:
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)


def zero_a_layer(model, optimizer) -> None:
    """A way to freeze it for a while."""
    loss_of(model).backward()
    model[0].weight.grad.zero_()
    optimizer.step()


def discard(model, optimizer) -> None:
    """As a skipped step does."""
    loss_of(model).backward()
    model.zero_grad()
    (3 * loss_of(model)).backward()
    optimizer.step()


def write_between_passes(model, optimizer) -> None:
    """Which the sums cannot follow either, but then it is no clipping of what is stepped with."""
    loss_of(model).backward()
    double(model)
    loss_of(model).backward()
    optimizer.step()


def twice_through_one_graph(model, optimizer) -> None:
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()


LEGITIMATE = [accumulate, clip_nothing, in_a_closure, zero_a_layer, discard, write_between_passes,
              twice_through_one_graph]  # fmt: skip


@pytest.mark.parametrize("step", LEGITIMATE)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_nothing_else_is_taken_for_a_change(step, set_to_none):
    model, optimizer = parts()
    for _ in range(12):
        step(model, optimizer)
        optimizer.zero_grad(set_to_none)


def test_a_second_loss_that_nobody_watched_is_no_change():
    """It is named for what it is."""
    model, optimizer = parts()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(10):
            loss_of(model).backward()
            (100 * model[0].weight.square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not said(caught)
    assert any("0.weight: its gradient, or part of it, did not come through" in str(w.message) for w in caught)


@pytest.mark.parametrize("announced", [True, False])
def test_a_scaler_is_no_change_though_steps_overflow(announced):
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)
    optimizer = CLARS(model.parameters(), 1e-3, norms=PerSampleNorms(model), grad_scaler=scaler if announced else None)
    for _ in range(24):
        for _ in range(2):
            scaler.scale(loss_of(model)).backward()
        if announced:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        model.zero_grad()
    assert optimizer.layer_rates()


def test_steps_within_the_backward_pass():
    model = network()
    norms = PerSampleNorms(model)
    optimizers = {p: CLARS([p], 1e-3, norms=norms) for p in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(12):
        loss_of(model).backward()


def test_two_optimizers_and_a_copy():
    model = network()
    norms = PerSampleNorms(model)
    optimizers = [CLARS(model[0].parameters(), 1e-3, norms=norms), CLARS(model[2].parameters(), 1e-3, norms=norms)]
    for _ in range(10):
        loss_of(model).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    twin = copy.deepcopy(model)
    assert not any(p._post_accumulate_grad_hooks for p in twin.parameters())


def test_trainers(tmp_path):
    options = {
        "optim": "clars", "learning_rate": 1e-3, "max_steps": 6, "report_to": [], "use_cpu": True,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "save_strategy": "no",
    }  # fmt: skip
    plain = TrainingArguments(str(tmp_path / "plain"), max_grad_norm=0, **options)
    Trainer(Classifier(), plain, train_dataset=dataset(64)).train()
    ClarsTrainer(Classifier(), arguments(tmp_path, max_steps=6), train_dataset=dataset(64)).train()


def test_a_trainer_that_clips(tmp_path):
    args = arguments(tmp_path, max_steps=3, max_grad_norm=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ClarsTrainer(Classifier(), args, train_dataset=dataset(64)).train()
    (warning,) = said(caught)
    assert warning.filename == __file__


@pytest.mark.slow
def test_several_processes(tmp_path):
    processes.by_two(_train_on_ranks, tmp_path, seconds=120)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found == {
            "DDP": 0, "DDP that accumulates": 0, "DDP, bucket views": 0, "reduced by hand": 0,
            "reduced by hand, one rank without samples": 0, "DDP that clips": 1, "FSDP2": 0, "FSDP2 that clips": 1,
        }  # fmt: skip


def _train_on_ranks(rank, folder) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = {}
    for case in (
        "DDP", "DDP that accumulates", "DDP, bucket views", "reduced by hand",
        "reduced by hand, one rank without samples", "DDP that clips", "FSDP2", "FSDP2 that clips",
    ):  # fmt: skip
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        forward = model
        if "FSDP2" in case:
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        elif "DDP" in case:
            forward = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view="views" in case)
        optimizer = CLARS(model.parameters(), 1e-3, norms=PerSampleNorms(model))
        torch.manual_seed(rank)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(10):
                if "accumulates" in case:
                    with forward.no_sync():
                        loss_of(forward).backward()
                empty = "without samples" in case and rank == 1
                (loss_of(forward) * (0 if empty else 1)).backward()
                if "by hand" in case:
                    for parameter in model.parameters():
                        torch.distributed.all_reduce(parameter.grad)
                        parameter.grad /= 2
                if "clips" in case:
                    clip(model)
                optimizer.step()
                optimizer.zero_grad()
        found[case] = len(said(caught))
    torch.save(found, folder / f"{rank}.pt")
