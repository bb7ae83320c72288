"""The summary before the first step: the numbers, the memory, and that looking changes nothing."""

import torch
from torch import nn

from hf_clars import ClarsTrainingArguments, build_model
from hf_clars.data import TrainStream
from hf_clars.image_classification.preflight import activation_bytes, summary

from .helpers.streams import Numbered


class Two(nn.Module):
    """Keeps, of each sample, the input of either layer: 48 and 5 float32 values; ReLU keeps its result, the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 5, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, pixel_values, labels=None):
        return self.second(torch.relu(self.first(pixel_values.flatten(1).float()))).sum()


def test_activations_are_what_a_backward_pass_needs():
    assert activation_bytes(Two(), 4, torch.float32) == 4 * (48 + 5)


def test_looking_changes_nothing():
    model = build_model("resnet18", 3).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    whole = activation_bytes(model, 64, torch.float32)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert 0.4 < activation_bytes(model, 64, torch.bfloat16) / whole < 0.8
    assert 3.5 < activation_bytes(model, 128, torch.float32) / whole < 4.5


def test_the_summary(tmp_path):
    args = ClarsTrainingArguments(
        str(tmp_path), total_batch_size=64, per_device_train_batch_size=8, num_train_epochs=3, use_cpu=True,
        base_learning_rate=0.1, report_to=[], dataloader_num_workers=2, mode="subset", last_batch="carry",
    )  # fmt: skip
    stream = TrainStream(Numbered(*[30] * 10), total_batch_size=64, seed=7, shuffle_buffer=100, last_batch="carry")
    model = build_model("resnet18", 3)
    lines = summary(args, model, stream, model_name="resnet18", dataset="pictures", image_size=32).splitlines()
    assert lines[:4] == [
        "resnet18 (11,178,051 parameters) on pictures",
        "B = 64 = 8 a device × 8 accumulated × 1 process(es); 4 steps an epoch, 14 in all; the rest of an epoch begins "
        "the next one",
        "300 examples in 10 chunks, read by 1 × 2 worker(s); order drawn from seed 7 among 100 examples a process",
        "clars: γ_scale = 0.05, η = 0.01, norms: subset",
    ]
    assert lines[4].startswith("device memory, about: 127.9 MiB for weights, gradients and momentum + 8 × ")
    assert len(lines) == 5


class Computed(Two):
    """Its first weight is computed from parameters, and so in a way that nothing but autograd knows."""

    def forward(self, pixel_values, labels=None):
        weight = self.first.weight / self.first.weight.norm()
        return self.second(torch.relu(nn.functional.linear(pixel_values.flatten(1).float(), weight))).sum()


def test_layers_that_are_expensive_to_measure(tmp_path):
    args = ClarsTrainingArguments(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, report_to=[])
    stream = TrainStream(Numbered(*[30] * 10), total_batch_size=64, seed=7, shuffle_buffer=100)
    model = Computed()
    lines = summary(args, model, stream, model_name="two", dataset="pictures", image_size=4).splitlines()
    assert lines[5:] == [
        "expensive to measure: first.weight: what is used is computed from it, which takes a pass back for each sample"
    ]
    assert all(p.grad is None for p in model.parameters())
    assert "forward" not in vars(model)
