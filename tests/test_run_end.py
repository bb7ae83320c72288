"""How a run ends: with one evaluation of its last step, and with the word for how it went."""

import json

import pytest
from safetensors.torch import load_file

from hf_clars import TrainingFailedError
from hf_clars.cli import train
from hf_clars.trainer.callbacks.health import StepHealth

from .test_recipe import config, images
from .test_resume import poisoned, streaming
from .test_tracking import state_of

__all__ = ["images"]
SAVING = {"save_strategy": "steps", "save_steps": 2}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}


def rows_of(folder) -> list[dict]:
    return json.loads((folder / "run" / "trainer_state.json").read_text())["log_history"]


def evaluations(folder) -> list[tuple[int, float]]:
    return [(row["step"], row["eval_loss"]) for row in rows_of(folder) if "eval_loss" in row]


@pytest.mark.parametrize(
    ("options", "steps"),
    [  # an epoch has 2 steps
        ({"eval_strategy": "epoch"}, [2, 4]),
        pytest.param({"eval_strategy": "no"}, [4], marks=pytest.mark.slow),
        pytest.param({"eval_strategy": "epoch", "max_steps": 3}, [2, 3], marks=pytest.mark.slow),
        pytest.param({"eval_strategy": "steps", "eval_steps": 2}, [2, 4], marks=pytest.mark.slow),
        pytest.param({"eval_strategy": "steps", "eval_steps": 3}, [3, 4], marks=pytest.mark.slow),
        pytest.param({"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 9}, [4], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_last_step_is_evaluated_once(tmp_path, images, options, steps):
    argv = config(tmp_path, images, **{**SAVING, **options})
    assert train(argv) == 0
    assert [step for step, _ in evaluations(tmp_path)] == steps
    metrics = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert metrics["eval_loss"] == evaluations(tmp_path)[-1][1]
    first = evaluations(tmp_path)
    assert train([*argv, "--resume_from_checkpoint", "auto"]) == 0  # there is nothing left to do
    assert evaluations(tmp_path) == first


@pytest.mark.slow
def test_an_evaluation_of_other_data_is_made_anew(tmp_path, images):
    argv = config(tmp_path, images, eval_strategy="epoch", **SAVING)
    assert train(argv) == 0
    first = evaluations(tmp_path)
    assert train([*argv, "--resume_from_checkpoint", "auto", "--eval_split", "train"]) == 0
    again = evaluations(tmp_path)
    assert again[:-1] == first
    assert again[-1][0] == first[-1][0]
    assert again[-1][1] != first[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [2.0, 60.0])  # with the last model as the best, and with an earlier one
def test_the_metrics_are_those_of_the_model_that_is_saved(tmp_path, images, rate):
    options = {"eval_strategy": "steps", "eval_steps": 2, "num_train_epochs": 3, "learning_rate": rate}
    assert train(config(tmp_path, images, **SAVING, **BEST, **options)) == 0
    measured = evaluations(tmp_path)
    assert [step for step, _ in measured] == [2, 4, 6]
    step, loss = min(measured, key=lambda pair: pair[1])
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["eval_loss"] == loss
    saved, best = (load_file(tmp_path / "run" / part / "model.safetensors") for part in ("", f"checkpoint-{step}"))
    assert all((saved[name] == best[name]).all() for name in best)


# --- how it went -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [1, 3, 6])
def test_one_bad_sample_is_no_divergence(tmp_path, bad):
    """Wherever it comes: its step is left out, and may be the first, one amid others, or the last."""
    options = {"save_strategy": "no", "max_steps": 6, "per_device_train_batch_size": 16}
    trainer = streaming(tmp_path, poisoned(bad), **options)
    trainer.train()
    assert trainer.health.skipped_steps == 1
    assert trainer.health.divergence() is None
    assert state_of(tmp_path) == "finished"


def test_a_short_training_may_diverge_too(tmp_path):
    options = {"save_strategy": "no", "max_steps": 10, "per_device_train_batch_size": 16}
    trainer = streaming(tmp_path, poisoned(*range(4, 99)), **options)
    trainer.train()
    assert trainer.health.divergence() == "the gradients of the last 7 step(s), up to step 10, were not finite"
    assert state_of(tmp_path) == "diverged"
    only = streaming(tmp_path / "only", poisoned(1), **{**options, "max_steps": 1})
    only.train()
    assert state_of(tmp_path / "only") == "diverged"


def test_what_is_lost_in_a_row_is_counted_across_a_resume(tmp_path):
    options = {"save_steps": 2, "per_device_train_batch_size": 16, "max_nonfinite_steps": 3}
    streaming(tmp_path, poisoned(*range(3, 99)), **{**options, "max_steps": 4}).train()
    resumed = streaming(tmp_path, poisoned(*range(1, 99)), **{**options, "max_steps": 8})
    with pytest.raises(TrainingFailedError, match="the gradients of 3 steps in a row, up to step 5, were not finite"):
        resumed.train(resume_from_checkpoint=True)


def test_without_a_check_the_loss_tells(tmp_path):
    options = {"save_strategy": "no", "max_steps": 4, "per_device_train_batch_size": 16, "max_nonfinite_steps": 0}
    streaming(tmp_path / "a", poisoned(2), **options).train()
    assert state_of(tmp_path / "a") == "diverged"
    streaming(tmp_path / "b", poisoned(), **options).train()
    assert state_of(tmp_path / "b") == "finished"


def test_steps_that_a_loss_scale_explains_are_no_divergence(tmp_path, monkeypatch):
    """A GradScaler skips a step whose gradient overflows, and tries a lower scale: the loss is finite."""
    monkeypatch.setattr(StepHealth, "_has_loss_scale", lambda health: True)
    monkeypatch.setattr("hf_clars.ClarsTrainer._get_grad_norm", _overflowing)
    trainer = streaming(tmp_path, save_strategy="no", max_steps=3)
    trainer.train()
    assert (trainer.health.in_a_row, trainer.health.lost_in_a_row) == (3, 0)
    assert state_of(tmp_path) == "finished"


def _overflowing(trainer, model, grad_norm=None):
    trainer.health.observe_gradient(float("inf"))
    return float("inf")


def test_a_program_whose_training_diverged_does_not_exit_with_0(tmp_path, images, capsys):
    options = {"optim": "sgd", "learning_rate": 1e30, "num_train_epochs": 5, "eval_strategy": "no"}
    assert train(config(tmp_path, images, **options)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "up to step 10, were not finite: the training has diverged" in line
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "diverged"
