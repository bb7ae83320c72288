"""GradientStatisticsCallback: unbiased estimates, exact numbers, and a training that does not notice it."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_clars import (
    ClarsTrainer,
    ClarsTrainingArguments,
    GradientStatisticsCallback,
    PerSampleNorms,
    UserError,
    formulas,
)
from hf_clars.statistics.noise_scale import noise_statistics
from hf_clars.trainer.callbacks.gradient_statistics import MeasuredGradient
from hf_clars.trainer.measuring import OwnNorms
from hf_clars.trainer.seams import calling_trainer

from .helpers import processes
from .helpers.models import Classifier, dataset
from .helpers.processes import run_script
from .helpers.slow import slow_but
from .helpers.wandb_files import offline_runs

DATA = [{**e, "pixel_values": e["pixel_values"].double()} for e in dataset(16)]


QUIET = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}


def arguments(folder, **options) -> TrainingArguments:
    defaults = {**QUIET, "learning_rate": 0.01, "per_device_train_batch_size": 16, "max_steps": 3}
    return TrainingArguments(output_dir=str(folder), **{**defaults, **options})


def clars_arguments(folder, **options) -> ClarsTrainingArguments:
    return ClarsTrainingArguments(str(folder), learning_rate=1.0, total_batch_size=16, **{**QUIET, **options})


def classifier() -> Classifier:
    torch.manual_seed(1)
    return Classifier().double()


def train(folder, model=None, *, callback=None, more=(), data=DATA, trainer_class=Trainer, resume=None, **options):
    callback = GradientStatisticsCallback(every=1) if callback is None else callback
    of_trainer = {"compute_loss_func": options.pop("compute_loss_func", None)}
    trainer = trainer_class(
        model or classifier(),
        arguments(folder, **options),
        train_dataset=data,
        callbacks=[callback, *more],
        **of_trainer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "gradient_statistics.jsonl").read_text().splitlines()]


# --- the estimates ---------------------------------------------------------------------------------------------------


def gaussian(samples: int) -> tuple[torch.Tensor, float, float]:
    """Draws `z` of a normal distribution with mean G and covariance Σ: `[samples, 6]`, `|G|²`, `tr Σ`."""
    mean = torch.tensor([0.5, -0.2, 0.1, 0.0, 0.3, -0.4], dtype=torch.float64)
    root = torch.tril(torch.arange(36, dtype=torch.float64).reshape(6, 6) % 5 - 1.5)
    z = mean + torch.randn(samples, 6, dtype=torch.float64) @ root.T
    return z, float(mean.square().sum()), float(root.square().sum())


def assert_mean(values: torch.Tensor, truth: float) -> None:
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - truth) < 4 * error
    assert error < 0.2 * truth  # or the test would see nothing


@pytest.mark.parametrize(("small", "big"), [(1, 2), (1, 8), (4, 8)])
def test_estimates_are_unbiased(small, big):
    z, gradient, noise = gaussian(200_000 * big)
    batches = z.view(200_000, big // small, small, 6).mean(2)
    estimates = formulas.gradient_and_noise(
        batches.square().sum(-1).mean(1), small, batches.mean(1).square().sum(-1), big
    )
    assert_mean(estimates[0], gradient)
    assert_mean(estimates[1], noise)


def test_noise_scale_where_there_is_none():
    gradient, noise = torch.tensor([2.0, 0.0, -1.0, 2.0, math.nan]), torch.tensor([6.0, 1.0, 1.0, -1e-9, 1.0])
    assert formulas.noise_scale(gradient, noise)[:4].tolist() == [3.0, math.inf, math.inf, 0.0]
    assert formulas.noise_scale(gradient, noise)[4].isnan()
    estimates = formulas.gradient_and_noise(torch.ones(1), 1, torch.ones(1), 1)
    assert not torch.stack(estimates).isfinite().any()


class Inner(nn.Module):
    """`f_i = ⟨w, z_i⟩`, so that `∇f_i = z_i` whatever w is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1, bias=False, dtype=torch.float64)

    def forward(self, z, labels=None):
        return {"loss": self.layer(z).mean()}


