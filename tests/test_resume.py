"""Going on where a training was: at the end of an epoch, at the last step, with other processes and batch sizes."""

import functools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_clars import ClarsTrainer, Preempted, TrainingFailedError, UserError
from hf_clars.data import TrainStream
from hf_clars.trainer.checkpoints import folders

from .helpers.models import Classifier, dataset
from .helpers.streams import Pictures, Small, poisoned, streaming
from .helpers.training import Call, StopAfter, arguments, assert_close, assert_same_weights, logged, seeded, weights


def trained(*args, resume: str | bool | None = None, stop: int = 0, **options) -> ClarsTrainer:
    trainer = streaming(*args, **options)
    if stop:
        trainer.add_callback(StopAfter(stop))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> ClarsTrainer:
    """12 steps, which nothing has interrupted."""
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    trained(folder, stop=6)
    return folder


@pytest.fixture
def stopped(made, tmp_path) -> Path:
    """What a training that was stopped after 6 steps left: checkpoint-3 and checkpoint-6."""
    return Path(shutil.copytree(made, tmp_path / "stopped"))


def checkpoints(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("checkpoint-*")}


def signalled(number: int, event: str, step: int) -> Call:
    return Call(event, functools.partial(os.kill, os.getpid(), number), step)


# --- it is the same training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "stop"),
    [
        *(("steps", 4), ("epoch", 8)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("steps", 3), ("steps", 12), ("epoch", 3))),
    ],
)
def test_resumed_is_uninterrupted(tmp_path, strategy, stop):
    """Wherever it stops; evaluations at the end of an epoch are neither lost nor influence the training."""
    options = {"eval_strategy": strategy, "eval_steps": 2, "logging_steps": 5, "max_steps": 12}
    whole = trained(tmp_path / "a", seeded(0.3), **options)
    trained(tmp_path / "b", seeded(0.3), stop=stop, **options)
    resumed = trained(tmp_path / "b", seeded(0.3), resume="auto", **options)
    assert resumed.state.global_step == 12
    assert_same_weights(whole, resumed)
    assert logged(whole, "loss", "eval_loss") == logged(resumed, "loss", "eval_loss")
    assert resumed.state.log_history[-1]["train_loss"] == whole.state.log_history[-1]["train_loss"]
    without = trained(tmp_path / "c", seeded(0.3), **{**options, "eval_strategy": "no"})
    assert_same_weights(whole, without)


def test_states_of_callbacks_may_be_restored(stopped, whole):
    resumed = streaming(stopped, restore_callback_states_from_checkpoint=True)
    result = resumed.train(resume_from_checkpoint=True)
    assert_same_weights(whole, resumed)
    assert result.training_loss == result.metrics["train_loss"] == whole.state.log_history[-1]["train_loss"]


def test_other_micro_batches_finish_the_epoch_with_the_same_examples(stopped, tmp_path):
    """16 = 8 × 2 until step 6, 16 = 2 × 8 until step 8: the same samples in every step, so the same training."""
    whole = trained(tmp_path / "whole", stop=8)
    resumed = trained(stopped, resume=True, stop=8, per_device_train_batch_size=2)
    assert_close(weights(whole), weights(resumed), rtol=1e-5, atol=1e-7)


def test_what_has_changed_is_said(stopped, caplog):
    trained(stopped, resume=True, stop=7, size=68, learning_rate=9.0)
    assert caplog.messages == [
        "changed since the checkpoint, and in force from there on: learning_rate 3 → 9",
        "the training data are not those of the checkpoint: the unfinished epoch goes on in another order, so that "
        "some of its examples come again and as many do not come",
    ]


# --- from which checkpoint -----------------------------------------------------------------------------------------


def test_there_is_nothing_to_resume(tmp_path):
    trained(tmp_path / "a", resume="auto", stop=1)
    with pytest.raises(UserError, match=r"resume_from_checkpoint: there is no whole checkpoint in .*/b"):
        trained(tmp_path / "b", resume=True)
    with pytest.raises(UserError, match="is not a whole checkpoint \\(no such folder\\)"):
        trained(tmp_path / "b", resume=str(tmp_path / "c"))


