"""Measured models under torch.compile: one graph from end to end, the same norms and gradients."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from hf_clars.norms import PerSampleNorms

from .helpers.slow import slow_but

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own look


def convolutional() -> tuple[nn.Module, torch.Tensor]:
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 4)]
    return nn.Sequential(*layers), torch.randn(5, 2, 6, 6)


def vit() -> tuple[nn.Module, torch.Tensor]:
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=1, img_size=32), torch.randn(3, 3, 32, 32)


def bert() -> tuple[nn.Module, torch.Tensor]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=50, max_position_embeddings=32, **sizes)
    return BertForMaskedLM(config).eval(), torch.randint(0, 50, (4, 12))


def gpt2() -> tuple[nn.Module, torch.Tensor]:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    config = GPT2Config(vocab_size=50, bos_token_id=1, eos_token_id=1, use_cache=False, **sizes)
    return GPT2LMHeadModel(config).eval(), torch.randint(0, 50, (4, 12))


class Computed(nn.Module):
    """Weights and tables that are computed from parameters; padding, which dynamo hides."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.rand(6, 1, 1, 1))
        self.table, self.head = nn.Parameter(torch.randn(9, 2)), nn.Linear(6, 4)
        self.register_buffer("index", torch.randint(9, (16,)))

    def forward(self, x):
        flat = self.weight.reshape(1, 6, -1)
        scale = (self.gain * 0.7).view(-1)
        weight = F.batch_norm(flat, None, None, weight=scale, training=True, momentum=0.0).reshape_as(self.weight)
        x = F.conv2d(F.pad(x, (0, 1, 1, 0)), weight)
        heads = x.unflatten(1, (2, 3)).flatten(3)  # [batch, heads, 3, positions]
        bias = self.table[self.index].view(4, 4, 2).permute(2, 0, 1).contiguous().unsqueeze(0)
        mixed = ((heads.mT @ heads).softmax(-1)[..., :4, :4] + bias).softmax(-1)
        pooled = (heads[..., :4] @ mixed).flatten(1, 2).mean(-1)
        return self.head(pooled * (1 + self.table.mean().sigmoid()))


def computed() -> tuple[nn.Module, torch.Tensor]:
    return Computed().double(), torch.randn(5, 3, 6, 6).double()


def timm_model(name: str, **options: object):
    def build() -> tuple[nn.Module, torch.Tensor]:
        model = timm.create_model(name, num_classes=3, **options)
        return model.double().eval(), torch.randn(3, 3, 32, 32).double()

    build.__name__ = name
    return build


SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
BEIT = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
CASES = [
    (convolutional, "subset"), (computed, "per_sample"), (gpt2, "per_sample"),
    (convolutional, "per_sample"), (computed, "subset"), (vit, "per_sample"), (bert, "per_sample"), (bert, "subset"),
    (timm_model("swin_tiny_patch4_window7_224", **SWIN), "per_sample"), (timm_model("nf_resnet26"), "per_sample"),
    (timm_model("beit_base_patch16_224", **BEIT), "per_sample"), (timm_model("tf_efficientnet_b0"), "per_sample"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "mode"), slow_but(CASES[:3], CASES), ids=lambda value: getattr(value, "__name__", value)
)
def test_compiled_models_are_measured_in_one_graph(build, mode):
    torch.manual_seed(0)
    torch.compiler.reset()
    model, x = build()

    def backward(model: nn.Module) -> None:
        out = model(x)
        getattr(out, "logits", out).square().mean().backward()

    with PerSampleNorms(model, mode, norm_samples=2) as norms:
        backward(model)
        sums, norm_of = norms.sums(), norms.per_sample()
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            norms.reset()
            model.zero_grad()
            backward(compiled)
            assert norms.untracked == {}
            torch.testing.assert_close(norms.sums(), sums)
            torch.testing.assert_close(norms.per_sample(), norm_of)
            torch.testing.assert_close([p.grad for p in model.parameters() if p.grad is not None],
                                       [g for g in gradients if g is not None])  # fmt: skip


class Table(nn.Module):
    """An MLP computes a table from constants, in place: dynamo loses the marks of what an in-place function returns."""

    def __init__(self, rows):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, 6), nn.ReLU(inplace=True), nn.Linear(6, 4))
        self.head = nn.Linear(4, 3)
        self.register_buffer("grid", torch.randn(*rows, 2))

    def forward(self, x):
        return self.head(x * self.mlp(self.grid).flatten(0, -2).mean(0).sigmoid())


ROWS = [((5,),), ((10, 7),), ((10,),), ((1, 7),), ((5, 7),)]


@pytest.mark.filterwarnings("ignore:PerSampleNorms cannot measure")
@pytest.mark.parametrize("rows", slow_but(ROWS[:2], ROWS))
def test_what_dynamo_hides_is_right_or_not_measured(rows):
    torch.manual_seed(0)
    torch.compiler.reset()
    model, x = Table(rows).double(), torch.randn(5, 4).double()
    with PerSampleNorms(model) as norms:
        model(x).square().sum().backward()
        exact = norms.per_sample()
    model.zero_grad()
    with PerSampleNorms(model) as norms:
        torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
        compiled = norms.per_sample()
        norms.denominators()
    assert {"head.weight", "head.bias"} <= compiled.keys()
    for name, value in compiled.items():
        torch.testing.assert_close(value, exact[name])
    weights = {name for name, p in model.named_parameters() if p.ndim >= 2}
    assert weights <= compiled.keys() | norms.untracked.keys()


def test_measuring_stays_out_of_cuda_graphs():
    """A replay would not run it: `mode="reduce-overhead"` would silently measure nothing."""
    assert torch.Tag.cudagraph_unsafe in torch.ops.hf_clars.close.default.tags
