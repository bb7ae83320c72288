"""How a run ends: with one evaluation of its last step, and with the word for how it went."""

import json

import pytest
import torch

from hf_clars import TrainingFailedError
from hf_clars.cli import train

from .helpers.recipe import config, metrics_of, model_of
from .helpers.streams import poisoned, streaming
from .helpers.training import log_of, state_of

SAVING = {"save_strategy": "steps", "save_steps": 2}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}


def evaluations(folder) -> list[tuple[int, float]]:
    return [(row["step"], row["eval_loss"]) for row in log_of(folder / "run") if "eval_loss" in row]


@pytest.mark.parametrize(
    ("options", "steps"),
    [  # an epoch has 2 steps
        ({"eval_strategy": "epoch"}, [2, 4]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ({"eval_strategy": "no"}, [4]),
                ({"eval_strategy": "epoch", "max_steps": 3}, [2, 3]),
                ({"eval_strategy": "steps", "eval_steps": 2}, [2, 4]),
                ({"eval_strategy": "steps", "eval_steps": 3}, [3, 4]),
                ({"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 9}, [4]),
            )
        ),
    ],
    ids=str,
)
def test_the_last_step_is_evaluated_once(tmp_path, images, options, steps):
    """And not again by a training that goes on with nothing left to do."""
    argv = config(tmp_path, images, **{**SAVING, **options})
    assert train(argv) == 0
    first = evaluations(tmp_path)
    assert [step for step, _ in first] == steps
    assert metrics_of(tmp_path)["eval_loss"] == first[-1][1]
    assert train([*argv, "--resume_from_checkpoint", "auto"]) == 0  # there is nothing left to do
    assert evaluations(tmp_path) == first


@pytest.mark.slow
def test_an_evaluation_of_other_data_is_made_anew(tmp_path, images):
    argv = config(tmp_path, images, eval_strategy="epoch", **SAVING)
    assert train(argv) == 0
    first = evaluations(tmp_path)
    assert train([*argv, "--resume_from_checkpoint", "auto", "--eval_split", "train"]) == 0
    *before, again = evaluations(tmp_path)
    assert (before, again[0]) == (first, first[-1][0])
    assert again[1] != first[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [2.0, 60.0])  # with the last model as the best, and with an earlier one
def test_the_metrics_are_those_of_the_model_that_is_saved(tmp_path, images, rate):
    options = {"eval_strategy": "steps", "eval_steps": 2, "num_train_epochs": 3, "learning_rate": rate}
    assert train(config(tmp_path, images, **SAVING, **BEST, **options)) == 0
    measured = evaluations(tmp_path)
    assert [step for step, _ in measured] == [2, 4, 6]
    step, loss = min(measured, key=lambda pair: pair[1])
    assert metrics_of(tmp_path)["eval_loss"] == loss
    saved, best = (model_of(tmp_path / "run" / part) for part in ("", f"checkpoint-{step}"))
    assert all((saved[name] == best[name]).all() for name in best)


# --- how it went -----------------------------------------------------------------------------------------------------

ALONE = {"save_strategy": "no", "per_device_train_batch_size": 16}  # each step is one forward pass


@pytest.mark.parametrize(
    ("bad", "options", "divergence"),
    [
        ([1], {"max_steps": 6}, None),  # one sample: the first, one amid others, or the last
        ([3], {"max_steps": 6}, None),
        ([6], {"max_steps": 6}, None),
        (range(4, 99), {"max_steps": 10}, "the gradients of the last 7 step(s), up to step 10, were not finite"),
        ([1], {"max_steps": 1}, "the gradients of the last 1 step(s), up to step 1, were not finite"),
    ],
)
def test_one_bad_sample_is_no_divergence_and_a_short_training_may_diverge_too(tmp_path, bad, options, divergence):
    trainer = streaming(tmp_path, poisoned(*bad), **ALONE, **options)
    trainer.train()
    assert trainer.health.divergence() == divergence
    assert state_of(tmp_path) == ("finished" if divergence is None else "diverged")
    assert trainer.health.skipped_steps == len([number for number in bad if number <= options["max_steps"]])


@pytest.mark.parametrize(("bad", "state"), [([2], "diverged"), ([], "finished")])
def test_without_a_check_the_loss_tells(tmp_path, bad, state):
    streaming(tmp_path, poisoned(*bad), **ALONE, max_steps=4, max_nonfinite_steps=0).train()
    assert state_of(tmp_path) == state


def test_what_is_lost_in_a_row_is_counted_across_a_resume(tmp_path):
    options = {"save_steps": 2, "per_device_train_batch_size": 16, "max_nonfinite_steps": 3}
    streaming(tmp_path, poisoned(*range(3, 99)), **{**options, "max_steps": 4}).train()
    resumed = streaming(tmp_path, poisoned(*range(1, 99)), **{**options, "max_steps": 8})
    with pytest.raises(TrainingFailedError, match="the gradients of 3 steps in a row, up to step 5, were not finite"):
        resumed.train(resume_from_checkpoint=True)


def test_steps_that_a_loss_scale_explains_are_no_divergence(tmp_path):
    """A GradScaler skips a step whose gradient overflows, and tries a lower scale: the loss is finite."""

    trainer = streaming(tmp_path, save_strategy="no", max_steps=3)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer.model.head.bias.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    trainer.train()
    assert (trainer.health.in_a_row, trainer.health.lost_in_a_row) == (3, 0)
    assert state_of(tmp_path) == "finished"


def test_a_program_whose_training_diverged_does_not_exit_with_0(tmp_path, images, capsys):
    options = {"optim": "sgd", "learning_rate": 1e30, "num_train_epochs": 5, "eval_strategy": "no"}
    assert train(config(tmp_path, images, **options)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "up to step 10, were not finite: the training has diverged" in line
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "diverged"
