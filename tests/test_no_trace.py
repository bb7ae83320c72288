"""Measuring ends with `train()`, however that ends: the model is as it was, and who measures next to whom shares."""

import copy
import gc
import io
import json
import pickle
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import HPSearchBackend

from hf_clars import CLARS, ClarsTrainer, ClarsTrainingArguments, GradientStatisticsCallback, PerSampleNorms, UserError
from hf_clars.norms.accumulator import COUNT
from hf_clars.trainer.measuring import OwnNorms

from .helpers.models import Classifier, dataset
from .helpers.training import assert_equal

DATA = [{**e, "pixel_values": e["pixel_values"].double()} for e in dataset(16)]
X = torch.stack([e["pixel_values"] for e in DATA])
PLAIN = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
CLARS_PLAIN = {"optim": "clars", "learning_rate": 1.0, "max_grad_norm": 0.0}


class Noted(Classifier):
    """With a buffer that its forward passes write to: what they know of its values must not stay on it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, pixel_values, labels=None):
        if self.training:
            self.mean.mul_(0.9).add_(pixel_values.mean())
        out = super().forward(pixel_values, labels)
        return {k: v for k, v in out.items() if v is not None}  # torch.jit.trace knows no None


class Checkpointed(Classifier):
    def forward(self, pixel_values, labels=None):
        h = checkpoint(lambda x: torch.relu(self.norm(self.conv(x))), pixel_values, use_reentrant=False)
        h = checkpoint(self.norm, h, use_reentrant=False)
        logits = checkpoint(self.head, h.flatten(1), use_reentrant=False)
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def seeded(kind=Noted) -> nn.Module:
    torch.manual_seed(1)
    return kind().double()


def traces(model: nn.Module) -> list[str]:
    """What somebody left on a model."""
    found = [f"{name}.forward" for name, m in model.named_modules() if "forward" in vars(m)]
    for name, module in model.named_modules():
        for hooks in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            found += [f"{name}.{hooks}" for _ in getattr(module, hooks)]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found += [f"{name}.{attribute}" for attribute in vars(tensor) if not attribute.startswith("_dynamo_")]
        found += [f"{name}: hook" for _ in tensor._backward_hooks or ()]
    return found


def trainer_of(kind: str, folder, model=None, *, callbacks=(), data=DATA, **options) -> Trainer:
    """One of the ways to measure in a Trainer."""
    options = {"per_device_train_batch_size": 8, "num_train_epochs": 2, **PLAIN, **options}
    given = {"train_dataset": data, "eval_dataset": DATA, "callbacks": [*callbacks]}
    if "model_init" in options:
        given["model_init"] = options.pop("model_init")
    else:
        given["model"] = seeded() if model is None else model
    if kind == "ClarsTrainer":
        return ClarsTrainer(args=ClarsTrainingArguments(str(folder), learning_rate=1.0, **options), **given)
    if kind == "AdamW":
        given["callbacks"].append(GradientStatisticsCallback(every=1))
    else:
        options |= CLARS_PLAIN | ({"optim_args": "mode=micro_batch"} if kind == "micro_batch" else {})
    return Trainer(args=TrainingArguments(str(folder), **options), **given)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


KINDS = ["CLARS", "ClarsTrainer", "AdamW", pytest.param("micro_batch", marks=pytest.mark.slow)]


# --- afterwards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")  # torch 2.11 calls it so
def test_what_others_do_with_a_model_afterwards(tmp_path, kind):
    trainer = trainer_of(kind, tmp_path)
    before = {*vars(trainer)}
    trainer.train()
    model = trainer.model
    assert traces(model) == []
    assert not {"_run_epoch", "_finalize_training"} & ({*vars(trainer)} - before)
    assert "call_event" not in vars(trainer.callback_handler)
    expected = model.eval()(X)["logits"]
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False)):
        assert torch.equal(copied(X)["logits"], expected)
    assert torch.equal(torch.export.export(model, (X,)).module()(X)["logits"], expected)
    traced = torch.jit.trace(model, X, strict=False)
    assert torch.equal(traced(X)["logits"], expected)
    trainer_of(kind, tmp_path, model).train()
    assert traces(model) == []


class Failing(TrainerCallback):
    """Raises `error` in the `left`th event of a name from now on."""

    event, left, error = "", 0, RuntimeError

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "event"):
            self.left -= 1
            if self.left == 0:
                raise self.error("on purpose")
        return super().__getattribute__(name)

    def next(self, event: str, number: int) -> None:
        self.event, self.left, self.error = event, number, KeyboardInterrupt if number == 2 else RuntimeError


class Broken(list):
    """Examples of which one cannot be read, the first time that it is asked for."""

    whole = False

    def __getitem__(self, index):
        if index == 11 and not self.whole:
            self.whole = True
            raise OSError("on purpose")
        return super().__getitem__(index)


EVENTS = [
    ("on_train_begin", 1), ("on_epoch_begin", 1), ("on_epoch_begin", 2), ("on_step_begin", 1), ("on_step_begin", 2),
    ("on_substep_end", 1), ("on_pre_optimizer_step", 1), ("on_optimizer_step", 1), ("on_step_end", 1), ("on_log", 1),
    ("on_evaluate", 1), ("on_save", 1), ("on_epoch_end", 1), ("on_epoch_end", 2), ("on_train_end", 1),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["CLARS", "AdamW", "ClarsTrainer"])
def test_trainings_that_fail_in_any_event(tmp_path, kind, last):
    """Whichever callback it is, before those that measure or after them, time and again in one Trainer."""
    failing = Failing()
    options = {
        "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "epoch",
        "eval_strategy": "epoch",
    }  # fmt: skip
    trainer = trainer_of(kind, tmp_path, callbacks=[] if last else [failing], **options)
    if last:
        trainer.create_optimizer()
        trainer.add_callback(failing)
    for event in EVENTS:
        failing.next(*event)
        with pytest.raises((RuntimeError, KeyboardInterrupt), match="on purpose"):
            trainer.train()
        assert (event, traces(trainer.model)) == (event, [])
    trainer.train()
    assert trainer.state.global_step == 4
    assert traces(trainer.model) == []


@pytest.mark.parametrize("where", ["data", "loss", "step", "evaluation at first"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_fails_elsewhere(tmp_path, kind, where):
    trainer = trainer_of(
        kind, tmp_path, data=Broken(DATA) if where == "data" else DATA, eval_on_start=where == "evaluation at first"
    )
    spoilt = {"loss": "compute_loss", "evaluation at first": "evaluate", "step": "_get_learning_rate"}.get(where)
    calls = []

    def spoil(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2 - (where == "evaluation at first"):
            raise KeyboardInterrupt("on purpose")
        return getattr(type(trainer), spoilt)(trainer, *args, **kwargs)

    if spoilt is not None:
        setattr(trainer, spoilt, spoil)
    with pytest.raises((OSError, KeyboardInterrupt), match="on purpose"):
        trainer.train()
    assert traces(trainer.model) == []
    assert "_run_epoch" not in vars(trainer) or where == "evaluation at first"
    second = trainer_of(kind, tmp_path, trainer.model)
    second.train()
    assert second.state.global_step == 4
    assert traces(trainer.model) == []


def test_what_others_put_on_the_trainer_stays(tmp_path):
    trainer = trainer_of("CLARS", tmp_path)
    own, events = trainer._run_epoch, []

    def run_epoch(*args, **kwargs):
        events.append("epoch")
        return own(*args, **kwargs)

    trainer._run_epoch = run_epoch
    trainer.train()
    assert events == ["epoch", "epoch"]
    assert trainer._run_epoch is run_epoch


def test_half_precision_leaves_what_accelerate_leaves(tmp_path):
    """It replaces the model's forward for good, with and without us."""
    left = []
    for options in (CLARS_PLAIN, {"optim": "sgd", "learning_rate": 0.1}):
        model = seeded().float()
        args = TrainingArguments(str(tmp_path), bf16=True, max_steps=2, **PLAIN, **options)
        Trainer(model, args, train_dataset=dataset(16)).train()
        assert "hf_clars" not in repr([vars(m) for m in model.modules()]).replace("tests.", "")
        left.append((traces(model), {name: {*vars(m)} for name, m in model.named_modules()}))
    assert left[0] == left[1]