def test_the_newest_checkpoint_is_the_one_written_last(stopped, caplog):
    shutil.rmtree(stopped / "checkpoint-3")
    trained(stopped, stop=4)  # another training, stopped after its checkpoint-3
    message = "has 1 checkpoints of an earlier training, which this one does not go on from; they are in earlier-1 now"
    assert caplog.messages == [f"{stopped} {message}"]
    assert checkpoints(stopped) == {"checkpoint-3"}
    assert checkpoints(stopped / "earlier-1") == {"checkpoint-6"}
    resumed = trained(stopped, resume="auto", stop=5)
    assert [step for step, _ in logged(resumed, "loss")] == [1, 2, 3, 4, 5]


def test_earlier_trainings_are_never_lost(stopped):
    """Neither by the same steps, nor by a limit, nor by going on from one of theirs."""
    before = {step: weights_of(stopped / f"checkpoint-{step}") for step in (3, 6)}
    trained(stopped, stop=7, learning_rate=1.0, save_total_limit=1)
    newer = weights_of(stopped / "checkpoint-6")
    trained(stopped, stop=7, resume=str(stopped / "earlier-1" / "checkpoint-3"), save_total_limit=1)
    assert {step: weights_of(stopped / "earlier-1" / f"checkpoint-{step}") for step in (3, 6)} == before
    assert weights_of(stopped / "earlier-2" / "checkpoint-6") == newer
    assert weights_of(stopped / "checkpoint-6") == before[6] != newer
    assert checkpoints(stopped) == {"checkpoint-6"}


def weights_of(checkpoint):
    return (checkpoint / "model.safetensors").read_bytes()


def test_another_optimizer_or_model_is_an_error(stopped):
    with pytest.raises(UserError, match="the checkpoint is of optim='clars', not 'lars': it cannot go on"):
        trained(stopped, resume=True, optim="lars")
    with pytest.raises(UserError, match="checkpoint-6 is of another model: size mismatch for head"):
        trained(stopped, Classifier(features=4), resume=True)


def test_the_model_alone_is_not_resumed_from(tmp_path, caplog):
    trained(tmp_path, save_only_model=True, stop=3)
    with pytest.raises(UserError, match="there is no whole checkpoint in"):
        trained(tmp_path, resume=True)
    assert "cannot be resumed from: it holds the model alone, and nothing of the optimizer" in caplog.text
    assert (tmp_path / "checkpoint-3").is_dir()


def test_a_folder_without_a_manifest_is_never_whole(stopped, caplog):
    """As another Trainer leaves it, or a deletion that was cut off; however new it looks."""
    (stopped / "checkpoint-6" / "manifest.json").unlink()
    os.utime(stopped / "checkpoint-6", (2**32, 2**32))
    why = "it has no manifest.json: another Trainer wrote it, or it is a part of one that was being deleted"
    with pytest.raises(UserError, match=f"is not a whole checkpoint \\({why}\\)"):
        trained(stopped, resume=str(stopped / "checkpoint-6"))
    resumed = trained(stopped, resume="auto", stop=4)
    assert caplog.messages == [f"{stopped / 'checkpoint-6'} cannot be resumed from: {why}"]
    assert [step for step, _ in logged(resumed, "loss")] == [1, 2, 3, 4]
    assert (stopped / "checkpoint-6").is_dir()  # it may be somebody's
    shutil.rmtree(stopped / "checkpoint-3")
    assert trained(stopped, resume="auto", stop=2).state.global_step == 2


