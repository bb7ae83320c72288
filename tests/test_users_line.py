"""Warnings point at the line of the user's that brought them about."""

import _thread
import linecache
import time
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_clars import CLARS, ClarsTrainer, GradientStatisticsCallback, PerSampleNorms
from hf_clars.runtime import users_line

from .helpers.models import Classifier, dataset
from .helpers.training import arguments

HIDDEN = "logits = self.head(Hidden.apply(pixel_values.flatten(1), self.free))"
PLAIN = {"use_cpu": True, "report_to": [], "save_strategy": "no", "max_steps": 1, "optim": "clars"}


@contextmanager
def lines():
    """The lines that are warned of; all of them stand in this file."""
    found = SimpleNamespace(warned=[])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    assert caught
    assert {w.filename for w in caught} == {__file__}
    found.warned = [linecache.getline(__file__, w.lineno).strip() for w in caught]


class Hidden(torch.autograd.Function):
    """`x @ w`, into which nobody can look."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d @ w.T, x.T @ d


class Partly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.free = nn.Parameter(torch.eye(16))

    def forward(self, pixel_values, labels=None):
        logits = self.head(Hidden.apply(pixel_values.flatten(1), self.free))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_defaults_of_a_plain_trainer(tmp_path):
    args = TrainingArguments(str(tmp_path), **PLAIN)
    trainer = Trainer(Classifier(), args, train_dataset=dataset(16))
    with lines() as found:
        trainer.train()
    assert len(found.warned) == 3  # of the rate, of clipping, and of gradients that were clipped
    assert set(found.warned) == {"trainer.train()"}


def test_groups_of_a_plain_trainer(tmp_path):
    args = TrainingArguments(
        str(tmp_path), **{**PLAIN, "optim": "lars"}, optim_args="bias_and_norm=authors", weight_decay=0.1,
        learning_rate=0.1,
    )  # fmt: skip
    trainer = Trainer(Classifier(), args, train_dataset=dataset(16))
    with lines() as found:
        trainer.train()
    assert found.warned == ["trainer.train()"]


@pytest.mark.parametrize("kind", [Trainer, ClarsTrainer])
def test_what_a_trainer_cannot_measure(tmp_path, kind):
    """A model of the user's own is the user's, too: the line in it that cannot be looked into."""
    if kind is Trainer:
        args = TrainingArguments(str(tmp_path), **PLAIN, learning_rate=0.1, max_grad_norm=0)
    else:
        args = arguments(tmp_path, max_steps=1)
    trainer = kind(Partly(), args, train_dataset=dataset(64))
    with lines() as found:
        trainer.train()
    assert set(found.warned) <= {"trainer.train()", HIDDEN}


def test_what_a_callback_cannot_measure(tmp_path):
    class Recurrent(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(4, 4, batch_first=True)

        def forward(self, pixel_values, labels=None):
            hidden, _ = self.cell(pixel_values.squeeze(1))
            return super().forward(hidden.unsqueeze(1), labels)

    args = TrainingArguments(str(tmp_path), **{**PLAIN, "optim": "sgd"})
    trainer = Trainer(Recurrent(), args, train_dataset=dataset(16), callbacks=[GradientStatisticsCallback(1)])
    with lines() as found:
        trainer.train()
    assert set(found.warned) <= {"trainer.train()", "hidden, _ = self.cell(pixel_values.squeeze(1))"}


def test_in_a_loop_of_ones_own():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = CLARS(model.parameters(), 0.1, norms=PerSampleNorms(model))
    model(torch.randn(4, 3)).sum().backward()
    model.append(nn.Linear(2, 2))
    model[2].weight.grad = torch.ones(2, 2)
    with lines() as found:
        optimizer.step()
    assert found.warned == ["optimizer.step()"]


def test_in_a_forward_pass():
    class Pair(nn.Module):
        def forward(self, x, y):
            return x + y

    model = Pair()
    PerSampleNorms(model)
    with lines() as found:
        model(torch.randn(1, 3), torch.randn(4, 3))
    assert found.warned == ["model(torch.randn(1, 3), torch.randn(4, 3))"]


@pytest.mark.parametrize("library", ["accelerate", "peft", "trl"])
def test_a_library_in_between(library):
    scope = {"__name__": f"{library}.imagined", "warn": users_line.warn}
    exec("def call(): warn('by a library')", scope)
    with lines() as found:
        scope["call"]()
    assert found.warned == ['scope["call"]()']


def test_a_thread_without_a_line_of_the_users():
    """As autograd has them for devices: what it finds is told by the next call."""
    scope = {"__name__": "torch.imagined", "under_way": users_line.is_under_way}
    exec("def call(): found.append(under_way())", scope)
    scope["found"] = []
    scope["call"]()
    _thread.start_new_thread(scope["call"], ())
    while len(scope["found"]) < 2:
        time.sleep(0.001)
    assert scope["found"] == [True, False]