def test_a_measurement_of_the_users_own_is_not_ended(tmp_path):
    model = seeded()
    with PerSampleNorms(model), pytest.raises(UserError, match="another PerSampleNorms is attached"):
        trainer_of("CLARS", tmp_path, model).train()


def test_the_optimizer_may_be_built_without_a_trainer(tmp_path):
    model = seeded()
    args = TrainingArguments(str(tmp_path), **PLAIN, **CLARS_PLAIN)
    factory, keywords = Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer = factory()(model, **keywords)
    before = weights(model)
    model(X, torch.tensor([e["labels"] for e in DATA]))["loss"].backward()
    optimizer.step()
    assert not torch.equal(before[0], model.conv.weight)


# --- one training after another --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_train_twice(tmp_path, kind):
    """The second one measures as the first one did: it is that of a Trainer which begins where the first one ended."""
    options = {"lr_scheduler_type": "constant", "per_device_train_batch_size": 16}
    trainer = trainer_of(kind, tmp_path / "one", **options)
    trainer.train()
    again = trainer_of(kind, tmp_path / "two", copy.deepcopy(trainer.model), **options)
    again.create_optimizer()
    again.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
    trainer.train()
    again.train()
    for a, b in zip(weights(trainer.model), weights(again.model), strict=True):  # of examples in another order
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert traces(trainer.model) == []
    if kind == "AdamW":
        for a, b in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
            assert a["model"] == pytest.approx(b["model"], rel=1e-9)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_model_init(tmp_path, kind, same):
    """Two trainings with models of their own, or with one that is handed out twice."""
    only, made = seeded(), []

    def model_init():
        model = only if same else seeded()
        made.append(weakref.ref(model))
        return model

    trainer = trainer_of(kind, tmp_path, model_init=model_init)
    results = []
    for _ in range(2):
        trainer.train()
        assert traces(trainer.model) == []
        results.append(weights(trainer.model))
    if not same:
        assert_equal(*results)
        gc.collect()
        assert [ref() is None for ref in made] == [True] * (len(made) - 1) + [False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_over_hyperparameters(tmp_path, monkeypatch, kind):
    """What `hyperparameter_search` does for each trial; a trial that fails does not disturb the next."""
    monkeypatch.setattr("wandb.run", SimpleNamespace(id="trial"))
    failing = Failing()
    failing.next("on_step_end", 5)
    trainer = trainer_of(kind, tmp_path, model_init=lambda: seeded(), callbacks=[failing])
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.WANDB, None
    results = {}
    for rate in (1e-2, 2e-2, 1e-2):
        try:
            trainer.train(trial={"learning_rate": rate})
        except RuntimeError:
            results["failed"] = rate
        else:
            results.setdefault(rate, []).append(weights(trainer.model))
        assert traces(trainer.model) == []
    assert results["failed"] == 2e-2
    assert_equal(*results[1e-2])


class Uniform(TrainerCallback):
    """mNAG at first, CLARS from the third step on."""

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        for group in optimizer.param_groups:
            group["uniform"] = state.global_step < 2


def test_layers_may_be_adapted_later(tmp_path):
    trainer = trainer_of("CLARS", tmp_path, callbacks=[Uniform()])
    trainer.create_optimizer()
    assert traces(trainer.model) == []  # nothing is attached before the training
    trainer.train()
    norms = trainer.optimizer.optimizer.norms
    recorder = norms.watch.measurement.recorder
    counts = recorder.totals(COUNT)
    assert {int(counts[t.name]) for t in recorder.parameters if t.parameter.ndim >= 2} == {16}  # of two steps of 8
    assert traces(trainer.model) == []


def test_an_optimizer_of_the_users_own(tmp_path):
    """Its norms are attached when it is made; a second training of ClarsTrainer attaches them again."""
    model = seeded()
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(model))
    args = ClarsTrainingArguments(str(tmp_path), learning_rate=1.0, max_steps=2, **PLAIN)
    trainer = ClarsTrainer(model, args, train_dataset=DATA, optimizers=(optimizer, None))
    for _ in range(2):
        trainer.train()
        assert trainer.state.global_step == 2
        assert traces(model) == []


