"""The networks that hf_clars adds to timm: sizes, layers, timm's conventions, saving, RGB images for one channel."""

import importlib

import pytest
import timm
import torch
from torch import nn
from transformers import AutoModelForImageClassification

import hf_clars
import hf_clars.models.networks
from hf_clars import PerSampleNorms, TimmForImageClassification, UserError, build_model
from hf_clars.models.networks.resnet_cifar import Block

from .helpers.scripts import run_python

PARAMETERS = {
    "resnet8_cifar": 75_290,
    "resnet20_cifar": 269_722,
    "resnet56_cifar": 853_018,
    "vgg11_bn_cifar": 9_756_426,
    "fcn5_sigmoid": 784 * 200 + 3 * 200 * 200 + 200 * 10 + 4 * 200 + 10,
    "cnn5_sigmoid": 20 * (16 + 1) + 2 * 20 * (20 * 25 + 1) + (20 + 10) * (20 * 9 + 1),
}
CIFAR = [name for name in PARAMETERS if name.endswith("_cifar")]
NARROW = {name: {"width": 4} if name in CIFAR else {} for name in PARAMETERS}


@pytest.mark.parametrize("imports", ["import hf_clars, timm", "import timm, hf_clars"])
def test_timm_knows_them_once_hf_clars_is_imported(imports):
    """In either order; an import of hf_clars alone imports nothing."""
    program = f"{imports}\nassert timm.is_model('resnet8_cifar') and timm.is_model('fcn5_sigmoid')"
    run_python("-W", "error::UserWarning", "-c", program)
    run_python("-c", "import sys, hf_clars\nassert {'timm', 'torch', 'transformers'}.isdisjoint(sys.modules)")
    assert set(hf_clars.__all__) <= set(dir(hf_clars))


