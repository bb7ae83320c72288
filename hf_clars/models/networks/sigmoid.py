"""The networks with sigmoid activations for MNIST that CLARS' authors use: one fully connected, one convolutional."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from .classifier import Classifier, check_size

MNIST: dict[str, Any] = {
    "url": "",  # there are no pretrained weights
    "num_classes": 10,
    "input_size": (1, 28, 28),
    "mean": (0.1307,),
    "std": (0.3081,),
    "crop_pct": 1.0,
    "classifier": "classifier",
}

default_cfgs = generate_default_cfgs(
    {
        "fcn5_sigmoid": {**MNIST, "first_conv": None, "fixed_input_size": True},
        "cnn5_sigmoid": {**MNIST, "first_conv": "convs.0"},
    }
)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


class FcnSigmoid(Classifier):
    """Five linear layers, pixels-200-200-200-200-`num_classes`; weights by He et al. 2015, biases N(0, 1).

    Args:
        num_classes: size of the classifier; 0 for none.
        in_chans: channels of the images.
        img_size: side of the images, or height and width. No others fit.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 1, img_size: int | tuple[int, int] = 28) -> None:
        super().__init__(num_classes, in_chans)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = (height, width)
        sizes = (in_chans * height * width, 200, 200, 200, 200)
        self.layers = nn.ModuleList(_linear(*pair) for pair in pairwise(sizes))
        self.num_features = self.head_hidden_size = sizes[-1]
        self.reset_classifier(num_classes)

    def make_classifier(self) -> nn.Module:
        return _linear(self.num_features, self.num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        check_size(x, self.img_size)
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x


class CnnSigmoid(Classifier):
    """Five convolutions without padding, the last of which leaves one pixel of `num_classes` channels of 28x28.

    Args:
        num_classes: size of the classifier; 0 for none.
        in_chans: channels of the images.
    """

    num_features = 20
    head_hidden_size = 20 * 3 * 3

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__(num_classes, in_chans)
        self.convs = nn.ModuleList(
            (nn.Conv2d(in_chans, 20, 4, stride=2), nn.Conv2d(20, 20, 5), nn.Conv2d(20, 20, 5), nn.Conv2d(20, 20, 3))
        )
        self.reset_classifier(num_classes)

    def make_classifier(self) -> nn.Module:
        return nn.Conv2d(20, self.num_classes, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        check_size(x, (28, 28))
        for conv in self.convs:
            x = torch.sigmoid(conv(x))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return (x if pre_logits else self.classifier(x)).flatten(1)


def fcn5_sigmoid(pretrained: bool = False, **kwargs: Any) -> FcnSigmoid:
    """784-200-200-200-200-10 with sigmoids: 0.28 M parameters."""
    return build_model_with_cfg(FcnSigmoid, "fcn5_sigmoid", pretrained, **kwargs)


def cnn5_sigmoid(pretrained: bool = False, **kwargs: Any) -> CnnSigmoid:
    """Five convolutions with sigmoids: 0.03 M parameters."""
    return build_model_with_cfg(CnnSigmoid, "cnn5_sigmoid", pretrained, **kwargs)
