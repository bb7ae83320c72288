"""timm models as Hugging Face models: timm's weights and initialisation, `save_pretrained` and `from_pretrained`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import to_2tuple
from torch import Tensor
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from ..errors import UserError, one_line
from . import networks  # noqa: F401 (registers them with timm)

_WEIGHTS = ("pretrained", "checkpoint_path")
GREY = (0.299, 0.587, 0.114)  # ITU-R 601: what red, green and blue add to the brightness; 1 in all, so grey stays grey


class TimmForImageClassification(TimmWrapperForImageClassification):
    """transformers' timm wrapper that also takes uint8 images and normalises them on the device they are on.

    uint8 is a quarter of what the same batch weighs in float32, on its way to the device and while it waits there.
    The mean and standard deviation are those of the timm model, from its `pretrained_cfg`. Where they are of one
    channel, so is the model's input, and RGB images are made grey.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: TimmWrapperConfig) -> None:
        super().__init__(config)
        data = config.pretrained_cfg
        for name in ("mean", "std"):
            values = torch.tensor(data[name], dtype=torch.float32, device="cpu").view(1, -1, 1, 1) * 255
            self.register_buffer(f"pixel_{name}", values, persistent=False)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Restore the buffers that are not saved; weights are timm's and stay."""
        if module is self:
            for name in ("mean", "std"):
                values = torch.tensor(self.config.pretrained_cfg[name]).view(1, -1, 1, 1) * 255
                getattr(self, f"pixel_{name}").copy_(values)
        super()._init_weights(module)

    def set_preprocessing(self, image_size: int, crop_fraction: float) -> None:
        """State that images come to the model as `hf_clars.data.eval_transform` of the same arguments makes them.

        What is stated is saved with the model. `AutoImageProcessor`, `pipeline("image-classification")` and timm read
        it from config.json and do the same. Before, it is timm's statement about the architecture.
        """
        config = self.config.pretrained_cfg
        config["input_size"] = (config["input_size"][0], image_size, image_size)
        config.update(crop_pct=crop_fraction, crop_mode="center", interpolation="bilinear")

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """As `TimmWrapperForImageClassification`, with `pixel_values` `[B, C, H, W]` normalised floats or uint8.

        C is what the model was built with (`in_chans`), or 3 for a model of one channel.
        """
        is_uint8 = pixel_values.dtype == torch.uint8
        if self.pixel_mean.shape[1] == 1 and pixel_values.shape[1] == 3:
            channels = pixel_values.to(self.device, torch.float32).unbind(1)
            pixel_values = _grey(channels).unsqueeze(1)
        if is_uint8:
            pixel_values = (pixel_values.to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std
        return super().forward(pixel_values, labels, **kwargs)


def _grey(rgb: Sequence[Any]) -> Any:
    return sum(weight * channel for weight, channel in zip(GREY, rgb, strict=True))


def _data_config(timm_model: torch.nn.Module, in_chans: int | None, img_size: Any) -> dict[str, Any]:
    """timm's, which are always those of the channels and the size that an architecture has by default.

    Where the model has other channels, each gets the mean and the standard deviation of grey. The channels of
    photographs are so much alike that the standard deviation is nearly the same mixture as the mean.
    """
    config = resolve_model_data_config(timm_model)
    channels = in_chans or config["input_size"][0]
    for name in ("mean", "std"):
        values = config[name]
        if len(values) != channels:
            config[name] = (_grey(values) if len(values) == 3 else values[0],) * channels
    config["input_size"] = (channels, *(config["input_size"][1:] if img_size is None else to_2tuple(img_size)))
    return config


def build_model(name: str, num_classes: int, **timm_kwargs: Any) -> TimmForImageClassification:
    """`timm.create_model(name, num_classes=num_classes, **timm_kwargs)`, bit for bit, as a Hugging Face model.

    Constructing transformers' wrapper from a configuration would re-initialise timm's layers to N(0, 0.02). The layer
    norms are what CLARS divides by and multiplies with, so that is another method; here timm's own values are kept.

    Args:
        name: a timm architecture, `timm.list_models()`.
        num_classes: size of the classifier.
        timm_kwargs: further arguments of `timm.create_model`; kept in the model's configuration.

    Raises:
        UserError: unknown architecture (the nearest names are given), arguments that timm refuses, or `num_classes`
            below 1.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes={num_classes!r} must be a whole number of at least 1")
    timm_model = _timm_model(name, num_classes, timm_kwargs)
    not_kept = set(inspect.signature(timm.create_model).parameters) - {"kwargs"}
    config = TimmWrapperConfig(  # type: ignore[call-arg]
        architecture=name,
        num_labels=num_classes,
        model_args={k: v for k, v in timm_kwargs.items() if k not in not_kept},
        pretrained_cfg=_data_config(timm_model, timm_kwargs.get("in_chans"), timm_kwargs.get("img_size")),
    )
    with torch.device("meta"):  # a shell: its weights would only be thrown away
        model = TimmForImageClassification(config)
    model.timm_model = timm_model
    return model


def check_model(name: str, timm_kwargs: Mapping[str, Any]) -> None:
    """Raises `UserError` where `build_model` would, in a moment: weights are neither made nor loaded."""
    plain = {key: value for key, value in timm_kwargs.items() if key not in _WEIGHTS}
    try:
        with torch.device("meta"):
            _timm_model(name, 1, plain)
    except UserError:  # or it looks at numbers while it is built, which only a model with weights has
        _timm_model(name, 1, plain)


def _timm_model(name: str, num_classes: int, timm_kwargs: Mapping[str, Any]) -> torch.nn.Module:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; see timm.list_models()"
        raise UserError(f"timm {timm.__version__} has no model {name!r}{hint}")
    try:
        return timm.create_model(name, num_classes=num_classes, **timm_kwargs)
    except Exception as error:  # of arguments, of files and of the Hub: models raise whatever they meet
        what = one_line(error) or type(error).__name__
        raise UserError(f"timm cannot build {name!r} with model_kwargs={timm_kwargs}: {what}") from error
