"""From raw examples to batches: decoding, transforms, what becomes of bad examples, and how many steps there are."""

import io
import pickle

import numpy as np
import pytest
import torch
from datasets import Image, load_dataset
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hf_clars import UserError
from hf_clars.data import (
    AUGMENTATIONS,
    SKIP_REASONS,
    ImageCollator,
    accumulation_steps,
    decode_image,
    eval_transform,
    nearest_batch_size,
    train_transform,
)
from hf_clars.data.batches import IGNORED_LABEL
from hf_clars.trainer.metrics import accuracies

from .helpers.data_files import huge

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with few cores

# --- the collator ------------------------------------------------------------------------------------------------


def encoded(image: PILImage.Image, file_format: str = "PNG", **options) -> dict:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return {"bytes": file.getvalue(), "path": None}


RED = PILImage.new("RGB", (10, 6), (200, 30, 60))
PNG = encoded(RED)["bytes"]
JPEG = encoded(PILImage.effect_noise((64, 64), 99), "JPEG")["bytes"]
GOOD = {"image": encoded(RED), "label": 3}


def collator(**options) -> ImageCollator:
    return ImageCollator(eval_transform(8), num_classes=10, **options)


def skipped(batch: dict) -> dict[str, int]:
    return {reason: n for reason, n in zip(SKIP_REASONS, batch["skipped"].tolist(), strict=True) if n}


def test_a_batch_is_uint8_images_and_int64_labels():
    batch = collator()([GOOD, {"image": encoded(RED.convert("L")), "label": "9"}])
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["pixel_values"].is_contiguous()
    assert batch["pixel_values"][0, :, 4, 4].tolist() == [200, 30, 60]
    assert batch["labels"].tolist() == [3, 9]
    assert batch["labels"].dtype == torch.int64
    assert skipped(batch) == {}


