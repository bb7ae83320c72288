"""Evaluating and predicting in the midst of a training, which does not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from hf_clars import ClarsTrainer
from hf_clars.trainer.evaluating import share_buffers

from .helpers.models import Classifier, dataset
from .helpers.processes import by_two
from .test_resume import StopAfter
from .test_trainer import accuracy, arguments

EVENTS = (
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_epoch_end",
)


class Noticing(Classifier):
    """With BatchNorm, dropout, and a buffer that every forward pass changes and depends on."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, pixel_values, labels=None):
        self.passes += 1
        return super().forward(pixel_values * (1 + 0.01 * self.passes), labels)


class Asking(TrainerCallback):
    """Evaluates, or predicts, at an event."""

    def __init__(self, event: str, method: str) -> None:
        self.trainer: ClarsTrainer | None = None
        self.calls = 0
        setattr(self, event, lambda *args, **kwargs: self.ask(method))

    def ask(self, method: str) -> None:
        assert self.trainer is not None
        self.calls += 1
        if method == "evaluate":
            self.trainer.evaluate(metric_key_prefix="mine")
        elif method == "evaluate several":
            self.trainer.evaluate({"a": dataset(8, 2), "b": dataset(8, 3)}, metric_key_prefix="mine")
        else:
            self.trainer.predict(dataset(16, 2))


def trained(folder, callback: Asking | None = None, **options) -> tuple[list[torch.Tensor], list[dict], str]:
    """Weights and buffers, what the training logged, and its layer statistics."""
    torch.manual_seed(1)
    defaults = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "logging_steps": 2}
    args = arguments(folder, total_batch_size=16, layer_statistics_steps=1, **{**defaults, **options})
    trainer = ClarsTrainer(
        Noticing(), args, train_dataset=dataset(32), eval_dataset=dataset(16, 1), compute_metrics=accuracy,
        callbacks=[callback] if callback else None,
    )  # fmt: skip
    if callback is not None:
        callback.trainer = trainer
    trainer.train()
    assert callback is None or callback.calls >= 2
    rows = [
        {k: v for k, v in row.items() if not any(word in k for word in ("second", "runtime", "time", "flos"))}
        for row in trainer.state.log_history
        if not any(key.startswith("mine") for key in row)
    ]
    statistics = folder / "layer_statistics.jsonl"
    layers = statistics.read_text() if statistics.exists() else ""
    return [*trainer.model.state_dict().values()], rows, layers


def assert_unnoticed(folder, event: str, method: str, **options) -> None:
    plain = trained(folder / "plain", **options)
    asked = trained(folder / "asked", Asking(event, method), **options)
    assert all(torch.equal(a, b) for a, b in zip(plain[0], asked[0], strict=True))
    assert plain[1] == asked[1]
    assert plain[2] == asked[2]


@pytest.mark.parametrize("method", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("event", "mode"),
    [("on_substep_end", "per_sample"), ("on_pre_optimizer_step", "authors"), ("on_step_end", "authors")],
)
def test_a_training_does_not_notice(tmp_path, event, method, mode):
    assert_unnoticed(tmp_path, event, method, mode=mode)


@pytest.mark.slow
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("method", ["evaluate", "predict", "evaluate several"])
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "authors"},
        {"mode": "per_sample"},
        {"mode": "subset", "norm_samples": 4},
        {"mode": "micro_batch"},
        {"optim": "lars"},
        {"optim": "mnag", "learning_rate": 0.1},
        {"optim": "adamw_torch", "learning_rate": 1e-3},
        {"bias_and_norm": "paper"},
    ],
    ids=str,
)
def test_a_training_of_any_kind_does_not_notice(tmp_path, event, method, options):
    assert_unnoticed(tmp_path, event, method, **options)


def test_what_is_due_stays_due(tmp_path):
    """An evaluation of one's own, before the training's, is no reason to leave out the training's log."""
    _, rows, _ = trained(tmp_path, Asking("on_step_end", "evaluate"), logging_steps=1, eval_steps=1)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval_loss" in row] == [1, 2, 3, 4]


def test_afterwards_the_model_evaluates_as_trainer_leaves_it(tmp_path):
    torch.manual_seed(1)
    args = arguments(tmp_path, total_batch_size=16, max_steps=1)
    trainer = ClarsTrainer(Noticing(), args, train_dataset=dataset(32), eval_dataset=dataset(16, 1))
    trainer.train()
    assert trainer.model.training
    trainer.evaluate()
    assert not trainer.model.training


