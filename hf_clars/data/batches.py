"""Raw examples into uint8 batches, whatever some of them are worth."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import default_collate

from ..errors import UserError
from ..safety.texts import plain_records
from .labels import label_number
from .transforms import ImageTooLargeError, Transform, decode_image

SKIP_REASONS = ("unreadable", "too_large", "label", "shard")
IGNORED_LABEL = -100  # torch's cross entropy leaves it out

_NAMED = 10  # skipped examples that each worker names; all are counted

_SHOWN = 60  # characters of a label, which may be any text

logger = logging.getLogger(__name__)
logger.addFilter(plain_records)


class ImageCollator:
    """Decode and stack raw examples: `{"pixel_values": uint8 [b, 3, H, W], "labels": int64 [b]}`. Picklable.

    An example that cannot be used (`SKIP_REASONS`: an image that no reader knows or that is cut short, one beyond
    Pillow's limit for decompression bombs, a label outside the classes, a shard that is gone) does not end a training.
    Where one is skipped, the next usable one of the micro-batch stands in, or one of the micro-batch before, so that
    all micro-batches weigh alike.

    Args:
        transform: `Transform`; the same H and W for every image.
        num_classes: labels must lie in `[0, num_classes)`.
        training: batches have `"skipped"`, int64 `[len(SKIP_REASONS)]`, how many were skipped for each reason. While
            evaluating, nothing stands in: an example that cannot be used is a black image whose label,
            `IGNORED_LABEL`, neither loss nor accuracy counts.

    Raises:
        UserError: no example of the first micro-batch can be used.
    """

    def __init__(self, transform: Transform, num_classes: int, *, training: bool = True) -> None:
        self.transform = transform
        self.num_classes = num_classes
        self.training = training
        self._named: set[str] = set()
        self._last: tuple[Tensor, int] | None = None

    def __call__(self, examples: list[dict[str, Any]], out: Tensor | None = None) -> dict[str, Tensor]:
        """One batch; its images in `out`, where that is given."""
        skipped = torch.zeros(len(SKIP_REASONS), dtype=torch.int64)
        usable: list[tuple[Tensor, int] | None] = []
        for example in examples:
            if "skip" in example:
                skipped[SKIP_REASONS.index(example["skip"])] += 1
            try:
                usable.append(self._use(example))
            except _SkippedError as skip:
                usable.append(None)
                if "skip" not in example:
                    skipped[SKIP_REASONS.index(skip.reason)] += 1
                self._name(skip)
        filled = self._filled(usable) if self.training else self._blanked(usable)
        images = [pixels for pixels, _ in filled]
        batch = {
            # default_collate stacks right into the shared memory that a worker hands over
            "pixel_values": default_collate(images) if out is None else torch.stack(images, out=out),
            "labels": torch.tensor([label for _, label in filled], dtype=torch.int64),
        }
        return {**batch, "skipped": skipped} if self.training else batch

    def _use(self, example: dict[str, Any]) -> tuple[Tensor, int]:
        label = self._label(example)
        with _randomness_of(example):
            return self._pixels(example), label

    def _label(self, example: dict[str, Any]) -> int:
        label = example["label"]
        number = label_number(label)
        if number is None or not 0 <= number < self.num_classes:
            raise _SkippedError(
                "label",
                f"label {_short(label)} of {_name(example)} is not one of the {self.num_classes} classes "
                f"0 to {self.num_classes - 1}: correct num_classes or the data",
            )
        return number

    def _pixels(self, example: dict[str, Any]) -> Tensor:
        try:
            return self.transform(decode_image(example["image"]))
        except ImageTooLargeError as error:
            raise _SkippedError("too_large", f"{_name(example)} is too large: {error}") from error
        except Exception as error:  # Pillow's plug-ins raise whatever their formats' parsers raise
            reason = "no image in a format that Pillow knows"
            if not isinstance(error, UnidentifiedImageError):
                reason = " ".join(str(error).split()) or type(error).__name__
            message = f"cannot read {_name(example)} with label {str(example['label'])[:_SHOWN]}: {reason}"
            raise _SkippedError("unreadable", message) from error

    def _filled(self, usable: list[tuple[Tensor, int] | None]) -> list[tuple[Tensor, int]]:
        standing_in = next((item for item in usable if item is not None), self._last)
        if standing_in is None:
            raise UserError(f"none of {len(usable)} examples of a micro-batch can be used: see the lines before")
        filled = []
        for item in reversed(usable):
            standing_in = item or standing_in
            filled.append(standing_in)
        self._last = filled[0]
        return filled[::-1]

    def _blanked(self, usable: list[tuple[Tensor, int] | None]) -> list[tuple[Tensor, int]]:
        size = self.transform.size
        return [item or (torch.zeros(3, size, size, dtype=torch.uint8), IGNORED_LABEL) for item in usable]

    def _name(self, skip: _SkippedError) -> None:
        if len(self._named) < _NAMED and str(skip) not in self._named:
            self._named.add(str(skip))
            logger.warning("skipped: %s%s", skip, "; no more are named" if len(self._named) == _NAMED else "")


class _SkippedError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextlib.contextmanager
def _randomness_of(example: dict[str, Any]) -> Iterator[None]:
    """Random numbers that follow from the stream's position alone, so that a resumed run crops as it would have."""
    if "draw" not in example:
        yield
        return
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(example["draw"])
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _short(label: Any) -> str:
    shown = repr(label)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _name(example: dict[str, Any]) -> str:
    image = example["image"] or {}
    if image.get("path") is not None:
        return f"image {image['path']}"
    return f"an image of {len(image.get('bytes') or b'')} bytes without a name"