X = "image x.jpg with label 1"
BAD = [
    ({"image": {**encoded(RED), "path": "a/b.png"}, "label": label}, "label",
     f"label {label!r} of image a/b.png is not one of the 10 classes 0 to 9: correct num_classes or the data")
    for label in (-1, 10, None, "cat", 2.5)
] + [
    ({"image": image, "label": 1}, reason, message)
    for image, reason, message in (
        ({"bytes": b"text", "path": "x.jpg"}, "unreadable", f"cannot read {X}: no image in a format that Pillow knows"),
        ({"bytes": JPEG[:900], "path": "x.jpg"}, "unreadable", f"cannot read {X}: image file is truncated"),
        ({"bytes": PNG[:-30], "path": None}, "unreadable", f"cannot read an image of {len(PNG) - 30} bytes without"),
        ({"bytes": None, "path": "/no/x.jpg"}, "unreadable", "cannot read image /no/x.jpg with label 1: [Errno 2]"),
        ({"bytes": None, "path": None}, "unreadable", "cannot read an image of 0 bytes without a name with label 1"),
        (None, "unreadable", "cannot read an image of 0 bytes without a name with label 1: "),
        ({"bytes": huge(), "path": "bomb.png"}, "too_large", "image bomb.png is too large: Image size (400000000 pi"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("example", "reason", "message"), BAD)
def test_a_bad_example_is_named_counted_and_stood_in_for(caplog, example, reason, message):
    batch = collator()([GOOD, example, {**GOOD, "label": 5}])
    assert batch["labels"].tolist() == [3, 5, 5]  # the next one stands in
    assert torch.equal(batch["pixel_values"][1], batch["pixel_values"][2])
    assert skipped(batch) == {reason: 1}
    (record,) = caplog.messages
    assert record.startswith(f"skipped: {message}")
    assert "\n" not in record


def test_the_last_one_is_stood_in_for_by_the_first(caplog):
    bad = BAD[0][0]
    batch = collator()([bad, GOOD, {**GOOD, "label": 5}, bad])
    assert batch["labels"].tolist() == [3, 3, 5, 3]
    assert skipped(batch) == {"label": 2}


def test_examples_that_stand_in_for_a_shard_that_is_gone(caplog):
    batch = collator()([{**GOOD, "label": 7, "skip": "shard", "draw": 1}, GOOD])
    assert batch["labels"].tolist() == [7, 3]
    assert skipped(batch) == {"shard": 1}
    assert not caplog.messages  # said once, by who read the shard


def test_a_worker_names_ten(caplog):
    collate = collator()
    for number in range(20):
        for _ in range(2):  # each one once
            collate([GOOD, {"image": {**encoded(RED), "path": f"{number}.png"}, "label": -1}])
    assert len(caplog.messages) == 10
    assert caplog.messages[-1].endswith("; no more are named")


def test_nothing_usable_is_an_error(caplog):
    with pytest.raises(UserError, match="none of 2 examples of a micro-batch can be used"):
        collator()([BAD[0][0]] * 2)


def test_a_bad_example_does_not_count_in_an_evaluation(caplog):
    batch = collator(training=False)([GOOD, BAD[0][0]])
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["labels"].tolist() == [3, IGNORED_LABEL]
    assert not batch["pixel_values"][1].any()

    class Prediction:
        predictions = np.array([[3, 1, 2, 4, 5], [0, 1, 2, 4, 5], [1, 2, 3, 4, 5]])
        label_ids = np.array([3, IGNORED_LABEL, 5])

    assert accuracies(Prediction) == {"accuracy": 0.5, "top5_accuracy": 1.0, "skipped": 1.0}


def test_from_a_worker_comes_the_same_batch():
    examples = [{"image": {"bytes": b"", "path": "x.jpg"}, "label": 1}, GOOD]
    (batch,) = DataLoader(examples, 2, collate_fn=collator(), num_workers=1)
    assert skipped(batch) == {"unreadable": 1}


def test_augmentation_follows_from_the_draw_and_leaves_the_random_numbers_alone():
    collate = ImageCollator(train_transform(8), num_classes=10)
    noise = {"image": encoded(PILImage.effect_noise((64, 64), 99)), "label": 1}

    def crop(draw: int, *before: int) -> torch.Tensor:
        return collate([{**noise, "draw": d} for d in (*before, draw)])["pixel_values"][-1]

    torch.manual_seed(5)
    assert torch.equal(crop(1), crop(1, 7, 8))
    assert not torch.equal(crop(1), crop(2))
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_the_collator_pickles():
    collate = pickle.loads(pickle.dumps(ImageCollator(train_transform(28, "random_crop"), num_classes=10)))
    assert collate([GOOD])["pixel_values"].shape == (1, 3, 28, 28)


# --- decoding ----------------------------------------------------------------------------------------------------

PALETTE = RED.quantize(8)
ORIENTED = PILImage.Exif()
ORIENTED[0x0112] = 6  # turn right by 90° to see it upright
SIXTEEN_BIT = PILImage.fromarray(np.full((6, 10), 0x8040, np.uint16))


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (encoded(RED), (200, 30, 60)),
        (encoded(RED, "WEBP", lossless=True), (200, 30, 60)),
        (encoded(RED.convert("CMYK"), "JPEG", quality=100), (200, 30, 60)),
        (encoded(RED.convert("L")), (84, 84, 84)),
        (encoded(RED.convert("LA")), (84, 84, 84)),
        (encoded(RED.convert("RGBA")), (200, 30, 60)),
        (encoded(PALETTE), (200, 30, 60)),
        (encoded(PALETTE, transparency=bytes([0] * 8)), (200, 30, 60)),
        (encoded(PALETTE, "GIF"), (200, 30, 60)),
        (encoded(SIXTEEN_BIT), (128, 128, 128)),
        (encoded(SIXTEEN_BIT, "TIFF"), (128, 128, 128)),
        ({"bytes": b"P5\n1 1\n65535\n\x80\x40", "path": None}, (128, 128, 128)),
        ({"bytes": PNG, "path": "misnamed.JPEG"}, (200, 30, 60)),
        (encoded(RED, "JPEG", quality=100, xmp=b"\xff\xfe<broken \xd0 xmp"), (200, 30, 60)),
    ],
    ids=["rgb", "webp", "cmyk", "L", "LA", "rgba", "P", "PA", "gif", "png16", "tiff16", "pgm16", "misnamed", "xmp"],
)  # fmt: skip
def test_every_kind_of_image_becomes_8_bit_rgb(decoder, image, colour):
    decoded = decode_image(image)
    assert decoded.dtype == torch.uint8
    assert decoded.shape[0] == 3
    np.testing.assert_allclose(decoded[:, 0, 0], colour, atol=2)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_an_oriented_image_is_turned_upright(decoder, file_format):
    image = RED.copy()
    image.paste((0, 0, 255), (0, 0, 5, 6))  # the left half, at the top once it is turned
    decoded = decode_image(encoded(image, file_format, exif=ORIENTED))
    assert decoded.shape == (3, 10, 6)
    assert decoded[2, 1, 3] > 200 > 100 > decoded[2, 8, 3]


