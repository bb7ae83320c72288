"""Evaluating and predicting in the midst of a training, which does not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_clars import ClarsTrainer
from hf_clars.trainer.evaluating import share_buffers

from .helpers.models import Classifier, dataset
from .helpers.processes import by_two
from .helpers.training import Call, StopAfter, accuracy, arguments, assert_equal, logged, without_times


class Noticing(Classifier):
    """With BatchNorm, dropout, and a buffer that every forward pass changes and depends on."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(dropout=0.3)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, pixel_values, labels=None):
        self.passes += 1
        return super().forward(pixel_values * (1 + 0.01 * self.passes), labels)


ASKING = {
    "evaluate": lambda trainer: trainer.evaluate(metric_key_prefix="mine"),
    "evaluate several": lambda trainer: trainer.evaluate(
        {"a": dataset(8, 2), "b": dataset(8, 3)}, metric_key_prefix="mine"
    ),
    "predict": lambda trainer: trainer.predict(dataset(16, 2)),
}


def trainer_of(folder: Path, model: type[Noticing] = Noticing, **options: Any) -> ClarsTrainer:
    defaults = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "logging_steps": 2, "total_batch_size": 16}
    args = arguments(folder, **{**defaults, **options})
    data = {"train_dataset": dataset(64), "eval_dataset": dataset(16, 1)}
    return ClarsTrainer(model(), args, compute_metrics=accuracy, **data)


def trained(folder: Path, event: str = "", method: str = "", **options) -> tuple[list[torch.Tensor], list[dict], str]:
    """Weights and buffers, what the training logged, and its layer statistics; asked by `method` at `event`."""
    trainer, calls = trainer_of(folder, layer_statistics_steps=1, **options), []
    if event:
        trainer.add_callback(Call(event, lambda: calls.append(ASKING[method](trainer))))
    trainer.train()
    assert not event or len(calls) >= 2
    rows = [row for row in trainer.state.log_history if not any(key.startswith("mine") for key in row)]
    statistics = folder / "layer_statistics.jsonl"
    layers = statistics.read_text() if statistics.exists() else ""
    return [*trainer.model.state_dict().values()], without_times(rows), layers


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Trainings with such options that nobody asks for anything, each made once."""
    made: dict[str, tuple] = {}

    def made_with(options: dict) -> tuple:
        if str(options) not in made:
            made[str(options)] = trained(tmp_path_factory.mktemp("undisturbed"), **options)
        return made[str(options)]

    return made_with


EVENTS = (
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_epoch_end",
)
KINDS = [
    {"mode": "authors"},
    {"mode": "per_sample"},
    {"mode": "subset", "norm_samples": 4},
    {"mode": "micro_batch"},
    {"optim": "lars"},
    {"optim": "mnag", "learning_rate": 0.1},
    {"optim": "adamw_torch", "learning_rate": 1e-3},
    {"bias_and_norm": "paper"},
]
QUICK = [
    ("on_substep_end", "evaluate", {"mode": "per_sample"}),
    ("on_substep_end", "predict", {"mode": "per_sample"}),
    ("on_pre_optimizer_step", "evaluate", {"mode": "authors"}),
    ("on_step_end", "predict", {"mode": "authors"}),
]
CASES = [(event, method, options) for event in EVENTS for method in ASKING for options in KINDS]


@pytest.mark.parametrize(
    ("event", "method", "options"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_a_training_does_not_notice(tmp_path, undisturbed, event, method, options):
    # Two epochs, so that the event comes twice.
    options = {**options, "num_train_epochs": 2, "max_steps": -1} if event == "on_epoch_end" else options
    plain, asked = undisturbed(options), trained(tmp_path, event, method, **options)
    assert_equal(plain[0], asked[0])
    assert plain[1:] == asked[1:]


def test_what_is_due_stays_due(tmp_path):
    """An evaluation of one's own, before the training's, is no reason to leave out the training's log."""
    _, rows, _ = trained(tmp_path, "on_step_end", "evaluate", logging_steps=1, eval_steps=1)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval_loss" in row] == [1, 2, 3, 4]


def test_afterwards_the_model_evaluates_as_trainer_leaves_it(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1, eval_strategy="no")
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

    for event, method in (("on_step_end", "evaluate"), ("on_substep_end", "predict")):
        trainer = trainer_of(tmp_path, Slow, max_steps=3, eval_steps=1, logging_steps=1)
        trainer.add_callback(Call(event, lambda trainer=trainer, method=method: ASKING[method](trainer)))
        trainer.train()
        losses = [row for row in logged(trainer, "loss", "seconds", "images_per_second") if row[1] is not None]
        assert [row[2:] for row in losses] == [[2, None], [4, 8], [6, 8]]


# --- several processes -----------------------------------------------------------------------------------------------

BUFFERS = {
    "flags": torch.tensor([True, False]), "count": torch.tensor(3), "halves": torch.ones(3, dtype=torch.bfloat16),
    "rotation": torch.ones(2, dtype=torch.complex64), "turned": torch.arange(6.0).view(2, 3).t(), "none": torch.ones(0),
    "octets": torch.ones(3, dtype=torch.uint8), "wide": torch.ones(2, dtype=torch.float64),
}  # fmt: skip


def share(rank: int) -> None:
    """Buffers of any kind are those of the first process."""
    model = nn.Module()
    for name, value in BUFFERS.items():
        model.register_buffer(name, value.clone() if rank == 0 else torch.zeros_like(value), persistent=name != "wide")
    share_buffers(model, torch.device("cpu"))
    for name, value in BUFFERS.items():
        assert torch.equal(getattr(model, name), value), name
        assert getattr(model, name).stride() == value.stride()


def evaluate(rank: int, folder: Path, part: str, **options: Any) -> None:
    """`whole`; or `cut` short after its fifth step, and `resumed`. Leaves of each rank what it has in the end."""
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 8, "max_steps": 6, "seed": 3}
    saving = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    trainer = trainer_of(folder / ("whole" if part == "whole" else "cut"), **{**sizes, **saving, **options})
    if part == "cut":
        trainer.add_callback(StopAfter(5))
    trainer.train(resume_from_checkpoint=part == "resumed")
    again = trainer.evaluate()["eval_loss"]
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    left = {"state": state, "rows": without_times(trainer.state.log_history), "again": again}
    torch.save(left, folder / f"{part}{rank}.pt")


def share_and_evaluate(rank: int, folder: Path, **options: Any) -> None:
    share(rank)
    for part in ("whole", "cut", "resumed"):
        evaluate(rank, folder, part, **options)


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
    by_two(share_and_evaluate, tmp_path, **options)
    left = [torch.load(tmp_path / f"{part}{r}.pt", weights_only=True) for part in ("whole", "resumed") for r in (0, 1)]
    for one in left:
        assert one["rows"] == left[0]["rows"]
        assert one["again"] == left[0]["again"] == one["rows"][-1]["eval_loss"]
        assert all(torch.equal(value, left[0]["state"][name]) for name, value in one["state"].items())
    saved = Noticing()
    saved.load_state_dict(load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors"))
    saved.eval()
    passes, losses = saved.passes.clone(), []
    for half in range(2):  # each process has one batch
        batch = dataset(16, 1)[8 * half : 8 * half + 8]
        saved.passes.copy_(passes)
        pixels = torch.stack([e["pixel_values"] for e in batch])
        losses.append(saved(pixels, torch.tensor([e["labels"] for e in batch]))["loss"].item())
    assert left[0]["again"] == pytest.approx(sum(losses) / 2, rel=1e-6)