def test_the_newest_stays_where_clocks_go_back_and_others_folders_look_newer(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-99").mkdir(parents=True)
    (tmp_path / "checkpoint-99" / "trainer_state.json").write_text("{}")  # another Trainer's
    os.utime(tmp_path / "checkpoint-99", (2**32, 2**32))
    now = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(folders.time, "time", lambda: next(now))
    for stop in (6, 9):
        trained(tmp_path, save_total_limit=1, stop=stop, resume="auto")
        assert checkpoints(tmp_path) == {f"checkpoint-{stop}"}
    assert checkpoints(tmp_path / "earlier-1") == {"checkpoint-99"}


def test_what_a_kill_left_is_cleared_away_or_used_at_the_next_start(stopped):
    leftovers = [
        "deleted-checkpoint-2",
        "unfinished-checkpoint",
        "replaced-checkpoint-3",
        "deleted-replaced-checkpoint-3",
    ]
    for name in leftovers:
        (stopped / name / "inside").mkdir(parents=True)
        (stopped / name / "inside" / "model.safetensors").touch()
    (stopped / "checkpoint-6").rename(stopped / "replaced-checkpoint-6")  # killed while it was replaced
    assert logged(trained(stopped, resume=True, stop=7), "loss")[-1][0] == 7
    assert {p.name for p in stopped.iterdir() if p.is_dir()} == {"checkpoint-3", "checkpoint-6"}


def test_a_replaced_checkpoint_of_another_training_counts(stopped):
    trained(stopped, save_total_limit=1, max_steps=6)  # replaces each of them
    assert checkpoints(stopped) == {"checkpoint-6"}


def test_the_best_checkpoint_is_kept_and_found(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_strategy": "steps"}
    trainer = trained(tmp_path, eval_steps=3, save_total_limit=2, **best)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    assert len(checkpoints(tmp_path)) == 2


# --- streams and evaluations ---------------------------------------------------------------------------------------


def test_a_stream_of_other_settings_is_an_error(tmp_path):
    stream = TrainStream(Pictures(), total_batch_size=32, seed=0)
    with pytest.raises(UserError, match="total_batch_size is 16 in the arguments and 32 in the TrainStream"):
        ClarsTrainer(seeded(), arguments(tmp_path, total_batch_size=16), train_dataset=stream)


def test_an_evaluation_with_a_batch_of_which_nothing_counts(tmp_path):
    trainer = streaming(tmp_path, per_device_eval_batch_size=1)
    data = [{**e, "labels": -100 if i in (0, 5) else e["labels"]} for i, e in enumerate(dataset(16, 1))]
    usable = [e for e in data if e["labels"] != -100]
    whole, without = trainer.evaluate(data)["eval_loss"], trainer.evaluate(usable)["eval_loss"]
    assert np.isfinite(whole)
    assert whole == pytest.approx(without, rel=0.15)


def test_carried_over_a_run_is_as_long_as_its_passes(tmp_path):
    """64 examples at B = 24: 2 steps in an epoch, and 3 passes are 8 steps where dropping makes 6."""
    options = {"total_batch_size": 24, "per_device_train_batch_size": 12, "save_strategy": "no"}
    for last_batch, steps in (("drop", 6), ("carry", 8)):
        assert trained(tmp_path, last_batch=last_batch, **options).state.global_step == steps
    with pytest.raises(UserError, match="last_batch='carry' needs a TrainStream"):
        ClarsTrainer(seeded(), arguments(tmp_path, last_batch="carry"), train_dataset=dataset(8))
    with pytest.raises(UserError, match="last_batch='keep' is unknown; choose one of drop, carry"):
        arguments(tmp_path, last_batch="keep")


# --- gradients that are not finite -------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["clars", "sgd", pytest.param("lars", marks=pytest.mark.slow)])
def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path, optim):
    options = {"optim": optim, "save_strategy": "no", "max_steps": 3, "lr_scheduler_type": "constant"}
    trainer = streaming(tmp_path, poisoned(4), **options)  # the second micro-batch of step 2
    states = []
    copied = lambda: {name: value.clone() for name, value in trainer.model.state_dict().items()}  # noqa: E731
    trainer.add_callback(Call("on_step_end", lambda: states.append(copied())))
    trainer.train()
    assert trainer.state.global_step == 3
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[1]["conv.weight"], states[2]["conv.weight"])
    assert all(value.isfinite().all() for value in states[2].values())
    losses = logged(trainer, "loss", "skipped_steps")
    assert losses[0][2] is None
    assert np.isnan(losses[1][1])  # of no step at all
    assert losses[1][2] == losses[2][2] == 1
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_the_loss_logged_is_the_mean_of_the_steps_that_count(tmp_path):
    options = {"save_strategy": "no", "max_steps": 4, "learning_rate": 0.0, "lr_scheduler_type": "constant"}
    trainer = trained(tmp_path, poisoned(4), logging_steps=4, **options)
    each = trained(tmp_path, poisoned(), logging_steps=1, **options)
    expected = [loss for step, loss in logged(each, "loss") if step != 2]
    assert logged(trainer, "loss")[0][1] == pytest.approx(np.mean(expected), rel=1e-5)


