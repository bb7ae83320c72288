"""From raw examples to batches: what each rank and worker gets, what an image becomes, how many steps there are."""

import io
import pickle
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from datasets import Features, Image, IterableDataset, Value, load_dataset
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hf_clars import UserError
from hf_clars.data import (
    AUGMENTATIONS,
    ImageCollator,
    TrainStream,
    accumulation_steps,
    decode_image,
    eval_transform,
    steps_per_epoch,
    train_transform,
)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with few cores

# --- the training stream -----------------------------------------------------------------------------------------


def numbered(shards):
    for shard in shards:
        for number in shard:
            yield {"image": {"bytes": None, "path": str(number)}, "label": number % 10}


def split_of(*sizes: int) -> IterableDataset:
    """A split whose shards hold `sizes` examples, numbered through."""
    starts = np.cumsum((0, *sizes)).tolist()
    shards = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=False)]
    features = Features({"image": Image(decode=False), "label": Value("int64")})
    return IterableDataset.from_generator(numbered, features=features, gen_kwargs={"shards": shards})


def numbers(examples) -> list[int]:
    return [int(example["image"]["path"]) for example in examples]


def stream(split: IterableDataset, batches: int, batch_size: int = 4, **options) -> TrainStream:
    options = {"seed": 0, "shuffle_buffer": 8, "rank": 0, "world_size": 1, **options}
    return TrainStream(split, batches_per_epoch=batches, batch_size=batch_size, **options)


def epoch(train: TrainStream, workers: int, number: int = 0) -> list[list[int]]:
    """The batches of one epoch, as numbers of examples."""
    train.set_epoch(number)
    return list(DataLoader(train, train.batch_size, num_workers=workers, collate_fn=numbers))


