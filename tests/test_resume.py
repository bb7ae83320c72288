"""Going on where a training was: at the end of an epoch, at the last step, with other processes and batch sizes."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hf_clars import ClarsTrainer, Preempted, TrainingFailedError, UserError
from hf_clars.data import TrainStream
from hf_clars.data.chunks import Chunks
from hf_clars.trainer.checkpoints import folders

from .helpers.models import Classifier, dataset
from .test_trainer import arguments, seeded, weights


class Pictures(Chunks):
    """Four examples in each chunk, as `ImageCollator` would leave them."""

    def __init__(self, size: int = 64) -> None:
        self.examples = dataset(size)
        self.sizes = np.full(size // 4, 4, np.int64)

    def read(self, number):
        return self.examples[4 * number : 4 * number + 4]

    def name(self, number):
        return f"chunk {number}"


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([e["pixel_values"] for e in examples]),
        "labels": torch.tensor([e["labels"] for e in examples]),
        "skipped": torch.zeros(4, dtype=torch.int64),
    }


def streaming(folder: Path, model: Classifier | None = None, callbacks=(), size: int = 64, **options) -> ClarsTrainer:
    options = {"total_batch_size": 16, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3, **options}
    args = arguments(folder, remove_unused_columns=False, **options)
    stream = TrainStream(
        Pictures(size), total_batch_size=args.total_batch_size, seed=0, shuffle_buffer=16, last_batch=args.last_batch
    )
    return ClarsTrainer(
        model or seeded(), args, train_dataset=stream, eval_dataset=dataset(16, 1), data_collator=collate,
        callbacks=list(callbacks), compute_metrics=lambda p: {"chance": float(np.random.rand() + torch.rand(()))},
    )  # fmt: skip


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def logged(trainer: ClarsTrainer, *keys: str) -> list:
    return [[e.get(k) for k in ("step", *keys)] for e in trainer.state.log_history if any(k in e for k in keys)]


@pytest.mark.parametrize("stop", [3, 4, 6, 8, 12])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_resumed_is_uninterrupted(tmp_path, stop, strategy):
    """Wherever it stops; evaluations at the end of an epoch are neither lost nor influence the training."""
    options = {"eval_strategy": strategy, "eval_steps": 2, "logging_steps": 5, "max_steps": 12}
    whole = streaming(tmp_path / "a", seeded(0.3), **options)
    whole.train()
    cut = streaming(tmp_path / "b", seeded(0.3), [StopAfter(stop)], **options)
    cut.train()
    resumed = streaming(tmp_path / "b", seeded(0.3), **options)
    result = resumed.train(resume_from_checkpoint="auto")
    assert resumed.state.global_step == 12
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert logged(whole, "loss", "eval_loss") == logged(resumed, "loss", "eval_loss")
    assert result.metrics["train_loss"] == whole.state.log_history[-1]["train_loss"]


def test_evaluation_does_not_change_the_training(tmp_path):
    without = streaming(tmp_path / "a", seeded(0.3), eval_strategy="no")
    without.train()
    with_it = streaming(tmp_path / "b", seeded(0.3), eval_strategy="steps", eval_steps=1)
    with_it.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(without), weights(with_it), strict=True))


def test_there_is_nothing_to_resume(tmp_path):
    streaming(tmp_path / "a").train(resume_from_checkpoint="auto")
    with pytest.raises(UserError, match=r"resume_from_checkpoint: there is no whole checkpoint in .*/b"):
        streaming(tmp_path / "b").train(resume_from_checkpoint=True)
    with pytest.raises(UserError, match="is not a whole checkpoint \\(no such folder\\)"):
        streaming(tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "c"))


def test_the_newest_checkpoint_is_the_one_written_last(tmp_path, caplog):
    streaming(tmp_path, num_train_epochs=3, save_total_limit=2).train()  # leaves checkpoint-9 and checkpoint-12
    streaming(tmp_path, callbacks=[StopAfter(4)]).train()  # another training, stopped after its checkpoint-3
    message = "has 2 checkpoints of an earlier training; this one begins anew, and leaves them alone"
    assert caplog.messages == [f"{tmp_path} {message}"]
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-9", "checkpoint-12"}
    resumed = streaming(tmp_path, callbacks=[StopAfter(5)])
    resumed.train(resume_from_checkpoint="auto")
    assert [e["step"] for e in resumed.state.log_history if "loss" in e] == [1, 2, 3, 4, 5]


def test_other_micro_batches_finish_the_epoch_with_the_same_examples(tmp_path):
    """16 = 8 × 2 until step 6, 16 = 2 × 8 from there on: the same samples in every step, so the same training."""
    whole = streaming(tmp_path / "a", callbacks=[StopAfter(8)])
    whole.train()
    streaming(tmp_path / "b", callbacks=[StopAfter(6)]).train()
    resumed = streaming(tmp_path / "b", callbacks=[StopAfter(8)], per_device_train_batch_size=2)
    resumed.train(resume_from_checkpoint=True)
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_what_has_changed_is_said(tmp_path, caplog):
    streaming(tmp_path, callbacks=[StopAfter(6)]).train()
    streaming(tmp_path, size=68, learning_rate=9.0).train(resume_from_checkpoint=True)
    assert caplog.messages == [
        "changed since the checkpoint, and in force from there on: learning_rate 3 → 9",
        "the training data are not those of the checkpoint: the unfinished epoch goes on in another order, so that "
        "some of its examples come again and as many do not come",
    ]


def test_another_optimizer_or_model_is_an_error(tmp_path):
    streaming(tmp_path, callbacks=[StopAfter(6)]).train()
    with pytest.raises(UserError, match="the checkpoint is of optim='clars', not 'lars': it cannot go on"):
        streaming(tmp_path, optim="lars").train(resume_from_checkpoint=True)
    with pytest.raises(UserError, match="checkpoint-6 is of another model: size mismatch for head"):
        streaming(tmp_path, Classifier(features=4)).train(resume_from_checkpoint=True)


def test_the_model_alone_is_not_resumed_from(tmp_path, caplog):
    streaming(tmp_path, save_only_model=True, callbacks=[StopAfter(6)]).train()
    with pytest.raises(UserError, match="there is no whole checkpoint in"):
        streaming(tmp_path).train(resume_from_checkpoint=True)
    assert "cannot be resumed from: it holds the model alone, and nothing of the optimizer" in caplog.text
    assert (tmp_path / "checkpoint-6").is_dir()


def test_killed_while_a_checkpoint_was_replaced(tmp_path):
    streaming(tmp_path, callbacks=[StopAfter(3)]).train()
    (tmp_path / "checkpoint-3").rename(tmp_path / "replaced-checkpoint-3")
    resumed = streaming(tmp_path, callbacks=[StopAfter(4)])
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def test_states_of_callbacks_may_be_restored(tmp_path):
    streaming(tmp_path, callbacks=[StopAfter(6)]).train()
    resumed = streaming(tmp_path, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=True)
    whole = streaming(tmp_path / "whole")
    whole.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert resumed.state.log_history[-1]["train_loss"] == whole.state.log_history[-1]["train_loss"]


def test_the_result_is_that_of_the_whole_training(tmp_path):
    streaming(tmp_path, callbacks=[StopAfter(6)]).train()
    result = streaming(tmp_path).train(resume_from_checkpoint=True)
    assert result.training_loss == result.metrics["train_loss"]


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


def test_a_signal_where_only_the_best_is_saved(tmp_path):
    class Signal(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    options = {"save_strategy": "best", "metric_for_best_model": "chance", "eval_strategy": "steps", "eval_steps": 2}
    trainer = streaming(tmp_path, callbacks=[Signal()], greater_is_better=False, **options)
    trainer.state.best_metric = -1.0
    with pytest.raises(Preempted, match="after step 6 with a checkpoint in"):
        trainer.train()
    assert (tmp_path / "checkpoint-6" / "manifest.json").is_file()


def test_a_folder_without_a_manifest_is_never_whole(tmp_path, caplog):
    """As another Trainer leaves it, or a deletion that was cut off; however new it looks."""
    streaming(tmp_path, callbacks=[StopAfter(6)]).train()
    (tmp_path / "checkpoint-6" / "manifest.json").unlink()
    os.utime(tmp_path / "checkpoint-6", (2**32, 2**32))
    why = "it has no manifest.json: another Trainer wrote it, or it is a part of one that was being deleted"
    with pytest.raises(UserError, match=f"is not a whole checkpoint \\({why}\\)"):
        streaming(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    resumed = streaming(tmp_path, callbacks=[StopAfter(4)])
    resumed.train(resume_from_checkpoint="auto")
    assert caplog.messages == [f"{tmp_path / 'checkpoint-6'} cannot be resumed from: {why}"]
    assert [e["step"] for e in resumed.state.log_history if "loss" in e] == [1, 2, 3, 4]
    assert (tmp_path / "checkpoint-6").is_dir()  # it may be somebody's
    caplog.clear()
    shutil.rmtree(tmp_path / "checkpoint-3")
    begun = streaming(tmp_path, callbacks=[StopAfter(2)])
    begun.train(resume_from_checkpoint="auto")
    assert begun.state.global_step == 2


def test_the_newest_stays_where_clocks_go_back_and_others_folders_look_newer(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-99").mkdir(parents=True)
    (tmp_path / "checkpoint-99" / "trainer_state.json").write_text("{}")  # another Trainer's
    os.utime(tmp_path / "checkpoint-99", (2**32, 2**32))
    now = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(folders.time, "time", lambda: next(now))
    streaming(tmp_path, save_total_limit=1, callbacks=[StopAfter(6)]).train(resume_from_checkpoint="auto")
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-99"}
    streaming(tmp_path, save_total_limit=1, callbacks=[StopAfter(9)]).train(resume_from_checkpoint="auto")
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-9", "checkpoint-99"}


def test_leftovers_are_cleared_away_at_the_next_start(tmp_path):
    streaming(tmp_path, callbacks=[StopAfter(6)]).train()
    for name in (
        "deleted-checkpoint-2",
        "unfinished-checkpoint",
        "replaced-checkpoint-3",
        "deleted-replaced-checkpoint-3",
    ):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "model.safetensors").touch()
    (tmp_path / "checkpoint-6").rename(tmp_path / "replaced-checkpoint-6")
    streaming(tmp_path, callbacks=[StopAfter(1)]).train()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["checkpoint-3", "checkpoint-6"]


def test_a_replaced_checkpoint_of_another_training_counts(tmp_path):
    streaming(tmp_path, num_train_epochs=3).train()  # leaves checkpoint-3, 6, 9 and 12
    streaming(tmp_path, save_total_limit=1).train()  # replaces each of them
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]


def test_the_best_checkpoint_is_kept_and_found(tmp_path):
    options = {
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_strategy": "steps", "eval_steps": 3,
        "save_total_limit": 2,
    }  # fmt: skip
    trainer = streaming(tmp_path, **options)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert Path(best).parent == tmp_path
    assert Path(best).is_dir()
    saved = json.loads((Path(best) / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == best
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


def test_carried_over_a_run_is_as_long_as_its_passes(tmp_path):
    """64 examples at B = 24: 2 steps in an epoch, and 3 passes are 8 steps where dropping makes 6."""
    options = {"total_batch_size": 24, "per_device_train_batch_size": 12, "save_strategy": "no"}
    dropping, carrying = streaming(tmp_path, **options), streaming(tmp_path, last_batch="carry", **options)
    dropping.train()
    carrying.train()
    assert (dropping.state.global_step, carrying.state.global_step) == (6, 8)
    with pytest.raises(UserError, match="last_batch='carry' needs a TrainStream"):
        ClarsTrainer(seeded(), arguments(tmp_path, last_batch="carry"), train_dataset=dataset(8))
    with pytest.raises(UserError, match="last_batch='keep' is unknown; choose one of drop, carry"):
        arguments(tmp_path, last_batch="keep")


# --- gradients that are not finite -------------------------------------------------------------------------------


class Poisoned(Classifier):
    """With BatchNorm; NaN comes out of chosen forward passes, counted from 1."""

    def __init__(self, *when: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(8)
        self.passes, self.when = 0, when

    def forward(self, pixel_values, labels=None):
        self.passes += self.training
        if self.training and self.passes in self.when:
            pixel_values = pixel_values * float("nan")
        return super().forward(pixel_values, labels)


def poisoned(*when: int) -> Poisoned:
    torch.manual_seed(1)
    return Poisoned(*when)


@pytest.mark.parametrize("optim", ["clars", "lars", "sgd"])
def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path, optim):
    options = {"optim": optim, "save_strategy": "no", "max_steps": 3, "lr_scheduler_type": "constant"}
    trainer = streaming(tmp_path, poisoned(4), **options)  # the second micro-batch of step 2
    states = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

    trainer.add_callback(Watch())
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
    options = {"save_strategy": "no", "max_steps": 4, "logging_steps": 4, "learning_rate": 0.0}
    options |= {"lr_scheduler_type": "constant"}
    trainer = streaming(tmp_path, poisoned(4), **options)
    trainer.train()
    each = streaming(tmp_path, poisoned(), **{**options, "logging_steps": 1})
    each.train()
    expected = [loss for step, loss in logged(each, "loss") if step != 2]
    assert logged(trainer, "loss")[0][1] == pytest.approx(np.mean(expected), rel=1e-5)


def test_too_many_in_a_row_end_the_training(tmp_path):
    trainer = streaming(tmp_path, poisoned(*range(3, 99)), max_nonfinite_steps=3, num_train_epochs=9)
    with pytest.raises(TrainingFailedError, match="the gradients of 3 steps in a row, up to step 4, were not finite"):
        trainer.train()
    unchecked = streaming(tmp_path, poisoned(3), max_nonfinite_steps=0, max_steps=3)
    unchecked.train()
    assert not all(w.isfinite().all() for w in weights(unchecked))


# --- batch sizes that do not fit ---------------------------------------------------------------------------------


class Small(Classifier):
    """A device that holds four samples."""

    sizes: list[int]

    def forward(self, pixel_values, labels=None):
        if self.training:
            self.sizes.append(len(pixel_values))
            if len(pixel_values) > 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().forward(pixel_values, labels)


@pytest.mark.parametrize("kind", ["stream", "list"])
def test_a_batch_size_that_fits_is_found_and_the_total_stays(tmp_path, kind):
    torch.manual_seed(1)
    model = Small()
    model.sizes = []
    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 16, "max_steps": 4, "save_strategy": "no"}
    if kind == "stream":
        trainer = streaming(tmp_path, model, **options)
    else:
        args = arguments(tmp_path, total_batch_size=16, **options)
        trainer = ClarsTrainer(model, args, train_dataset=dataset(64))
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.args.gradient_accumulation_steps == 4
    assert model.sizes == [16, 8, *[4] * 16]
    if kind == "stream":
        plain = streaming(tmp_path, max_steps=4, save_strategy="no", per_device_train_batch_size=4)
        plain.train()
        for a, b in zip(weights(plain), weights(trainer), strict=True):
            assert torch.equal(a, b)


def test_no_batch_size_fits(tmp_path):
    model = Small()
    model.sizes = []
    model.forward = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("CUDA out of memory. Tried to allocate"))
    trainer = streaming(tmp_path, model, auto_find_batch_size=True, save_strategy="no")
    with pytest.raises(UserError, match="not even one sample a device fits into its memory"):
        trainer.train()


# --- a wish to end -----------------------------------------------------------------------------------------------


def test_a_signal_raises_after_a_checkpoint(tmp_path):
    class Signal(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    trainer = streaming(tmp_path, callbacks=[Signal()], save_strategy="no")
    with pytest.raises(Preempted, match="stopped by SIGUSR1 after step 5 with a checkpoint") as stop:
        trainer.train()
    assert stop.value.code == 75
    assert signal.getsignal(signal.SIGUSR1) is before
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]


def test_asked_to_end_it_can_go_on_though_it_saves_the_model_alone(tmp_path):
    class Ask(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    trainer = streaming(tmp_path, **options)
    trainer.add_callback(Ask())
    with pytest.raises(Preempted, match="after step 3 with a checkpoint"):
        trainer.train()
    assert not (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    resumed = streaming(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    whole = streaming(tmp_path / "whole", **options)
    whole.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