@pytest.mark.slow  # what its parts imply
def test_a_known_gaussian_gradient_is_found(tmp_path):
    z, gradient, noise = gaussian(32_000)
    callback = GradientStatisticsCallback(every=1, smoothing=0)
    options = {"per_device_train_batch_size": 40, "gradient_accumulation_steps": 2, "max_steps": 400}
    train(tmp_path, Inner(), callback=callback, data=[{"z": row} for row in z], **options)
    found = [r["model"] for r in records(tmp_path)]
    assert len(found) == 400
    assert_mean(torch.tensor([r["gradient_square"] for r in found]), gradient)
    assert_mean(torch.tensor([r["noise_trace"] for r in found]), noise)
    averaged = train(
        tmp_path, Inner(), callback=GradientStatisticsCallback(every=1, smoothing=0.999),
        data=[{"z": row} for row in z], **options,
    )  # fmt: skip
    last = [e for e in averaged.state.log_history if "gradient_noise_scale" in e][-1]
    assert last["gradient_noise_scale"] == pytest.approx(noise / gradient, rel=0.1)


# --- exact numbers ---------------------------------------------------------------------------------------------------


def expected(model: nn.Module, bias_and_norm: bool = True) -> dict:
    """Statistics of one step over DATA, by a loop of batch 1 in float64."""
    parameters = {n: p for n, p in model.named_parameters() if bias_and_norm or p.ndim >= 2}
    gradients = []
    for example in DATA:
        batch = {"pixel_values": example["pixel_values"][None], "labels": torch.tensor([example["labels"]])}
        gradients.append(torch.autograd.grad(model(**batch)["loss"], list(parameters.values())))
    n = len(DATA)
    mean_square = {name: sum(float(g[k].square().sum()) for g in gradients) / n for k, name in enumerate(parameters)}
    square = {name: float((sum(g[k] for g in gradients) / n).square().sum()) for k, name in enumerate(parameters)}

    def statistics(small: float, big: float) -> dict:
        gradient, noise = (n * big - small) / (n - 1), (small - big) / (1 - 1 / n)
        values = {"gradient_square": gradient, "noise_trace": noise, "gradient_variance_factor": small / big}
        if gradient > 0:
            values |= {"gradient_noise_scale": noise / gradient, "gradient_noise_scale_raw": noise / gradient}
        return values

    return {
        "model": statistics(sum(mean_square.values()), sum(square.values())),
        "layers": {m: statistics(mean_square[m], square[m]) for m in parameters if parameters[m].ndim >= 2},
    }


def assert_first_is_expected(folder, model: nn.Module, bias_and_norm: bool = True) -> None:
    first, truth = records(folder)[0], expected(model, bias_and_norm)
    assert (first["step"], first["samples"]) == (1, 16)
    assert first["model"] == pytest.approx(truth["model"], rel=1e-6)
    assert first["layers"].keys() == truth["layers"].keys() == {"conv.weight", "head.weight"}
    for name, layer in truth["layers"].items():
        assert first["layers"][name] == pytest.approx(layer, rel=1e-6)


FAST = {("adamw_torch", 16, 1e-3), ("sgd", 4, 0.0), ("lars", 4, 1.0)}
CASES = itertools.product(("adamw_torch", "sgd", "lars"), (16, 4), (0.0, 1e-3, 1.0))


@pytest.mark.parametrize(("optim", "size", "max_grad_norm"), slow_but(FAST, CASES))
def test_numbers_are_those_of_a_loop_of_batch_1(tmp_path, optim, size, max_grad_norm):
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
    trainer = train(tmp_path, optim=optim, max_grad_norm=max_grad_norm, **options)
    assert_first_is_expected(tmp_path, classifier())
    assert [r["step"] for r in records(tmp_path)] == [1, 2, 3]
    assert vars(trainer.accelerator).get("clip_grad_norm_") is None


@pytest.mark.parametrize("bias_and_norm", ["eta", "paper"])
def test_the_norms_of_clars_are_used(tmp_path, bias_and_norm):
    options = {
        "optim": "clars",
        "optim_args": f"bias_and_norm={bias_and_norm}",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
    }
    trainer = train(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, **options)
    assert_first_is_expected(tmp_path, classifier(), bias_and_norm == "paper")
    PerSampleNorms.detach_all(trainer.model)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "layer_statistics.jsonl").read_text().splitlines()]


