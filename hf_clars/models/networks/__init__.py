"""Small networks for CIFAR and MNIST that timm lacks and CLARS was tried on. Importing this registers them with timm.

`timm.create_model`, `hf_clars.build_model` and the recipe's `--model_name` find them by name, like any of timm's own.
"""

import warnings
from collections.abc import Callable
from typing import Any

from timm.models import is_model, model_entrypoint, register_model

from .resnet_cifar import resnet8_cifar, resnet20_cifar, resnet56_cifar
from .sigmoid import cnn5_sigmoid, fcn5_sigmoid
from .vgg_cifar import vgg11_bn_cifar

__all__ = [
    "cnn5_sigmoid",
    "fcn5_sigmoid",
    "resnet8_cifar",
    "resnet20_cifar",
    "resnet56_cifar",
    "vgg11_bn_cifar",
]


def _register(entrypoint: Callable[..., Any]) -> None:
    name = entrypoint.__name__
    with warnings.catch_warnings():
        if is_model(name) and model_entrypoint(name).__module__ == entrypoint.__module__:
            warnings.simplefilter("ignore")  # ours, reloaded; timm still warns where the name was somebody else's
        register_model(entrypoint)


for _entrypoint in (resnet8_cifar, resnet20_cifar, resnet56_cifar, vgg11_bn_cifar, fcn5_sigmoid, cnn5_sigmoid):
    _register(_entrypoint)
