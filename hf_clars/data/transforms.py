"""From image bytes to uint8 tensors `[3, image_size, image_size]`; normalising is the model's, on its device.

The cheap steps are Pillow's own rather than torchvision's transforms: on 28×28 images the wrappers of `v2.Compose` and
its parts would cost more than decoding does.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..errors import UserError

AUGMENTATIONS = ("random_resized_crop", "random_crop", "flip", "none")


def decode_image(example_image: dict[str, Any]) -> Image.Image:
    """The image of `{"bytes": bytes | None, "path": str | None}` in mode RGB and upright.

    Bytes win over the path, which may be a local file or any address fsspec opens (`hf://...`). Orientation tags are
    applied; CMYK, grey, palette and 16-bit images become 8-bit RGB; transparency is dropped.

    Raises what Pillow raises for what is no image or a broken one, and `OSError` for what cannot be read.
    """
    data, path = example_image["bytes"], example_image["path"]
    if data is None:
        if path is None:
            raise ValueError("it has neither bytes nor a path")
        with fsspec.open(path, "rb") as file:
            data = file.read()
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255, not scale
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # by way of RGBA, as Pillow asks for when a palette carries transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def train_transform(
    image_size: int, augmentation: str = "random_resized_crop", min_scale: float = 0.08
) -> Callable[[Image.Image], Tensor]:
    """PIL image → uint8 `[3, image_size, image_size]`, augmented at random with torch's generator.

    Args:
        image_size: side of the result.
        augmentation: `random_resized_crop` (a random part of the image, then a random mirror image), `random_crop`
            (a window shifted by up to `image_size // 8` over black borders, then a random mirror image), `flip` (only
            the mirror image) or `none`. All but the first bring other sizes to `image_size` by resizing the shorter
            side and cropping the centre.
        min_scale: smallest part of the image's area that `random_resized_crop` takes.

    Raises:
        UserError: unknown augmentation, `image_size` below 1 or `min_scale` outside (0, 1].
    """
    if augmentation not in AUGMENTATIONS:
        raise UserError(f"augmentation={augmentation!r} is none of: {', '.join(AUGMENTATIONS)}")
    if not 0 < min_scale <= 1:
        raise UserError(f"min_scale={min_scale} must be above 0 and at most 1")
    if augmentation == "random_resized_crop":
        _check_size(image_size)
        return _Steps(v2.RandomResizedCrop(image_size, scale=(min_scale, 1.0), antialias=True), _random_flip)
    fit = _Fit(image_size, crop_fraction=1.0)
    return {
        "random_crop": _Steps(fit, _random_shift, _random_flip),
        "flip": _Steps(fit, _random_flip),
        "none": _Steps(fit),
    }[augmentation]


def eval_transform(image_size: int, crop_fraction: float = 0.875) -> Callable[[Image.Image], Tensor]:
    """PIL image → uint8 `[3, image_size, image_size]`: shorter side to `image_size / crop_fraction`, then the centre.

    An image that has the target size already is taken as it is: resizing it up only to cut it would lose its border.

    Raises:
        UserError: `image_size` below 1 or `crop_fraction` outside (0, 1].
    """
    return _Steps(_Fit(image_size, crop_fraction))


class _Steps:
    """Image steps one after the other, then the tensor. Picklable, as workers may be started afresh."""

    def __init__(self, *steps: Callable[[Image.Image], Image.Image]) -> None:
        self.steps = steps

    def __call__(self, image: Image.Image) -> Tensor:
        for step in self.steps:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # v2's PILToTensor, at a third of its cost


class _Fit:
    """Resize the shorter side (bilinear, antialiased) and crop the centre, unless the size is right already."""

    def __init__(self, image_size: int, crop_fraction: float) -> None:
        _check_size(image_size)
        if not 0 < crop_fraction <= 1:
            raise UserError(f"crop_fraction={crop_fraction} must be above 0 and at most 1")
        self.size = image_size
        self.shorter_side = round(image_size / crop_fraction)

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size == (self.size, self.size):
            return image
        return F.center_crop(F.resize(image, [self.shorter_side], antialias=True), [self.size])


def _random_shift(image: Image.Image) -> Image.Image:
    """Padding and cropping in one go: what Pillow's crop takes from beyond the border is black."""
    width, height = image.size
    reach = width // 8
    left, top = torch.randint(-reach, reach + 1, (2,)).tolist()
    return image.crop((left, top, left + width, top + height))


def _random_flip(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image) if torch.rand(()).item() < 0.5 else image


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise UserError(f"image_size={image_size} must be at least 1")
