"""Images decoded once and kept on the device: the same order, crops and weights, whoever asks and in what portions."""

import io
import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import skip_first_batches
from PIL import Image
from torch.utils.data import DataLoader

from hf_clars import ClarsTrainer, ClarsTrainingArguments, TimmForImageClassification, UserError
from hf_clars.cli import train
from hf_clars.data import (
    DecodedImages,
    ImageCollator,
    ResidentImages,
    decode_all,
    eval_transform,
    open_source,
    ready_batch,
    train_transform,
)
from hf_clars.data.chunks import Chunks, TableChunks
from hf_clars.data.resident import random_shifts, shifted_and_mirrored
from hf_clars.image_classification.recipe import ImageTrainer
from hf_clars.trainer.metrics import accuracies, best_classes

from .helpers.processes import Training
from .helpers.recipe import config

CPU = torch.device("cpu")


def numbered(n: int = 100, size: int = 8) -> DecodedImages:
    """Noise, with an image's number as its label."""
    noise = torch.randint(1, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return DecodedImages(noise, torch.arange(n))


def resident(n: int = 100, *, batch: int = 16, seed: int = 0, augmentation: str = "random_crop", **options):
    return ResidentImages(numbered(n), augmentation=augmentation, total_batch_size=batch, seed=seed, **options)


def epoch(images: ResidentImages, number: int = 0, micro: int = 4, rank: int = 0, world: int = 1) -> list:
    sampler = images.batches(micro, rank=rank, world_size=world, workers=0)
    sampler.set_epoch(number)
    return list(DataLoader(images, batch_sampler=sampler, collate_fn=ready_batch))


def pixels(batches: list) -> torch.Tensor:
    return torch.cat([batch["pixel_values"] for batch in batches])


def labels(batches: list) -> list[int]:
    return torch.cat([batch["labels"] for batch in batches]).tolist()


# --- order -------------------------------------------------------------------------------------------------------


def test_a_pass_has_each_example_once_and_every_epoch_an_order_of_its_own():
    orders = [labels(epoch(resident(96), number)) for number in range(3)]
    assert all(sorted(order) == list(range(96)) for order in orders)
    assert len({tuple(order) for order in [*orders, labels(epoch(resident(96, seed=1)))]}) == 4
    left_out = [set(range(100)) - set(labels(epoch(resident(100), number))) for number in range(3)]
    assert [len(rest) for rest in left_out] == [4] * 3
    assert len(set(map(frozenset, left_out))) == 3


def test_carry_and_limit():
    carrying = resident(30, batch=8, last_batch="carry")  # 24 of 30 in an epoch; five epochs are four passes
    assert np.bincount(labels([batch for e in range(5) for batch in epoch(carrying, e)])).tolist() == [4] * 30
    short = [labels(epoch(resident(100, limit=32), number)) for number in range(2)]
    assert [len(set(order)) for order in short] == [32, 32]
    assert set(short[0]) != set(short[1])


def test_micro_batches_and_ranks_change_nothing():
    whole = epoch(resident(200, batch=64), 3, micro=64)
    assert len(whole) == 3
    eighths = epoch(resident(200, batch=64), 3, micro=8)
    shares = [epoch(resident(200, batch=64), 3, micro=16, rank=rank, world=2) for rank in range(2)]
    dealt = [batch for both in zip(*shares, strict=True) for batch in both]
    for other in (eighths, dealt):
        assert labels(other) == labels(whole)
        assert torch.equal(pixels(other), pixels(whole))


def test_going_on_in_the_middle():
    images = resident()
    whole = epoch(images, 2)
    sampler = images.batches(4, rank=0, world_size=1, workers=0)
    rest = skip_first_batches(DataLoader(images, batch_sampler=sampler, collate_fn=ready_batch), 7)
    sampler.set_epoch(2)
    rest = list(rest)
    assert labels(rest) == labels(whole[7:])
    assert torch.equal(pixels(rest), pixels(whole[7:]))


def test_any_items_may_be_asked_for():
    images = resident()
    some = images.__getitems__([5, 3, len(images) + 1])
    assert all(torch.equal(some["pixel_values"][i], images[n]["pixel_values"]) for i, n in enumerate((5, 3, 97)))
    assert some["labels"].tolist() == [int(images[n]["labels"]) for n in (5, 3, 97)]


def test_a_checkpoint_of_other_images_says_so():
    state = json.loads(json.dumps(resident().state(1)))
    assert resident().restore(state) == []
    assert resident(101).restore(state) == ["the training data are not those of the checkpoint"]


# --- augmentation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("augmentation", "reach"), [("random_crop", 1), ("flip", 0), ("none", 0)])
def test_augmented_as_one_image_after_the_other(augmentation, reach):
    images = resident(augmentation=augmentation, seed=5)
    draws = random_shifts(5, 2, len(images), reach)
    seen = epoch(images, 2, micro=8)
    for draw, label, result in zip(draws, labels(seen), pixels(seen), strict=True):
        down, right, mirror = (int(d) for d in draw) if augmentation != "none" else (0, 0, 0)
        bordered = np.zeros((3, 8 + 2 * reach, 8 + 2 * reach), np.uint8)
        bordered[:, reach : reach + 8, reach : reach + 8] = images.decoded.images[label].numpy()
        expected = bordered[:, down : down + 8, right : right + 8]
        assert np.array_equal(result.numpy(), expected[:, :, ::-1] if mirror else expected)


def test_shifts_and_mirrors_are_those_of_the_transform():
    """Each of the (2 · 4 + 1)² × 2 pictures that `train_transform` makes of one image, and no other, about equally."""
    image = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    draws = random_shifts(0, 0, 40_000, 4)
    counts = np.bincount((draws[:, 0] * 9 + draws[:, 1]) * 2 + draws[:, 2], minlength=162)
    assert len(counts) == 162
    assert ((counts - 40_000 / 162) ** 2 / (40_000 / 162)).sum() < 230  # χ² of 161 degrees: 1 in 3000
    every = np.array([(down, right, mirror) for down in range(9) for right in range(9) for mirror in range(2)])
    ours = shifted_and_mirrored(image.expand(162, -1, -1, -1), torch.from_numpy(every), 4)
    possible = {picture.numpy().tobytes() for picture in ours}
    transform = train_transform(32, "random_crop")
    assert {transform(image).numpy().tobytes() for _ in range(300)} <= possible


def test_draws_differ_between_epochs_and_seeds():
    draws = [random_shifts(seed, number, 1000, 4) for seed in range(2) for number in range(2)]
    agree = [(a == b).all(1).mean() for i, a in enumerate(draws) for b in draws[:i]]
    assert max(agree) < 0.03
    assert (random_shifts(2**64 - 1, 3, 10, 4) <= 8).all()


# --- decoding ----------------------------------------------------------------------------------------------------


class Pictures(Chunks):
    """Two chunks of four PNG images; the second cannot be read if `gone`."""

    def __init__(self, broken: tuple[int, ...] = (), gone: bool = False) -> None:
        self.sizes = np.array([4, 4], np.int64)
        self.broken, self.gone = broken, gone

    def read(self, number):
        if self.gone and number == 1:
            raise FileNotFoundError("gone")
        return [self.example(4 * number + row) for row in range(4)]

    def example(self, i: int) -> dict:
        data = io.BytesIO()
        Image.fromarray(np.full((10, 12, 3), 30 * i, np.uint8)).save(data, "PNG")
        return {"image": {"bytes": data.getvalue()[: 20 if i in self.broken else None], "path": f"{i}.png"}, "label": i}

    def name(self, number):
        return f"chunk {number}"


def decoded(*args, classes: int = 8) -> DecodedImages:
    return decode_all(Pictures(*args), train_transform(8, "none"), classes, CPU)


def test_all_are_decoded_as_the_transform_does_it():
    images = decoded()
    assert images.labels.tolist() == list(range(8))
    assert torch.equal(images.images, (30 * torch.arange(8)).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).to(torch.uint8))
    assert images.__getitems__([6, 0])["labels"].tolist() == [6, 0]
    assert torch.equal(images.__getitems__([2, 3])["pixel_values"], images.images[2:4])