def test_too_many_in_a_row_end_the_training(tmp_path):
    with pytest.raises(TrainingFailedError, match="the gradients of 3 steps in a row, up to step 4, were not finite"):
        trained(tmp_path, poisoned(*range(3, 99)), max_nonfinite_steps=3, num_train_epochs=9)
    unchecked = trained(tmp_path, poisoned(3), max_nonfinite_steps=0, max_steps=3)
    assert not all(w.isfinite().all() for w in weights(unchecked))


# --- batch sizes that do not fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "list"])
def test_a_batch_size_that_fits_is_found_and_the_total_stays(tmp_path, kind):
    """A second training begins with the running statistics of the first one, and looks for a size again."""
    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 16, "max_steps": 2, "save_strategy": "no"}
    if kind == "stream":
        trainer = streaming(tmp_path, Small(), **options)
    else:
        args = arguments(tmp_path, total_batch_size=16, **options)
        trainer = ClarsTrainer(Small(), args, train_dataset=dataset(64))
    trainer.train()
    assert (trainer.state.global_step, trainer.args.gradient_accumulation_steps) == (2, 4)
    assert trainer.model.sizes == [16, 8, *[4] * 8]
    if kind == "stream":
        assert_same_weights(
            trained(tmp_path, Small(), max_steps=2, save_strategy="no", per_device_train_batch_size=4), trainer
        )
    else:
        trainer.train()
        assert (trainer.args.total_batch_size, int(trainer.model.norm.num_batches_tracked)) == (16, 16)


def test_no_batch_size_fits(tmp_path):
    with pytest.raises(UserError, match="not even one sample a device fits into its memory"):
        trained(tmp_path, Small(room=0), auto_find_batch_size=True, per_device_train_batch_size=2)


# --- a wish to end -----------------------------------------------------------------------------------------------


def test_a_signal_raises_after_a_checkpoint(tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    asked = signalled(signal.SIGUSR1, "on_substep_end", 4)
    with pytest.raises(Preempted, match="stopped by SIGUSR1 after step 5 with a checkpoint") as stop:
        trained(tmp_path, callbacks=[asked], save_strategy="no")
    assert stop.value.code == 75
    assert signal.getsignal(signal.SIGUSR1) is before
    assert checkpoints(tmp_path) == {"checkpoint-5"}


def test_a_signal_where_only_the_best_is_saved(tmp_path):
    options = {"save_strategy": "best", "metric_for_best_model": "chance", "eval_strategy": "steps", "eval_steps": 2}
    asked = signalled(signal.SIGTERM, "on_substep_end", 5)
    trainer = streaming(tmp_path, callbacks=[asked], greater_is_better=False, **options)
    trainer.state.best_metric = -1.0
    with pytest.raises(Preempted, match="after step 6 with a checkpoint in"):
        trainer.train()
    assert (tmp_path / "checkpoint-6" / "manifest.json").is_file()


def test_asked_to_end_it_can_go_on_though_it_saves_the_model_alone(tmp_path, whole):
    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    with pytest.raises(Preempted, match="after step 3 with a checkpoint"):
        trained(tmp_path, callbacks=[signalled(signal.SIGTERM, "on_step_begin", 2)], **options)
    assert not (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    assert_same_weights(whole, trained(tmp_path, resume=True, **options))
