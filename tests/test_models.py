"""build_model: timm's weights bit for bit, Hugging Face's saving and loading, uint8 in."""

import pytest
import timm
import torch

from hf_clars import UserError, build_model


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv2_100"])
def test_timm_initialisation_is_kept_bit_for_bit(name):
    """transformers' wrapper re-initialises it: the linear layers of these, and far more in others."""
    torch.manual_seed(3)
    ours = build_model(name, 7).timm_model.state_dict()
    torch.manual_seed(3)
    for key, value in timm.create_model(name, num_classes=7).state_dict().items():
        assert torch.equal(ours[key], value), key


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