def test_what_cannot_be_used_is_left_out(caplog):
    options = {"augmentation": "none", "total_batch_size": 2, "seed": 0}
    images = ResidentImages(decoded((1, 6), classes=7), max_skipped_share=0.4, **options)
    assert sorted(images.decoded.labels.tolist()) == [0, 2, 3, 4, 5]
    assert len(images) == 4
    assert sorted(message[:28] for message in caplog.messages) == [
        "3 of 8 training images canno", "skipped: cannot read image 1", "skipped: cannot read image 6",
        "skipped: label 7 of image 7.",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"3 of 8 training images cannot be used, more than max_skipped_share=0.1 allo"):
        ResidentImages(decoded((1, 6), classes=7), max_skipped_share=0.1, **options)
    assert ResidentImages(decoded((), True), max_skipped_share=0.5, **options).decoded.labels.tolist() == [0, 1, 2, 3]
    assert "cannot read chunk 1: its 4 examples are left out (FileNotFoundError: gone)" in caplog.messages


def test_where_there_is_no_room(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1500}))
    with pytest.raises(UserError, match=r"8 images of 8 × 8 are 0.0 GiB, more than 80% of the 0.0 GiB free on this ma"):
        decoded()


# --- training and evaluating -------------------------------------------------------------------------------------