def pixels(model, batch=2):
    return torch.randn(batch, *model.pretrained_cfg["input_size"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_size_and_shapes(name):
    model = timm.create_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    features = model.forward_features(pixels(model))
    assert features.shape[:2] == (2, model.num_features)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.forward_head(features).shape == (2, model.num_classes) == (2, 10)
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()
    if model.pretrained_cfg["first_conv"]:
        assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == model.in_chans
    grey = name not in CIFAR
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == ((1, 28, 28) if grey else (3, 32, 32))
    assert len(data["mean"]) == len(data["std"]) == model.in_chans
    assert data["mean"][0] * 255 == pytest.approx(0.1307 * 255 if grey else 125.3)
    assert data["std"][-1] * 255 == pytest.approx(0.3081 * 255 if grey else 66.7)


def test_timm_finds_them_and_reloading_is_silent():
    def check():
        assert set(timm.list_models("*_cifar")) == set(CIFAR)
        assert set(timm.list_models("*5_sigmoid")) == set(PARAMETERS) - set(CIFAR)
        assert all(timm.is_model(name) for name in PARAMETERS)
        assert set(hf_clars.models.networks.__all__) == set(PARAMETERS)

    check()
    for module in (hf_clars.models.networks.resnet_cifar, hf_clars.models.networks):  # warnings are errors here
        importlib.reload(module)
    check()


@pytest.mark.parametrize("name", PARAMETERS)
def test_there_are_no_pretrained_weights(name):
    assert name not in timm.list_models(pretrained=True)
    with pytest.raises(RuntimeError):
        timm.create_model(name, pretrained=True)
    with pytest.raises(UserError, match=name):
        build_model(name, 10, pretrained=True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_reset_classifier(name):
    model = timm.create_model(name, **NARROW[name]).double().eval()
    x = pixels(model).double()
    hidden = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    model.reset_classifier(0, global_pool="avg")
    assert torch.equal(model(x), hidden)
    assert timm.create_model(name, num_classes=0)(pixels(model)).shape == (2, timm.create_model(name).head_hidden_size)
    with pytest.raises(UserError, match="global_pool='max'"):
        model.reset_classifier(7, "max")


@pytest.mark.parametrize(("stride", "outputs", "size"), [(1, 3, 6), (2, 6, 6), (2, 5, 7)])
def test_shortcut_without_parameters(stride, outputs, size):
    x = torch.randn(2, 3, size, size)
    block = Block(3, outputs, stride).eval()
    half = (size + stride - 1) // stride
    expected = torch.zeros(2, outputs, half, half)
    for channel in range(3):
        for row in range(half):
            for column in range(half):
                expected[:, channel, row, column] = x[:, channel, row * stride, column * stride]
    nn.init.zeros_(block.norm2.weight)  # nothing but the shortcut is left
    assert torch.equal(block(x), expected.relu())


def test_resnet_stages_and_initialisation():
    model = timm.create_model("resnet20_cifar")
    sizes = []
    x = torch.randn(1, 3, 32, 32)
    x = model.conv(x)
    for stage in model.stages:
        x = stage(x)
        sizes.append((len(stage), *x.shape[1:]))
    assert sizes == [(3, 16, 32, 32), (3, 32, 16, 16), (3, 64, 8, 8)]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == 20
    for conv in convolutions:
        assert conv.bias is None
        assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.15)
    assert float(model.classifier.weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.15)
    assert not model.classifier.bias.any()


def test_a_stem_with_a_stride_makes_all_stages_smaller():
    model, plain = (timm.create_model("resnet20_cifar", width=4, **kwargs) for kwargs in ({"stem_stride": 2}, {}))
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 16, 4, 4)
    assert [p.shape for p in model.parameters()] == [p.shape for p in plain.parameters()]
    with pytest.raises(UserError, match="stem_stride=0 must be a whole number"):
        build_model("resnet20_cifar", 10, stem_stride=0)


def test_vgg_is_configuration_a_at_32():
    model = timm.create_model("vgg11_bn_cifar")
    seen = []

    def note(module, inputs, output):
        name = type(module).__name__
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            seen.append(output.shape[1])
        elif isinstance(module, nn.MaxPool2d):
            seen.append("M")
            assert output.shape[-1] * 2 == inputs[0].shape[-1]
        elif isinstance(module, nn.Dropout):
            seen.append(f"D{module.p}")
        else:
            seen.append(name)

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(note)
    model(torch.randn(2, 3, 32, 32))
    expected = []
    for v in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        expected += ["M"] if v == "M" else [v, "BatchNorm2d", "ReLU"]
    assert seen == [*expected, "D0.5", 512, "ReLU", "D0.5", 512, "ReLU", 10]
    halved = timm.create_model("vgg11_bn_cifar", width=32, drop_rate=0.1)
    assert (halved.num_features, halved.hidden[0].p, halved.features[0].out_channels) == (256, 0.1, 32)


@pytest.mark.parametrize("size", [16, 28, 32, 33, 64])
@pytest.mark.parametrize("name", CIFAR)
def test_other_image_sizes(name, size):
    model = timm.create_model(name, width=4, in_chans=2, num_classes=3)
    model(torch.randn(2, 2, size, size)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sigmoid_networks_take_one_size_only():
    for name in ("fcn5_sigmoid", "cnn5_sigmoid"):
        with pytest.raises(UserError, match="images are 32x32; this network takes 28x28 only"):
            build_model(name, 10)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert build_model("fcn5_sigmoid", 3, img_size=8)(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 3)
    model = timm.create_model("fcn5_sigmoid")
    assert [layer.in_features for layer in model.layers] == [784, 200, 200, 200]
    for layer in (*model.layers, model.classifier):
        assert float(layer.weight.detach().std()) == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.1)
        assert 0.2 < float(layer.bias.detach().std()) < 2


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet8_cifar", {"width": 6}),
        ("resnet8_cifar", {"in_chans": 1}),
        ("vgg11_bn_cifar", {"width": 4, "in_chans": 1, "drop_rate": 0.25}),
        ("fcn5_sigmoid", {"img_size": 16}),
        ("fcn5_sigmoid", {"in_chans": 3}),
        ("cnn5_sigmoid", {}),
        ("resnet10t", {"channels": (8, 8, 8, 8), "in_chans": 3}),
    ],
)
def test_saving_and_loading(name, arguments, tmp_path):
    """transformers loads them without hf_clars, too; then images are floats that somebody has normalised."""
    model = build_model(name, 5, **arguments).eval()
    model.config.id2label = dict(enumerate("abcde"))
    data = model.config.pretrained_cfg
    size = [arguments.get("img_size", 28)] * 2
    images = torch.randint(0, 256, (2, data["input_size"][0], *size), dtype=torch.uint8)
    expected = model(images, labels=torch.tensor([0, 4]))
    assert expected.loss.ndim == 0
    model.save_pretrained(tmp_path)
    again = TimmForImageClassification.from_pretrained(tmp_path).eval()
    saved = model.state_dict()
    assert again.state_dict().keys() == saved.keys()
    assert all(torch.equal(saved[k], v) for k, v in again.state_dict().items())
    # Not to the bit: weights are where the file was mapped, and without AVX-512 rounding depends on alignment.
    torch.testing.assert_close(again(images).logits, expected.logits, rtol=1e-5, atol=1e-6)
    assert again.config.id2label == dict(enumerate("abcde"))
    assert again.timm_model.in_chans == model.timm_model.in_chans
    if name == "vgg11_bn_cifar":
        assert again.timm_model.hidden[0].p == 0.25
    mean, std = (torch.tensor(data[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    anywhere = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert isinstance(anywhere.timm_model, type(model.timm_model))
    found = anywhere((images / 255 - mean) / std).logits
    torch.testing.assert_close(found, expected.logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn5_sigmoid", "resnet10t"])
def test_rgb_images_for_one_channel(name):
    model = build_model(name, 4, in_chans=1).eval()
    grey = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    rgb = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)
    mean, std = (model.config.pretrained_cfg[key] for key in ("mean", "std"))
    assert len(mean) == len(std) == 1

    def logits(images):
        return model(images).logits

    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(logits(grey.expand(-1, 3, -1, -1)), logits(grey), **close)
    floats = (grey / 255 - mean[0]) / std[0]
    torch.testing.assert_close(logits(floats.expand(-1, 3, -1, -1)), logits(floats), **close)
    torch.testing.assert_close(logits(floats), logits(grey), rtol=1e-5, atol=1e-6)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)
    by_hand = (((rgb / 255 * weights).sum(1, keepdim=True) - mean[0]) / std[0]).float()
    torch.testing.assert_close(logits(rgb), logits(by_hand), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("in_chans", [1, 2, 3])
@pytest.mark.parametrize("name", ["resnet10t", "resnet8_cifar", "cnn5_sigmoid"])
def test_mean_and_std_have_an_entry_per_channel(name, in_chans):
    config = build_model(name, 3, in_chans=in_chans).config.pretrained_cfg
    default = timm.data.resolve_model_data_config(timm.create_model(name))
    assert config["input_size"][0] == in_chans
    for key in ("mean", "std"):
        assert len(config[key]) == in_chans
        if len(default[key]) == in_chans:
            assert config[key] == default[key]
        else:
            assert len(set(config[key])) == 1
            assert min(default[key]) - 1e-9 <= config[key][0] <= max(default[key]) + 1e-9


@pytest.mark.parametrize("name", PARAMETERS)
def test_norms_of_every_parameter_are_measured(name):
    model = build_model(name, 10, **NARROW[name])
    size = model.timm_model.pretrained_cfg["input_size"][-1]
    with PerSampleNorms(model) as norms:
        images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
        model(images, labels=torch.tensor([0, 1, 2])).loss.backward()
        assert norms.untracked == {}
        measured = norms.per_sample()
    for parameter, weight in model.named_parameters():
        if weight.ndim >= 2:
            assert measured[parameter].shape == (3,)
            assert measured[parameter].isfinite().all()
            assert (measured[parameter] > 0).all()


@pytest.mark.parametrize("name", PARAMETERS)
def test_unknown_and_impossible_arguments(name):
    with pytest.raises(UserError, match=rf"timm cannot build '{name}' with model_kwargs=\{{'depht': 3\}}"):
        build_model(name, 10, depht=3)
    if name in CIFAR:
        for width in (0, True, 1.5):
            with pytest.raises(UserError, match=f"width={width} must be a whole number"):
                build_model(name, 10, width=width)