def test_evaluations_take_no_time_of_the_training(tmp_path, monkeypatch):
    """Neither `seconds` nor `images_per_second` has it, whoever asks."""
    now = [0.0]
    monkeypatch.setattr("hf_clars.trainer.records.progress.time.monotonic", lambda: now[0])

    class Slow(Noticing):
        def forward(self, pixel_values, labels=None):
            now[0] += 1 if self.training else 1000  # a second for a micro-batch
            return super().forward(pixel_values, labels)

    for asking in (Asking("on_step_end", "evaluate"), Asking("on_substep_end", "predict")):
        torch.manual_seed(1)
        args = arguments(tmp_path, total_batch_size=16, max_steps=3, eval_strategy="steps", eval_steps=1)
        trainer = ClarsTrainer(Slow(), args, train_dataset=dataset(32), eval_dataset=dataset(16, 1), callbacks=[asking])
        asking.trainer = trainer
        trainer.train()
        losses = [row for row in trainer.state.log_history if "loss" in row]
        assert [row["seconds"] for row in losses] == [2, 4, 6]
        assert [row.get("images_per_second") for row in losses] == [None, 8, 8]


# --- several processes -----------------------------------------------------------------------------------------------

BUFFERS = {
    "flags": torch.tensor([True, False]), "count": torch.tensor(3), "halves": torch.ones(3, dtype=torch.bfloat16),
    "rotation": torch.ones(2, dtype=torch.complex64), "turned": torch.arange(6.0).view(2, 3).t(), "none": torch.ones(0),
    "octets": torch.ones(3, dtype=torch.uint8), "wide": torch.ones(2, dtype=torch.float64),
}  # fmt: skip


def share(rank: int, folder: Path) -> None:
    model = nn.Module()
    for name, value in BUFFERS.items():
        model.register_buffer(name, value.clone() if rank == 0 else torch.zeros_like(value), persistent=name != "wide")
    share_buffers(model, torch.device("cpu"))
    for name, value in BUFFERS.items():
        assert torch.equal(getattr(model, name), value), name
        assert getattr(model, name).stride() == value.stride()


def evaluate(rank: int, folder: Path, part: str, **options: Any) -> None:
    """`whole`; or `cut` short after its fourth step, and `resumed`. Leaves of each rank what it has in the end."""
    torch.manual_seed(1)
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    options = {**steps, "max_steps": 8, **options}
    args = arguments(
        folder / ("whole" if part == "whole" else "cut"), total_batch_size=16, per_device_train_batch_size=4,
        per_device_eval_batch_size=8, seed=3, **options,
    )  # fmt: skip
    callbacks = [StopAfter(5)] if part == "cut" else None
    trainer = ClarsTrainer(
        Noticing(), args, train_dataset=dataset(64), eval_dataset=dataset(16, 1), compute_metrics=accuracy,
        callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=part == "resumed")
    again = trainer.evaluate()["eval_loss"]
    rows = [
        {k: v for k, v in row.items() if not any(word in k for word in ("second", "runtime", "time", "flos"))}
        for row in trainer.state.log_history
    ]
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    torch.save({"state": state, "rows": rows, "again": again}, folder / f"{part}{rank}.pt")


def left(folder: Path, part: str) -> list[dict]:
    return [torch.load(folder / f"{part}{rank}.pt", weights_only=True) for rank in range(2)]


def test_buffers_of_any_kind_are_those_of_the_first_process(tmp_path):
    by_two(share, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"mode": "authors"}, marks=pytest.mark.slow),
        pytest.param({"ddp_broadcast_buffers": False}, marks=pytest.mark.slow),
        pytest.param({"optim": "sgd", "learning_rate": 0.1, "eval_strategy": "epoch"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_evaluate_what_is_saved(tmp_path, options):
    """With BatchNorm, and a buffer that the training depends on; uninterrupted and resumed alike, bit for bit."""
    for part in ("whole", "cut", "resumed"):
        by_two(evaluate, tmp_path, part, **options)
    whole, resumed = left(tmp_path, "whole"), left(tmp_path, "resumed")
    for one in (*whole, *resumed):
        assert one["rows"] == whole[0]["rows"]
        assert one["again"] == whole[0]["again"] == one["rows"][-1]["eval_loss"]
        assert all(torch.equal(value, whole[0]["state"][name]) for name, value in one["state"].items())
    saved = Noticing()
    saved.load_state_dict(load_file(tmp_path / "whole" / "checkpoint-8" / "model.safetensors"))
    saved.eval()
    passes, losses = saved.passes.clone(), []
    for half in range(2):  # each process has one batch
        batch = dataset(16, 1)[8 * half : 8 * half + 8]
        saved.passes.copy_(passes)
        pixels = torch.stack([e["pixel_values"] for e in batch])
        losses.append(saved(pixels, torch.tensor([e["labels"] for e in batch]))["loss"].item())
    assert whole[0]["again"] == pytest.approx(sum(losses) / 2, rel=1e-6)
