"""What a model is trained with besides plain float32 steps: the norms stay what they are."""

import copy
import shutil
import warnings
from contextlib import contextmanager

import peft
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_clars import CLARS, PerSampleNorms

from .helpers.verdicts import assert_right


def network() -> nn.Module:
    """A convolution of every form, train-mode BatchNorm, a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16), nn.BatchNorm2d(16), nn.Hardtanh(),
        nn.Conv2d(16, 128, 1), nn.GroupNorm(4, 128), nn.GELU(), nn.MaxPool2d(4),
        nn.Conv2d(128, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip


def measured(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with PerSampleNorms(model) as norms:
        (model(x).square().mean() * 10).backward()
        return norms.per_sample()


def test_channels_last():
    model, x = network(), torch.randn(6, 3, 16, 16)
    expected = measured(model, x)
    assert expected.keys() == dict(model.named_parameters()).keys()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(measured(other, x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-6)
    found, gradients = ([p.grad for p in each.parameters()] for each in (other, model))
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-6)


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    channels=st.sampled_from([3, 8, 16]),
    outputs=st.sampled_from([1, 4, 8]),
    folds=st.sampled_from([1, 2]),
    last=st.booleans(),
    transposed=st.booleans(),
)
def test_windows_of_channels_last_images(kernel, stride, padding, dilation, channels, outputs, folds, last, transposed):
    """All geometries, several images of a sample, weights that lie like the images and otherwise."""
    geometry = (channels, outputs, kernel, stride, padding)
    if transposed:
        layer: nn.Module = nn.ConvTranspose2d(*geometry, bias=False, dilation=dilation)
    else:
        layer = nn.Conv2d(*geometry, dilation, bias=False)
    model = nn.Sequential(nn.Flatten(0, 1), layer, nn.Unflatten(0, (3, folds))) if folds > 1 else nn.Sequential(layer)
    x = torch.randn(3, folds, channels, 7, 6) if folds > 1 else torch.randn(3, channels, 7, 6)
    expected, gradient = measured(model, x), layer.weight.grad
    other = copy.deepcopy(model)
    other.zero_grad()
    x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    found = measured(other.to(memory_format=torch.channels_last) if last else other, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(next(other.parameters()).grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(8, 8, 1, groups=8), nn.Conv1d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, padding=1),
        nn.Conv2d(8, 8, (1, 5), groups=8), nn.Conv2d(8, 8, (5, 1), groups=8), nn.Conv2d(8, 1, 3), nn.Conv2d(1, 8, 1),
        nn.ConvTranspose1d(8, 8, 1, groups=8), nn.Linear(1, 8), nn.Linear(8, 1),
    ],
    ids=str,
)  # fmt: skip
def test_gradients_lie_as_parameters_do(layer):
    """Strides of dimensions of one element, too: DDP compares them."""
    if isinstance(layer, nn.Linear):
        size = (4, 3, layer.in_features)
    else:
        size = (4, layer.in_channels, *[6] * (layer.weight.ndim - 2))
    measured(layer, torch.randn(size))
    assert layer.weight.grad.stride() == layer.weight.stride()


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_and_repeatability():
    """The same norms to the bit, run after run, with torch's deterministic algorithms and without."""
    model, x = network(), torch.randn(6, 3, 16, 16)
    embedding, ids = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(28, 2)), torch.randint(9, (6, 7))
    for measure in (lambda: measured(model, x), lambda: measured(embedding, ids)):
        expected = measure()
        with deterministic():
            for _ in range(2):
                torch.testing.assert_close(measure(), expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_lora_measures_the_adapters_alone():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=12, **sizes))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(model, config).double().eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, behind which lora_A has no gradient
            nn.init.normal_(parameter)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trainable)
    assert any("classifier" in name for name in trainable)
    ids = torch.randint(0, 30, (4, 9))
    assert_right(Logits(model), ids)

    norms = PerSampleNorms(model)
    F.cross_entropy(model(ids).logits, torch.tensor([0, 1, 0, 1])).backward()
    assert norms.per_sample().keys() == trainable
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    CLARS(model.parameters(), 1.0, norms=norms).step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trainable)


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile's inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own look
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_inductor(name):
    torch.manual_seed(0)
    torch.compiler.reset()
    options = {"img_size": 32, "depth": 2} if name.startswith("vit") else {}
    model, x = timm.create_model(name, num_classes=5, **options).double(), torch.randn(4, 3, 32, 32).double()
    expected = measured(model, x)
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    with PerSampleNorms(model) as norms:
        (torch.compile(model)(x).square().mean() * 10).backward()
        assert norms.untracked == {}
        torch.testing.assert_close(norms.per_sample(), expected)
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32,
        )
    )  # fmt: skip


def one_row(*lengths: int, bounds: bool) -> dict[str, torch.Tensor]:
    """Sequences that are packed into one row, as for training without padding."""
    sequences = [{"input_ids": torch.randint(0, 16, (length,)).tolist()} for length in lengths]
    return DataCollatorWithFlattening(return_flash_attn_kwargs=bounds)(sequences, return_tensors="pt")


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("mode", ["per_sample", "subset"])
@pytest.mark.parametrize("bounds", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_sequences_that_are_packed_into_one_row_are_named(mode, bounds, checkpointing):
    """Otherwise the row would count as one sample, or the bounds of its sequences as a batch."""
    model = tiny_llama().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    with PerSampleNorms(model, mode, 2) as norms:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                model(**one_row(5, 3, bounds=bounds), use_cache=False).loss.backward()
            CLARS(model.parameters(), 0.1, norms=norms).step()
        assert norms.untracked.keys() == dict(model.named_parameters()).keys()
        assert {reason.split(",")[0] for reason in norms.untracked.values()} == {"sequences are packed into one row"}
    ours = [str(each.message) for each in caught if each.filename == __file__]
    assert len(ours) == 1, ours


@pytest.mark.parametrize("bounds", [True, False])
def test_a_row_of_one_sequence_is_a_sample(bounds):
    model = tiny_llama()
    row = one_row(6, bounds=False)
    if bounds:
        row["cu_seq_lens_q"] = torch.tensor([0, 6], dtype=torch.int32)
    with PerSampleNorms(model, batch_size=1) as norms:
        model(**row, use_cache=False).loss.backward()
        assert not norms.untracked
        assert norms.per_sample()["lm_head.weight"].shape == (1,)


def test_packed_sequences_that_are_evaluated_in_between_change_nothing():
    model = tiny_llama()
    with PerSampleNorms(model) as norms:
        with torch.no_grad():
            model(**one_row(5, 3, bounds=False))
        ids = torch.randint(0, 16, (3, 6))
        model(input_ids=ids, labels=ids).loss.backward()
        assert not norms.untracked


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_labels_may_be_the_first_argument(problem):
    """As transformers' `default_data_collator` has them."""
    torch.manual_seed(0)
    outputs = 1 if problem == "regression" else 4
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_labels=outputs, problem_type=problem,
        )
    ).eval()  # fmt: skip
    ids = torch.randint(0, 16, (6, 5))
    labels = torch.randint(0, 4, (6,)) if problem.startswith("single") else torch.rand(6, outputs)
    found = []
    for batch in ({"input_ids": ids, "labels": labels}, {"labels": labels, "input_ids": ids}):
        with PerSampleNorms(model) as norms:
            model(**batch).loss.backward()
            assert not norms.untracked
            found.append(norms.per_sample())
    torch.testing.assert_close(found[1], found[0])