OPTIONS = {
    "image_size": 28, "augmentation": "random_crop", "data_on_device": True, "total_batch_size": 64,
    "per_device_train_batch_size": 16, "per_device_eval_batch_size": 32, "train_examples": 256, "eval_examples": 91,
    "eval_split": "test", "dataloader_num_workers": 2, "layer_statistics_steps": 0,
}  # fmt: skip


@pytest.fixture
def run(tmp_path, fashion_mnist):
    def made(name: str, *flags: str, **options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        assert train([*config(folder, fashion_mnist, **{**OPTIONS, **options}), *flags]) == 0
        return folder / "run"

    return made


def test_resumed_is_uninterrupted(run, capsys):
    """From the middle of the first of two epochs on: what follows are the same steps, bit for bit."""

    def outcome(folder):
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
        return losses, TimmForImageClassification.from_pretrained(folder).state_dict()

    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "epoch"}
    folder = run("run", **saving)
    assert "256 examples, decoded once, 26.9 MiB on cpu; order drawn from seed 42" in capsys.readouterr().out
    losses, weights = outcome(folder)
    assert len(losses) == 8
    run("run", "--resume_from_checkpoint", str(folder / "checkpoint-3"), **saving)
    losses_again, weights_again = outcome(folder)
    assert losses_again == losses
    assert all(torch.equal(weights[key], weights_again[key]) for key in weights)


def test_evaluated_as_without(run, fashion_mnist, tmp_path):
    folder = run("run", "--max_steps", "2")
    source = open_source(str(fashion_mnist), "test", num_examples=91)
    collator = ImageCollator(eval_transform(28, 1.0), num_classes=10, training=False)
    args = ClarsTrainingArguments(
        str(tmp_path / "eval"), total_batch_size=8, per_device_eval_batch_size=32, use_cpu=True, report_to=[],
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    kwargs = {"compute_metrics": accuracies, "preprocess_logits_for_metrics": best_classes, "eval_collator": collator}
    trainer = ImageTrainer(TimmForImageClassification.from_pretrained(folder), args, **kwargs)
    keys = ("eval_loss", "eval_accuracy", "eval_top5_accuracy")
    ordinary = [trainer.evaluate(source.table())[key] for key in keys]
    ours = trainer.evaluate(decode_all(TableChunks(source.table()), collator.transform, 10, CPU))
    assert [ours[key] for key in keys] == ordinary
    saved = json.loads((folder / "all_results.json").read_text())
    assert [saved[key] for key in keys] == ordinary


@pytest.mark.slow
def test_two_processes_train_and_count_as_one(run, tmp_path, fashion_mnist):
    """91 images to evaluate on, 32 for each of two processes: none counts twice."""
    one = run("one", "--max_steps", "3")
    flags = [*config(tmp_path, fashion_mnist, **{**OPTIONS, "per_device_train_batch_size": 32}), "--max_steps", "3"]
    two = Training(flags, tmp_path / "log", world_size=2)
    assert two.wait() == [0, 0], two.output()
    results = [json.loads((r / "all_results.json").read_text()) for r in (one, tmp_path / "run")]
    hits = [result["eval_accuracy"] * 91 for result in results]
    assert all(abs(hit - round(hit)) < 1e-9 for hit in hits)
    assert hits[0] == pytest.approx(hits[1], abs=2)
    assert results[0]["train_loss"] == pytest.approx(results[1]["train_loss"], rel=0.05)


def test_random_resized_crops_are_refused(tmp_path, fashion_mnist, capfd):
    flags = config(tmp_path, fashion_mnist, **{**OPTIONS, "augmentation": "random_resized_crop"})
    assert train(flags) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error == (
        "error: augmentation='random_resized_crop' does not work with data_on_device, which has random_crop, flip, "
        "none: choose one of them, or --data_on_device false"
    )


def test_a_trainer_of_ones_own(tmp_path):
    """Without the recipe, and without an evaluation."""
    images = ResidentImages(decoded(), augmentation="flip", total_batch_size=4, seed=0)

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(192, 8)

        def forward(self, pixel_values, labels=None):
            logits = self.head(pixel_values.flatten(1) / 255)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    args = ClarsTrainingArguments(
        str(tmp_path), total_batch_size=4, per_device_train_batch_size=2, max_steps=3, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = ClarsTrainer(Linear(), args, train_dataset=images)
    trainer.train()
    assert trainer.state.global_step == 3
