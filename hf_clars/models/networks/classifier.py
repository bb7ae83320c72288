"""What the networks of this package share: timm's interface of a classifier, initialisation, CIFAR-10's statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...errors import UserError

CIFAR: dict[str, Any] = {
    "url": "",  # there are no pretrained weights
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255),
    "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
    "crop_pct": 1.0,
    "classifier": "classifier",
}


class Classifier(nn.Module):
    """Features, then a last layer that can be replaced.

    Attributes:
        num_features: channels of what `forward_features` returns.
        head_hidden_size: numbers per image that the last layer sees, which `forward_head(x, pre_logits=True)` returns.
        classifier: the last layer; the identity for `num_classes=0`.
    """

    num_features: int
    head_hidden_size: int
    classifier: nn.Module

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans

    def make_classifier(self) -> nn.Module:
        """A new last layer, initialised, for `num_classes` of at least 1."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """From images `[B, in_chans, H, W]` to features `[B, num_features, …]`."""
        raise NotImplementedError

    def pre_logits(self, x: Tensor) -> Tensor:
        """From features to what the last layer sees, `[B, head_hidden_size]`."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From features to logits `[B, num_classes]`."""
        x = self.pre_logits(x)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer, on the device of the others. The pooling is part of the architecture and stays."""
        if global_pool not in (None, "avg"):
            raise UserError(f"global_pool={global_pool!r}: {type(self).__name__} has no other pooling than its own")
        self.num_classes = num_classes
        like = next(self.parameters())
        self.classifier = (self.make_classifier() if num_classes else nn.Identity()).to(like.device, like.dtype)


def check_count(name: str, value: int) -> None:
    """Raises UserError unless the argument of that name can count channels or pixels."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}={value!r} must be a whole number of at least 1")


def check_size(x: Tensor, size: tuple[int, int]) -> None:
    """Raises UserError unless the images `x` are of the one size that the network is made for."""
    if tuple(x.shape[-2:]) != size:
        raise UserError(f"images are {x.shape[-2]}x{x.shape[-1]}; this network takes {size[0]}x{size[1]} only")


def he_init(module: nn.Module) -> nn.Module:
    """He et al. 2015: N(0, sqrt(2 / n)), with n = k²·out of a convolution and n = in of a linear layer; biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    return module