def examples(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("sizes", [(11,), (5, 5, 5), (1, 40, 3, 16), (0, 9, 0, 2)], ids=str)
@pytest.mark.parametrize("batches", [1, 7])
def test_every_rank_gets_exactly_its_full_batches(sizes, world_size, workers, batches):
    for rank in range(world_size):
        train = stream(split_of(*sizes), batches, rank=rank, world_size=world_size)
        assert len(train) == batches * 4
        assert [len(batch) for batch in epoch(train, workers)] == [4] * batches


@pytest.mark.parametrize(
    ("sizes", "world_size", "workers"),
    [((6,) * 8, 2, 2), ((48,), 2, 2), ((8,) * 6, 1, 4), ((16,) * 3, 4, 2), ((4,) * 12, 1, 0), ((24, 24), 1, 3)],
    ids=["8 shards", "1 shard", "6 shards, 4 workers", "3 shards, 4 ranks", "no worker", "fewer shards than workers"],
)  # fmt: skip
def test_where_everything_divides_an_epoch_holds_each_example_once(sizes, world_size, workers):
    for number in range(3):
        seen = []
        for rank in range(world_size):
            train = stream(split_of(*sizes), 12 // world_size, rank=rank, world_size=world_size)
            seen += examples(epoch(train, workers, number))
        assert sorted(seen) == list(range(48))


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_runs_out_goes_on_with_another_pass(world_size):
    seen = Counter()
    share = 48 // world_size
    for rank in range(world_size):
        order = examples(epoch(stream(split_of(*(6,) * 8), 36 // world_size, rank=rank, world_size=world_size), 1))
        assert order[:share] != order[share : 2 * share] != order[2 * share :]
        seen.update(order)
    assert seen == dict.fromkeys(range(48), 3)


def test_the_order_changes_with_the_epoch_and_the_seed_and_with_nothing_else():
    def order(seed=0, number=0):
        return epoch(stream(split_of(*(5,) * 8), 10, seed=seed), 2, number)

    assert order() == order()
    assert order() != order(number=1)
    assert order(number=1) != order(number=2)
    assert order() != order(seed=1)


def test_workers_that_live_on_see_the_epoch():
    train = stream(split_of(*(5,) * 8), 10)
    loader = DataLoader(train, 4, num_workers=2, collate_fn=numbers, persistent_workers=True)
    orders = []
    for number in (0, 1, 0):
        train.set_epoch(number)
        orders.append(list(loader))
    assert orders[0] == orders[2] != orders[1]


def test_the_buffer_mixes_within_a_shard():
    order = examples(epoch(stream(split_of(64), 16, shuffle_buffer=32), 0))
    assert sorted(order) == list(range(64))
    assert sum(abs(place - number) > 2 for place, number in enumerate(order)) > 32


def error_of(call) -> str:
    """Unlike `pytest.raises`, does not keep the traceback and with it a loader whose workers then end late."""
    try:
        call()
    except UserError as error:
        return str(error)
    raise AssertionError("no error")


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (1, 2)])
def test_a_split_without_examples_is_an_error(workers, world_size):
    train = stream(split_of(0, 0), 3, rank=world_size - 1, world_size=world_size)
    assert error_of(lambda: epoch(train, workers)) == (
        f"the training split has no example for worker 0 of rank {train._rank}: it is empty, or too small for "
        f"{max(workers, 1)} workers on each of {world_size} processes"
    )


def test_a_stream_rejects_what_it_cannot_use():
    with pytest.raises(UserError, match="shuffle_buffer=0 must be at least 1"):
        stream(split_of(4), 1, shuffle_buffer=0)
    with pytest.raises(UserError, match="seed=-1 must not be negative"):
        stream(split_of(4), 1, seed=-1)


def test_real_parquet_over_two_ranks_of_two_workers(shared_data):
    split = load_dataset(str(shared_data / "cifar10"), split="test", streaming=True).reshard()
    split = split.cast_column("image", Image(decode=False))
    seen = []
    for rank in range(2):
        train = stream(split, 10, 500, rank=rank, world_size=2, shuffle_buffer=2048)
        loader = DataLoader(train, 500, num_workers=2, collate_fn=image_bytes)
        seen += [image for batch in loader for image in batch]
    assert len(seen) == 10_000
    assert len(set(seen)) == len({example["image"]["bytes"] for example in split})


def image_bytes(examples) -> list[bytes]:
    return [example["image"]["bytes"] for example in examples]


# --- the collator ------------------------------------------------------------------------------------------------


def encoded(image: PILImage.Image, file_format: str = "PNG", **options) -> dict:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return {"bytes": file.getvalue(), "path": None}


RED = PILImage.new("RGB", (10, 6), (200, 30, 60))


def test_a_batch_is_uint8_images_and_int64_labels():
    collate = ImageCollator(eval_transform(8), num_classes=10)
    batch = collate([{"image": encoded(RED), "label": 3}, {"image": encoded(RED.convert("L")), "label": "9"}])
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["pixel_values"].is_contiguous()
    assert batch["pixel_values"][0, :, 4, 4].tolist() == [200, 30, 60]
    assert batch["labels"].tolist() == [3, 9]
    assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize("label", [-1, 10, None, "cat", 2.5])
def test_a_label_outside_the_classes_is_named(label):
    collate = ImageCollator(eval_transform(8), num_classes=10)
    example = {"image": {**encoded(RED), "path": "a/b.png"}, "label": label}
    with pytest.raises(UserError) as e:
        collate([example])
    assert str(e.value) == (
        f"label {label!r} of image a/b.png is not one of the 10 classes 0 to 9: correct num_classes or the data"
    )


PNG = encoded(RED)["bytes"]
JPEG = encoded(PILImage.effect_noise((64, 64), 99), "JPEG")["bytes"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"bytes": b"text", "path": "x.jpg"}, "cannot read image x.jpg with label 1: no image in a format that Pillow"),
        ({"bytes": JPEG[:900], "path": "x.jpg"}, "cannot read image x.jpg with label 1: image file is truncated"),
        ({"bytes": PNG[:-30], "path": None}, f"cannot read an image of {len(PNG) - 30} bytes without a name with"),
        ({"bytes": None, "path": "/no/x.jpg"}, r"cannot read image /no/x.jpg with label 1: \[Errno 2\] No such file"),
        ({"bytes": None, "path": None}, "cannot read an image of 0 bytes without a name with label 1: it has neither"),
        (None, "cannot read an image of 0 bytes without a name with label 1: "),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_read_is_named_in_one_line(image, message):
    collate = ImageCollator(eval_transform(8), num_classes=10)
    with pytest.raises(UserError, match="^" + message) as e:
        collate([{"image": image, "label": 1}])
    assert "\n" not in str(e.value)


def test_from_a_worker_comes_the_same_line_without_its_traceback():
    collate = ImageCollator(eval_transform(8), num_classes=10)
    loader = DataLoader([{"image": {"bytes": b"", "path": "x.jpg"}, "label": 1}], collate_fn=collate, num_workers=1)
    expected = "cannot read image x.jpg with label 1: no image in a format that Pillow knows"
    assert error_of(lambda: list(loader)) == expected


@pytest.mark.slow
def test_workers_may_be_started_afresh(fashion_mnist):
    split = load_dataset(str(fashion_mnist), split="test", streaming=True).cast_column("image", Image(decode=False))
    collate = ImageCollator(train_transform(28), num_classes=10)
    loader = DataLoader(stream(split, 3, 10), 10, num_workers=1, collate_fn=collate, multiprocessing_context="spawn")
    assert [batch["pixel_values"].shape for batch in loader] == [(10, 3, 28, 28)] * 3


def test_the_collator_pickles():
    collate = pickle.loads(pickle.dumps(ImageCollator(train_transform(28, "random_crop"), num_classes=10)))
    assert collate([{"image": encoded(RED), "label": 3}])["pixel_values"].shape == (1, 3, 28, 28)


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
def test_every_kind_of_image_becomes_8_bit_rgb(image, colour):
    decoded = decode_image(image)
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(decoded.getpixel((0, 0)), colour, atol=2)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_an_oriented_image_is_turned_upright(file_format):
    image = RED.copy()
    image.paste((0, 0, 255), (0, 0, 5, 6))  # the left half, at the top once it is turned
    decoded = decode_image(encoded(image, file_format, exif=ORIENTED))
    assert decoded.size == (6, 10)
    assert decoded.getpixel((3, 1))[2] > 200 > 100 > decoded.getpixel((3, 8))[2]


def test_an_image_may_be_a_path(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    assert decode_image({"bytes": None, "path": str(tmp_path / "a.png")}).size == (10, 6)


def test_real_photographs_become_batches(shared_data):
    split = load_dataset(str(shared_data / "imagenet_sample"), split="validation", streaming=True)
    examples = list(split.cast_column("image", Image(decode=False)))
    for transform in (train_transform(224), eval_transform(224)):
        batch = ImageCollator(transform, num_classes=1000)(examples)
        assert batch["pixel_values"].shape == (34, 3, 224, 224)
        assert 60 < batch["pixel_values"].float().mean() < 180


# --- transforms --------------------------------------------------------------------------------------------------


def picture(width: int, height: int) -> PILImage.Image:
    """Every pixel unlike its neighbours."""
    rng = np.random.default_rng(0)
    return PILImage.fromarray(rng.integers(1, 256, (height, width, 3), np.uint8))


def pixels(image: PILImage.Image) -> torch.Tensor:
    return v2.PILToTensor()(image)


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
        cropped = pixels(theirs(picture(50, 40)))
        torch.manual_seed(seed)
        result = ours(picture(50, 40))
        assert any(torch.equal(result, c) for c in (cropped, cropped.flip(-1)))


def test_random_crop_is_a_window_of_the_padded_image():
    image = picture(16, 16)
    padded = pixels(v2.Pad(2)(image)).numpy()
    windows = [padded[:, top : top + 16, left : left + 16] for top in range(5) for left in range(5)]
    possible = {w.tobytes() for window in windows for w in (window, window[:, :, ::-1])}
    transform = train_transform(16, "random_crop")
    assert {transform(image).numpy().tobytes() for _ in range(600)} == possible  # all 25 places, both ways round


def test_flip_is_the_image_or_its_mirror_image_and_none_is_the_image():
    image = picture(16, 16)
    results = [train_transform(16, "flip")(image) for _ in range(40)]
    mirrored = [torch.equal(result, pixels(image).flip(-1)) for result in results]
    assert 8 < sum(mirrored) < 32
    assert all(m or torch.equal(result, pixels(image)) for m, result in zip(mirrored, results, strict=True))
    assert torch.equal(train_transform(16, "none")(image), pixels(image))


def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre():
    expected = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.PILToTensor()])
    assert torch.equal(eval_transform(224)(picture(300, 260)), expected(picture(300, 260)))
    assert torch.equal(eval_transform(28)(picture(28, 28)), pixels(picture(28, 28)))


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
        ((1000, 64, 2), "use total_batch_size 896 or 1024, or per_device_batch_size 50 or 100"),
        ((64, 128, 1), "use total_batch_size 128, or per_device_batch_size 64"),
        ((100, 8, 3), "use total_batch_size 96 or 120"),
    ],
)
def test_sizes_that_do_not_divide_name_those_that_do(sizes, advice):
    total, per_device, processes = sizes
    with pytest.raises(UserError) as e:
        accumulation_steps(*sizes)
    assert str(e.value) == (
        f"total_batch_size={total} is no multiple of per_device_batch_size={per_device} × {processes} processes = "
        f"{per_device * processes}: {advice}"
    )


def test_sizes_are_at_least_one():
    with pytest.raises(UserError, match="per_device_batch_size=0 must be at least 1"):
        accumulation_steps(64, 0, 1)


def test_an_epoch_is_whole_steps():
    assert steps_per_epoch(1_281_167, 16384) == 78
    with pytest.raises(UserError, match="the split has 100 examples, fewer than one batch of total_batch_size=128"):
        steps_per_epoch(100, 128)
