"""From image bytes to uint8 tensors `[3, image_size, image_size]`; normalising is the model's, on its device.

Measured on photos of ImageNet's size on one core: a JPEG takes about 0.8 ms to decode, with torchcodec a tenth less
than with Pillow, and bit for bit the same. Resizing takes a sixth of that for uint8 tensors with torch, and half of it
with Pillow. Decoding at a lower resolution seldom applies to crops of 224 pixels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..errors import UserError
from .home import read_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # what image folders hold; Pillow reads them itself
AUGMENTATIONS = ("random_resized_crop", "random_crop", "flip", "none")


class ImageTooLargeError(ValueError):
    """More pixels than Pillow's limit against decompression bombs."""


def decode_image(example_image: dict[str, Any] | None) -> Tensor:
    """The image of `{"bytes": bytes | None, "path": str | None}`, upright and in RGB: uint8 `[3, H, W]`.

    Bytes win over the path, which is that of a local file or an address on the Hub (`hf://…`). Either may be absent.
    Where a `Home` stands beside the path, under `"home"`, it must lie in there. Orientation tags are applied where they
    can be read; CMYK, grey, palette and 16-bit images become 8-bit RGB; transparency is dropped. Formats other than
    `FORMATS` are no images, whatever they begin with: Pillow hands some to other programs.

    Raises what Pillow raises for what is no image or a broken one, `OSError` for what cannot be read,
    `ForeignFileError` for a path that may not be opened, and `ImageTooLargeError` beyond
    `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if example_image is None:
        raise ValueError("it is null")
    data, path = example_image.get("bytes"), example_image.get("path")
    if data is None:
        if path is None:
            raise ValueError("it has neither bytes nor a path")
        home = example_image.get("home")
        data = read_bytes(path if home is None else home.place(path))
    image = _opened(data)
    decode_jpeg = torchcodec()
    if image.format == "JPEG" and decode_jpeg is not None:
        try:
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        except RuntimeError:
            pass  # what it cannot decode, Pillow may, or says what is wrong
    return torch.from_numpy(np.array(_upright_rgb(image))).permute(2, 0, 1)


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():  # Pillow warns from its limit on, and refuses from twice the limit on
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        _ignore_damaged_tags()
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ImageTooLargeError(str(error).partition(",")[0]) from error


@functools.cache
def torchcodec() -> Callable[[Tensor], Tensor] | None:
    """torchcodec's JPEG decoder, where it is installed: `pip install 'hf_clars[fast]'`."""
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError):  # not there, or made for another torch
        return None
    return decode_jpeg  # type: ignore[return-value]


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    _turn_upright(image)
    if image.mode == "RGB":
        return image
    if image.mode == "F":  # from 0 to 1, to 255 or to anything; Pillow would clip them
        raise ValueError("its pixels are floating point numbers, of a range that it does not say")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255, not scale
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # by way of RGBA, as Pillow asks for when a palette carries transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def _turn_upright(image: Image.Image) -> None:
    """As the orientation tag says. One that cannot be read is none: the pixels are what counts."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # Pillow's parsers of tags raise whatever they meet
        _ignore_damaged_tags()
        # It turns the pixels before it rewrites the tags, which may fail as well.
        ImageOps.exif_transpose(image, in_place=True)


def _ignore_damaged_tags() -> None:
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def train_transform(image_size: int, augmentation: str = "random_resized_crop", min_scale: float = 0.08) -> Transform:
    """uint8 `[3, H, W]` → uint8 `[3, image_size, image_size]`, augmented at random with torch's generator.

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
        crop = v2.RandomResizedCrop(image_size, scale=(min_scale, 1.0), antialias=True)
        return Transform(image_size, crop, _random_flip)
    fit = _Fit(image_size, crop_fraction=1.0)
    further = {"random_crop": (_random_shift, _random_flip), "flip": (_random_flip,), "none": ()}
    return Transform(image_size, fit, *further[augmentation])


def eval_transform(image_size: int, crop_fraction: float = 0.875) -> Transform:
    """uint8 `[3, H, W]` → uint8 `[3, image_size, image_size]`: shorter side to `image_size / crop_fraction`, then the
    centre. timm's transforms for evaluation do the same, and round the quotient down as well.

    An image that has the target size already is taken as it is: resizing it up only to cut it would lose its border.

    Raises:
        UserError: `image_size` below 1 or `crop_fraction` outside (0, 1].
    """
    return Transform(image_size, _Fit(image_size, crop_fraction))


class Transform:
    """Steps that an image takes one after the other. Picklable, as workers may be started afresh.

    Args:
        size: side of the result.
        steps: from a uint8 tensor to another.
    """

    def __init__(self, size: int, *steps: Callable[[Tensor], Tensor]) -> None:
        self.size = size
        self.steps = steps

    def __call__(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image


class _Fit:
    """Resize the shorter side (bilinear, antialiased) and crop the centre, unless the size is right already."""

    def __init__(self, image_size: int, crop_fraction: float) -> None:
        _check_size(image_size)
        if not 0 < crop_fraction <= 1:
            raise UserError(f"crop_fraction={crop_fraction} must be above 0 and at most 1")
        self.size = image_size
        self.shorter_side = math.floor(image_size / crop_fraction)

    def __call__(self, image: Tensor) -> Tensor:
        if tuple(image.shape[-2:]) == (self.size, self.size):
            return image
        return F.center_crop(F.resize(image, [self.shorter_side], antialias=True), [self.size])


def _random_shift(image: Tensor) -> Tensor:
    """Padding and cropping in one go: what lies beyond the border is black."""
    reach = image.shape[-1] // 8
    left, top = torch.randint(-reach, reach + 1, (2,)).tolist()
    return torch.nn.functional.pad(image, (-left, left, -top, top))


def _random_flip(image: Tensor) -> Tensor:
    return image.flip(-1) if torch.rand(()).item() < 0.5 else image


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise UserError(f"image_size={image_size} must be at least 1")