def test_an_image_may_be_a_path(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    assert decode_image({"bytes": None, "path": str(tmp_path / "a.png")}).shape == (3, 6, 10)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_an_image_of_one_pixel(decoder, augmentation):
    image = decode_image(encoded(PILImage.new("RGB", (1, 1), (9, 200, 30)), "JPEG"))
    assert train_transform(8, augmentation)(image).shape == (3, 8, 8)
    assert eval_transform(8)(image).shape == (3, 8, 8)


def test_both_decoders_see_the_same_photographs(shared_data, monkeypatch):
    pytest.importorskip("torchcodec")
    split = load_dataset(str(shared_data / "imagenet_sample"), split="validation", streaming=True)
    photographs = [e["image"] for e in split.cast_column("image", Image(decode=False))]
    fast = [decode_image(photograph) for photograph in photographs]
    monkeypatch.setattr("hf_clars.data.transforms.torchcodec", lambda: None)
    assert all(torch.equal(a, decode_image(p)) for a, p in zip(fast, photographs, strict=True))


def test_real_photographs_become_batches(shared_data):
    split = load_dataset(str(shared_data / "imagenet_sample"), split="validation", streaming=True)
    examples = list(split.cast_column("image", Image(decode=False)))
    for transform in (train_transform(224), eval_transform(224)):
        batch = ImageCollator(transform, num_classes=1000)(examples)
        assert batch["pixel_values"].shape == (34, 3, 224, 224)
        assert 60 < batch["pixel_values"].float().mean() < 180


# --- transforms --------------------------------------------------------------------------------------------------


def picture(width: int, height: int) -> torch.Tensor:
    """Every pixel unlike its neighbours."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(1, 256, (3, height, width), np.uint8))


@pytest.mark.parametrize("size", [(28, 28), (50, 31), (9, 120)])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_every_augmentation_gives_uint8_squares(augmentation, size):
    result = train_transform(28, augmentation)(picture(*size))
    assert result.shape == (3, 28, 28)
    assert result.dtype == torch.uint8


def test_random_resized_crop_is_torchvisions():
    ours, theirs = train_transform(28, min_scale=0.3), v2.RandomResizedCrop(28, scale=(0.3, 1.0), antialias=True)
    for seed in range(8):
        torch.manual_seed(seed)
        cropped = theirs(picture(50, 40))
        torch.manual_seed(seed)
        result = ours(picture(50, 40))
        assert any(torch.equal(result, c) for c in (cropped, cropped.flip(-1)))


def test_random_crop_is_a_window_of_the_padded_image():
    image = picture(16, 16)
    padded = v2.Pad(2)(image).numpy()
    windows = [padded[:, top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
    possible = {w.tobytes() for window in windows for w in (window, window[:, :, ::-1])}
    transform = train_transform(16, "random_crop")
    assert {transform(image).numpy().tobytes() for _ in range(600)} == possible  # all 25 places, both ways round


def test_flip_is_the_image_or_its_mirror_image_and_none_is_the_image():
    image = picture(16, 16)
    results = [train_transform(16, "flip")(image) for _ in range(40)]
    mirrored = [torch.equal(result, image.flip(-1)) for result in results]
    assert 8 < sum(mirrored) < 32
    assert all(m or torch.equal(result, image) for m, result in zip(mirrored, results, strict=True))
    assert torch.equal(train_transform(16, "none")(image), image)


def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre():
    expected = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    image = picture(300, 260)
    assert torch.equal(eval_transform(224)(image), expected(image))
    assert torch.equal(eval_transform(28)(picture(28, 28)), picture(28, 28))
    with_pillow = v2.PILToTensor()(expected(PILImage.fromarray(image.permute(1, 2, 0).numpy())))
    assert (eval_transform(224)(image).int() - with_pillow.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train_transform(28, "mixup"), "augmentation='mixup' is none of: random_resized_crop, random_crop, fl"),
        (lambda: train_transform(0), "image_size=0 must be at least 1"),
        (lambda: train_transform(28, min_scale=0.0), "min_scale=0.0 must be above 0 and at most 1"),
        (lambda: eval_transform(28, 1.5), "crop_fraction=1.5 must be above 0 and at most 1"),
    ],
)
def test_a_transform_rejects_what_it_does_not_know(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- steps -------------------------------------------------------------------------------------------------------


def test_accumulation_reaches_the_total():
    assert accumulation_steps(16384, 256, 8) == 8
    assert accumulation_steps(64, 64, 1) == 1


@pytest.mark.parametrize(
    ("sizes", "advice"),
    [
        ((1000, 64, 2), "use total_batch_size 896 or 1024, or per_device_train_batch_size 50 or 100"),
        ((64, 128, 1), "use total_batch_size 128, or per_device_train_batch_size 64"),
        ((100, 8, 3), "use total_batch_size 96 or 120"),
    ],
)
def test_sizes_that_do_not_divide_name_those_that_do(sizes, advice):
    total, per_device, processes = sizes
    with pytest.raises(UserError) as e:
        accumulation_steps(*sizes)
    assert str(e.value) == (
        f"total_batch_size={total} is no multiple of per_device_train_batch_size={per_device} × {processes} processes "
        f"= {per_device * processes}: {advice}"
    )


def test_sizes_are_at_least_one():
    with pytest.raises(UserError, match="per_device_train_batch_size=0 must be at least 1"):
        accumulation_steps(64, 0, 1)


def test_the_nearest_batch_size_from_which_the_total_is_reached():
    assert nearest_batch_size(16384, 230, 8) == 128
    assert nearest_batch_size(16384, 256, 8) == 256
    assert nearest_batch_size(96, 20, 2) == 16
    assert nearest_batch_size(7, 3, 1) == 1