def test_in_clars_trainer(tmp_path):
    args = clars_arguments(tmp_path, per_device_train_batch_size=4, max_steps=2, layer_statistics_steps=1)
    callback = GradientStatisticsCallback(every=1)
    ClarsTrainer(classifier(), args, train_dataset=DATA, callbacks=[callback]).train()
    assert_first_is_expected(tmp_path, classifier(), False)
    for one, other in zip(records(tmp_path), lines(tmp_path), strict=True):
        for name, layer in one["layers"].items():
            factor = other["layers"][name]["variance_factor"]
            assert layer["gradient_variance_factor"] == pytest.approx(factor, rel=1e-6)


def test_beside_layer_statistics_at_other_steps(tmp_path):
    """Both look at gradients before they are clipped; each at its own steps, and nothing is left behind."""
    args = clars_arguments(tmp_path, per_device_train_batch_size=16, max_steps=6, layer_statistics_steps=2)
    trainer = ClarsTrainer(classifier(), args, train_dataset=DATA, callbacks=[GradientStatisticsCallback(every=3)])
    trainer.train()
    assert [r["step"] for r in records(tmp_path)] == [3, 6]
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 5]
    assert "clip_grad_norm_" not in vars(trainer.accelerator)


def test_a_loss_normalised_over_the_whole_step(tmp_path):
    def loss(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    train(tmp_path, compute_loss_func=loss, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert_first_is_expected(tmp_path, classifier())


class Scaled(Trainer):
    """fp16's loss scale without a GPU, which accelerate wants for it."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=1)
        self.accelerator.unscale_gradients = lambda: self.accelerator.scaler.unscale_(optimizer)
        return optimizer


def test_loss_scale_is_taken_out(tmp_path):
    train(tmp_path / "plain", max_grad_norm=1e-3)
    train(tmp_path / "scaled", max_grad_norm=1e-3, trainer_class=Scaled)
    assert_first_is_expected(tmp_path / "scaled", classifier())
    for a, b in zip(records(tmp_path / "plain"), records(tmp_path / "scaled"), strict=True):
        assert a["model"] == pytest.approx(b["model"], rel=1e-6)


def test_an_overflow_leaves_no_record(tmp_path):
    class Overflowing(Scaled):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * (math.inf if self.state.global_step == 0 else 1.0)

    train(tmp_path, trainer_class=Overflowing)
    found = records(tmp_path)
    assert [r["step"] for r in found] == [2, 3]
    assert all(math.isfinite(v) for r in found for v in r["model"].values())


def test_averages_are_kept_apart_and_survive_a_checkpoint(tmp_path):
    options = {"per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}

    def callback(smoothing):
        return GradientStatisticsCallback(every=1, smoothing=smoothing)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    train(tmp_path / "raw", callback=callback(0), **options)
    train(tmp_path / "whole", callback=callback(0.5), **options)
    train(tmp_path / "cut", callback=callback(0.5), more=[Stop()], **options)
    train(tmp_path / "cut", callback=callback(0.5), resume=str(tmp_path / "cut" / "checkpoint-2"), **options)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")

    gradient = noise = weight = 0.0
    for raw, record in zip(records(tmp_path / "raw"), records(tmp_path / "whole"), strict=True):
        gradient = 0.5 * gradient + raw["model"]["gradient_square"]
        noise = 0.5 * noise + raw["model"]["noise_trace"]
        weight = 0.5 * weight + 1
        assert record["model"]["gradient_square"] == pytest.approx(gradient / weight)
        assert record["model"]["noise_trace"] == pytest.approx(noise / weight)
        if gradient > 0:
            assert record["model"]["gradient_noise_scale"] == pytest.approx(noise / gradient)


def test_a_checkpoint_that_knows_no_such_callback(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    Trainer(classifier(), arguments(tmp_path, max_steps=1, **options), train_dataset=DATA).train()
    train(tmp_path, resume=True, **options)
    assert [r["step"] for r in records(tmp_path)] == [2, 3]


# --- a training that does not notice ---------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """The optimizer steps that begin with a measured model; to be added after the callback it watches."""

    def __init__(self, model: nn.Module) -> None:
        self.steps: list[int] = []
        self.model = model

    def on_step_begin(self, args, state, control, **kwargs):
        if "forward" in vars(self.model.head):
            self.steps.append(state.global_step + 1)


def test_only_reported_steps_are_measured_and_the_training_is_the_same(tmp_path):
    weights = []
    for callback in (GradientStatisticsCallback(every=3), None):
        model = classifier()
        watch = Watch(model)
        callbacks = [c for c in (callback, watch) if c is not None]
        args = arguments(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2, max_steps=7)
        trainer = Trainer(model, args, train_dataset=DATA, callbacks=callbacks)
        trainer.train()
        weights.append([p.detach() for p in model.parameters()])
        assert watch.steps == ([3, 6] if callback else [])
        assert sum("loss" in entry for entry in trainer.state.log_history) == 7
        reported = [e["step"] for e in trainer.state.log_history if "gradient_variance_factor" in e]
        assert reported == ([3, 6] if callback else [])
        PerSampleNorms(model).detach()  # nothing is left attached
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own look at its tensors
def test_a_compiled_model_stays_attached(tmp_path):
    model = classifier()
    watch = Watch(model)
    args = arguments(tmp_path, torch_compile=True, torch_compile_backend="aot_eager", max_steps=4)
    callbacks = [GradientStatisticsCallback(every=2), watch]
    Trainer(model, args, train_dataset=DATA, callbacks=callbacks).train()
    assert watch.steps == [1, 2, 3, 4]
    assert "forward" not in vars(model.head)
    plain = train(tmp_path / "plain", callback=GradientStatisticsCallback(every=2), max_steps=4)
    assert "forward" not in vars(plain.model.head)
    for a, b in zip(records(tmp_path), records(tmp_path / "plain"), strict=True):
        assert a["model"] == pytest.approx(b["model"], rel=1e-6)


class Unsized(IterableDataset):
    def __init__(self, size: int) -> None:
        self.examples = [*DATA, *DATA, *DATA][:size]

    def __iter__(self):
        return iter(self.examples)


def test_a_step_cut_short_by_the_end_of_the_data_is_not_reported(tmp_path):
    """20 examples at 4 × 4: a pass ends one micro-batch into its second step, and plain Trainer keeps that gradient."""
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 4}
    trainer = train(tmp_path, data=Unsized(20), **options)
    assert trainer.state.global_step == 4
    assert [r["step"] for r in records(tmp_path)] == [1]
    assert vars(trainer.accelerator).get("clip_grad_norm_") is None


def test_after_an_interrupted_training_the_next_one_works(tmp_path):
    class Interrupted(Trainer):
        def compute_loss(self, *args, **kwargs):
            raise KeyboardInterrupt

    model = classifier()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model, trainer_class=Interrupted)
    train(tmp_path, model)
    assert_first_is_expected(tmp_path, classifier())
    PerSampleNorms(model).detach()


def test_a_last_batch_of_one_sample_is_passed_over(tmp_path):
    train(tmp_path, data=DATA[:9], per_device_train_batch_size=8, max_steps=4)
    assert [r["step"] for r in records(tmp_path)] == [1, 3]


# --- several processes -----------------------------------------------------------------------------------------------


def in_two(rank: int, folder: Path) -> None:
    """A training by two processes; and a measured step of FSDP2, which accelerate wants a GPU for."""
    train(folder / "two", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    model, mine = classifier(), DATA[rank::2]
    for layer in (model.conv, model.head, model):
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    with PerSampleNorms(model) as norms:
        for i, part in enumerate([mine[:4], mine[4:]]):
            model.set_requires_gradient_sync(i == 1)
            images = torch.stack([e["pixel_values"] for e in part])
            (model(images, torch.tensor([e["labels"] for e in part]))["loss"] / 2).backward()
        names, samples, squares = MeasuredGradient.of(norms, None)
    whole, layers = noise_statistics(squares, samples, names, {}, 0)
    if rank == 0:
        (folder / "sharded").mkdir()
        record = {"step": 1, "samples": samples, "model": whole, "layers": layers}
        (folder / "sharded" / "gradient_statistics.jsonl").write_text(json.dumps(record) + "\n")


def test_two_processes_and_two_shards_are_one_process(tmp_path):
    processes.by_two(in_two, tmp_path)
    assert_first_is_expected(tmp_path / "two", classifier())
    assert_first_is_expected(tmp_path / "sharded", classifier())
    train(tmp_path / "one", per_device_train_batch_size=8, gradient_accumulation_steps=2)
    for a, b in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert a["model"] == pytest.approx(b["model"], rel=1e-5)


# --- reporters -------------------------------------------------------------------------------------------------------

SCRIPT = """
import os
os.environ["WANDB_MODE"] = "offline"
from transformers import Trainer, TrainingArguments
from hf_clars import ClarsTrainer, ClarsTrainingArguments, GradientStatisticsCallback
from tests.helpers.models import Classifier, dataset

args = TrainingArguments(
    "run", report_to="wandb", per_device_train_batch_size=32, num_train_epochs=2, logging_steps=1, use_cpu=True,
    save_strategy="no", disable_tqdm=True, run_name="offline test",
)
Trainer(Classifier(), args, train_dataset=dataset(64), callbacks=[GradientStatisticsCallback(every=2)]).train()
"""


@pytest.mark.slow
def test_wandb(tmp_path):
    run_script(SCRIPT, tmp_path)
    (written,) = offline_runs(tmp_path)
    keys = {key for row in written.history for key in row}
    assert {"train/loss", "train/gradient_variance_factor"} <= keys
    assert {f"gradients/gradient_variance_factor/{name}" for name in ("conv.weight", "head.weight")} <= keys
    assert "gradient panels/M_k" in {key.partition("_table")[0] for key in keys}


@pytest.mark.slow
def test_wandb_beside_the_layer_statistics_of_clars(tmp_path):
    ours = SCRIPT.replace("TrainingArguments(", "ClarsTrainingArguments(layer_statistics_steps=1, output_dir=")
    run_script(ours.replace("Trainer(Classifier", "ClarsTrainer(Classifier"), tmp_path)
    (written,) = offline_runs(tmp_path)
    keys = {key.partition("_table")[0] for row in written.history for key in row}
    assert {"layers/variance_factor/head.weight", "gradients/gradient_variance_factor/head.weight"} <= keys
    assert {"layer panels/M_k", "gradient panels/M_k"} <= keys


def test_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    callback = GradientStatisticsCallback(every=2)
    train(tmp_path, callback=callback, report_to="tensorboard", max_steps=4)
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    assert [e.step for e in events.Scalars("train/gradient_variance_factor")] == [2, 4]
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_every_must_be_a_count_and_smoothing_a_share():
    for every in (0, -1, 1.5, math.nan, "ten", None):
        with pytest.raises(UserError, match=r"^every must be a whole number of at least 1, got "):
            GradientStatisticsCallback(every=every)
    for smoothing in (-0.1, 1, 1.0, math.nan, math.inf, "much"):
        with pytest.raises(UserError, match=r"^smoothing must be in \[0, 1\), got "):
            GradientStatisticsCallback(smoothing=smoothing)


def test_trainings_that_have_no_noise_scale(tmp_path):
    with pytest.raises(UserError, match="at least 2 samples per optimizer step"):
        train(tmp_path, per_device_train_batch_size=1)
    options = {"optim": "clars", "optim_args": "mode=micro_batch", "learning_rate": 1.0, "max_grad_norm": 0.0}
    with pytest.raises(UserError, match="mode='micro_batch' has none"):
        train(tmp_path, **options)
    model = classifier()
    with PerSampleNorms(model), pytest.raises(UserError, match="another PerSampleNorms is attached"):
        train(tmp_path, model)


def test_outside_a_trainer():
    with pytest.raises(UserError, match=r"works in a transformers\.Trainer only"):
        calling_trainer()


def test_what_cannot_be_measured_is_said_once():
    norms = OwnNorms(classifier())
    norms.detach()
    with pytest.warns(UserWarning, match=r"leaves out 1 parameter\(s\) that cannot be measured, such as a: why"):
        norms.warn_of({"a": "why"})
    norms.warn_of({"a": "why"})
