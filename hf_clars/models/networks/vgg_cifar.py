"""VGG-11 with BatchNorm for CIFAR: Simonyan & Zisserman 2015, configuration A, with a classifier for 32x32 images."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from .classifier import CIFAR, Classifier, check_count, he_init

default_cfgs = generate_default_cfgs(
    {"vgg11_bn_cifar": {**CIFAR, "first_conv": "features.0", "paper_ids": "arXiv:1409.1556"}}
)

CONFIGURATION_A = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # channels in units of `width`; a max-pool ends each group


class VggCifar(Classifier):
    """Configuration A's convolutions, each with BatchNorm, and a classifier of three layers with dropout.

    Args:
        num_classes: size of the classifier; 0 for none.
        in_chans: channels of the images.
        width: channels of the first convolution; all others are multiples of it, up to 8.
        drop_rate: of both dropouts in the classifier.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: int = 64, drop_rate: float = 0.5) -> None:
        super().__init__(num_classes, in_chans)
        check_count("width", width)
        layers: list[nn.Module] = []
        inputs = in_chans
        for group in CONFIGURATION_A:
            for outputs in (width * multiple for multiple in group):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            # Rounding up makes no difference to powers of two, and never takes a map of one pixel away.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Sequential(
            nn.Dropout(drop_rate),
            nn.Linear(inputs, inputs),
            nn.ReLU(),
            nn.Dropout(drop_rate),
            nn.Linear(inputs, inputs),
            nn.ReLU(),
        )
        self.num_features = self.head_hidden_size = inputs
        for module in self.modules():
            he_init(module)
        self.reset_classifier(num_classes)

    def make_classifier(self) -> nn.Module:
        return he_init(nn.Linear(self.num_features, self.num_classes))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def pre_logits(self, x: Tensor) -> Tensor:
        return self.hidden(F.adaptive_avg_pool2d(x, 1).flatten(1))  # one pixel already, of images up to 32x32


def vgg11_bn_cifar(pretrained: bool = False, **kwargs: Any) -> VggCifar:
    """VGG-11 with BatchNorm for CIFAR: 9.76 M parameters."""
    return build_model_with_cfg(VggCifar, "vgg11_bn_cifar", pretrained, **kwargs)