# --- several that measure --------------------------------------------------------------------------------------------


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "gradient_statistics.jsonl").read_text().splitlines()]


def measured(kind: str, folder, model: nn.Module, periods: list[int], **options) -> tuple[list[dict], nn.Module]:
    callbacks = [GradientStatisticsCallback(every=n, smoothing=0.1 * n) for n in periods]
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 5, **PLAIN, **options}
    if kind == "ClarsTrainer":
        args = ClarsTrainingArguments(str(folder), learning_rate=1.0, **options)
        trainer = ClarsTrainer(model, args, train_dataset=DATA, callbacks=callbacks)
    else:
        options |= CLARS_PLAIN if kind == "CLARS" else {"learning_rate": 0.01}
        trainer = Trainer(model, TrainingArguments(str(folder), **options), train_dataset=DATA, callbacks=callbacks)
    trainer.train()
    return records(folder), trainer.model


BESIDE = [(kind, model) for kind in ("AdamW", "CLARS", "ClarsTrainer") for model in (Noted, Checkpointed)]
BESIDE_QUICK = [("AdamW", Checkpointed), ("ClarsTrainer", Noted)]


@pytest.mark.parametrize(
    ("kind", "model"), [pytest.param(*c, marks=() if c in BESIDE_QUICK else pytest.mark.slow) for c in BESIDE]
)
def test_callbacks_beside_each_other_give_what_each_gives_alone(tmp_path, kind, model):
    both, trained = measured(kind, tmp_path / "both", seeded(model), [1, 2, 2])
    assert traces(trained) == []
    for every in (1, 2):
        alone, other = measured(kind, tmp_path / str(every), seeded(model), [every])
        assert [r["step"] for r in alone] == list(range(every, 6, every))
        of_several = [{**r, "every": every, "smoothing": 0.1 * every} for r in alone for _ in range(every)]
        assert [r for r in both if r["every"] == every] == of_several
        assert_equal(weights(trained), weights(other))


