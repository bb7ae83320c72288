"""build_model: timm's weights bit for bit, Hugging Face's saving and loading, uint8 in."""

import pytest
import timm
import torch
from transformers import AutoModelForImageClassification

from hf_clars import TimmForImageClassification, UserError, build_model


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv2_100"])
def test_timm_initialisation_is_kept_bit_for_bit(name):
    """transformers' wrapper re-initialises it: the linear layers of these, and far more in others."""
    torch.manual_seed(3)
    ours = build_model(name, 7).timm_model.state_dict()
    torch.manual_seed(3)
    for key, value in timm.create_model(name, num_classes=7).state_dict().items():
        assert torch.equal(ours[key], value), key


def test_saving_and_loading(tmp_path):
    model = build_model("resnet10t", 5, channels=(8, 8, 8, 8), in_chans=3).eval()
    model.config.id2label = dict(enumerate("abcde"))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = model(images).logits
    model.save_pretrained(tmp_path)
    again = TimmForImageClassification.from_pretrained(tmp_path).eval()
    saved = model.state_dict()
    assert all(torch.equal(saved[k], v) for k, v in again.state_dict().items())
    torch.testing.assert_close(again(images).logits, expected)
    assert again.config.id2label == dict(enumerate("abcde"))

    data = model.config.pretrained_cfg
    mean, std = (torch.tensor(data[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    anywhere = AutoModelForImageClassification.from_pretrained(tmp_path).eval()  # without hf_clars, with floats
    torch.testing.assert_close(anywhere((images / 255 - mean) / std).logits, expected, rtol=1e-5, atol=1e-6)


def test_uint8_is_normalised_like_floats():
    model = build_model("resnet10t", 5).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    data = model.config.pretrained_cfg
    mean, std = (torch.tensor(data[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(
        model(images).logits, model.timm_model((images / 255 - mean) / std), rtol=1e-5, atol=1e-6
    )
    assert model(images, labels=torch.tensor([0, 4])).loss.ndim == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("resnet51", 3), r"has no model 'resnet51'; did you mean resnet\w+"),
        (("resnet18", 0), "num_classes=0 must be a whole number of at least 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        build_model(*call)
    with pytest.raises(UserError, match=r"timm cannot build 'resnet18' with model_kwargs=\{'depht': 3\}"):
        build_model("resnet18", 3, depht=3)
