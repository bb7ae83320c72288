"""ResNets for CIFAR: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from .classifier import CIFAR, Classifier, check_count, he_init

default_cfgs = generate_default_cfgs(
    {
        f"resnet{layers}_cifar": {**CIFAR, "first_conv": "conv", "paper_ids": "arXiv:1512.03385"}
        for layers in (8, 20, 56)
    }
)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.more_channels = outputs - inputs

    def shortcut(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel, and zeros for the channels that `x` lacks."""
        if self.stride == 1 and self.more_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNetCifar(Classifier):
    """A 3x3 convolution and three stages of `blocks` blocks at full, half and quarter resolution: 6·blocks + 2 layers.

    Args:
        blocks: n of the paper, blocks in each stage.
        num_classes: size of the classifier; 0 for none.
        in_chans: channels of the images.
        width: channels of the first stage; the others have two and four times as many.
        stem_stride: of the first convolution. The paper's is 1; 2 and 4 make every stage that much smaller on a side,
            and a step 4 and 16 times as cheap.
    """

    def __init__(
        self, blocks: int, num_classes: int = 10, in_chans: int = 3, width: int = 16, stem_stride: int = 1
    ) -> None:
        super().__init__(num_classes, in_chans)
        check_count("width", width)
        check_count("stem_stride", stem_stride)
        self.conv = nn.Conv2d(in_chans, width, 3, stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages, inputs = [], width
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(Block(inputs, outputs, stride), *rest))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.num_features = self.head_hidden_size = inputs
        for module in self.modules():
            he_init(module)
        self.reset_classifier(num_classes)

    def make_classifier(self) -> nn.Module:
        return he_init(nn.Linear(self.num_features, self.num_classes))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(F.relu(self.norm(self.conv(x))))

    def pre_logits(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-8 for CIFAR, n = 1: 0.08 M parameters."""
    return build_model_with_cfg(ResNetCifar, "resnet8_cifar", pretrained, blocks=1, **kwargs)


def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-20 for CIFAR, n = 3: 0.27 M parameters."""
    return build_model_with_cfg(ResNetCifar, "resnet20_cifar", pretrained, blocks=3, **kwargs)


def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-56 for CIFAR, n = 9: 0.85 M parameters."""
    return build_model_with_cfg(ResNetCifar, "resnet56_cifar", pretrained, blocks=9, **kwargs)