@pytest.mark.parametrize("kind", ["AdamW", pytest.param("CLARS", marks=pytest.mark.slow)])
def test_checkpointing_changes_no_number(tmp_path, kind):
    plain, _ = measured(kind, tmp_path / "a", seeded(Twice), [1, 2])
    checkpointed, _ = measured(kind, tmp_path / "b", seeded(Checkpointed), [1, 2])
    for a, b in zip(plain, checkpointed, strict=True):
        assert a["model"] == pytest.approx(b["model"], rel=1e-9)
        assert a["layers"].keys() == b["layers"].keys() == {"conv.weight", "head.weight"}


class Twice(Classifier):
    """What `Checkpointed` computes, in one go."""

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.norm(torch.relu(self.norm(self.conv(pixel_values)))).flatten(1))
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own look at its tensors
def test_callbacks_on_a_compiled_model(tmp_path):
    both, trained = measured(
        "AdamW", tmp_path / "both", seeded(Classifier), [1, 2], torch_compile=True, torch_compile_backend="aot_eager"
    )
    assert traces(trained) == []
    plain, _ = measured("AdamW", tmp_path / "plain", seeded(Classifier), [1, 2])
    for a, b in zip(both, plain, strict=True):
        assert (a["step"], a["every"]) == (b["step"], b["every"])
        assert a["model"] == pytest.approx(b["model"], rel=1e-6)


def test_each_of_several_callbacks_goes_on_with_its_own_averages(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    whole, _ = measured("AdamW", tmp_path / "whole", seeded(), [1, 2], max_steps=5, **options)

    steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 5}
    args = TrainingArguments(str(tmp_path / "whole"), learning_rate=0.01, **{**PLAIN, **options, **steps})
    callbacks = [GradientStatisticsCallback(every=n, smoothing=0.1 * n) for n in (1, 2)]
    resumed = Trainer(seeded(), args, train_dataset=DATA, callbacks=callbacks)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert records(tmp_path / "whole") == whole


def test_what_is_not_measured_is_said_once_for_all_callbacks(tmp_path):
    class Recurrent(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(4, 4, batch_first=True)

        def forward(self, pixel_values, labels=None):
            return super().forward(self.cell(pixel_values.squeeze(1))[0].unsqueeze(1), labels)

    with pytest.warns(UserWarning, match="GradientStatisticsCallback leaves out") as said:
        measured("AdamW", tmp_path, seeded(Recurrent), [1, 2, 1])
    messages = [str(w.message) for w in said if "leaves out" in str(w.message)]
    assert len({name for m in messages for name in m.split() if "weight" in name}) == len(messages)
    assert sum("hf_clars.verify_norms" in m for m in messages) == 1
    assert all("\n" not in m for m in messages)


def test_who_holds_norms_that_are_shared():
    norms = OwnNorms(seeded())
    norms.detach()
    for one, other in (("a", "b"), ("b", "a")):
        norms.hold("a")
        norms.hold("b")
        norms.release(one)
        assert traces(norms.model) != []
        norms.release(other)
        norms.release(other)
        assert traces(norms.model) == []


# --- what is to be done with what cannot be measured ------------------------------------------------------------------


def test_untracked_reaches_the_norms(tmp_path):
    for args in ("untracked=error", "untracked=stand_in", None):
        trainer = trainer_of("CLARS", tmp_path, optim_args=args)
        expected = args.partition("=")[2] if args else "stand_in"
        assert trainer.create_optimizer().norms.on_untracked == expected
    for options in ({"untracked": "error"}, {"optim_args": "untracked=error"}):
        trainer = trainer_of("ClarsTrainer", tmp_path, **options)
        assert trainer.create_optimizer().norms.on_untracked == "error"
    for options in ({"untracked": "no"}, {"optim_args": "untracked=no"}):
        with pytest.raises(UserError, match=r"^untracked='no' is unknown; choose one of stand_in, error$"):
            trainer_of("ClarsTrainer", tmp_path, **options)
    with pytest.raises(UserError, match=r"^untracked='no' is unknown; choose one of stand_in, error$"):
        PerSampleNorms(seeded(), untracked="no")
    with pytest.raises(UserError, match="'untracked' is unknown to optim='lars'"):
        trainer_of("ClarsTrainer", tmp_path, optim="lars", optim_args="untracked=error")
