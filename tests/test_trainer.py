"""ClarsTrainer: accumulation that streams, nothing that leaks, resuming, and everything a Trainer user expects."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_clars import ClarsTrainer, ClarsTrainingArguments, UserError, build_model

from .helpers.models import Classifier, dataset


def arguments(tmp_path, **options) -> ClarsTrainingArguments:
    defaults = {
        "learning_rate": 3.0, "per_device_train_batch_size": 8, "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    return ClarsTrainingArguments(output_dir=str(tmp_path), **{**defaults, **options})


def weights(trainer: ClarsTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def seeded(dropout: float = 0.0) -> Classifier:
    torch.manual_seed(1)
    return Classifier(dropout=dropout)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.mark.parametrize("optim", ["clars", "lars"])
def test_one_step_of_64_is_eight_of_8_and_64_of_1(tmp_path, optim):
    results = []
    for size in (64, 8, 1):
        args = arguments(
            tmp_path, optim=optim, per_device_train_batch_size=size, total_batch_size=64, num_train_epochs=3
        )
        trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(128))
        trainer.train()
        assert trainer.state.global_step == 6
        results.append(weights(trainer))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_micro_batches_are_fetched_when_they_are_needed(tmp_path):
    """transformers collects all of them first; here at most the one at work and the loader's look-ahead exist."""
    fetched: list[int] = []

    def collate(examples):
        fetched.append(len(fetched))
        return {k: torch.stack([torch.as_tensor(e[k]) for e in examples]) for k in ("pixel_values", "labels")}

    seen: list[int] = []

    class Watching(ClarsTrainer):
        def training_step(self, *args, **kwargs):
            seen.append(len(fetched) - len(seen))
            return super().training_step(*args, **kwargs)

    args = arguments(tmp_path, total_batch_size=128, num_train_epochs=1)
    Watching(seeded(), args, train_dataset=dataset(256), data_collator=collate).train()
    assert len(seen) == 32
    assert max(seen) <= 2


class Unsized(IterableDataset):
    """A stream without a length, like a generator over tar files."""

    def __init__(self, size: int) -> None:
        self.examples = dataset(size)

    def __iter__(self):
        return iter(self.examples)


def test_an_unfinished_accumulation_does_not_leak_into_the_next_pass(tmp_path):
    """40 examples at B = 32 and 8 a micro-batch: each pass ends one micro-batch into its second step."""
    trainer = ClarsTrainer(seeded(), arguments(tmp_path, total_batch_size=32, max_steps=3), train_dataset=Unsized(40))
    trainer.train()
    clean = ClarsTrainer(seeded(), arguments(tmp_path, total_batch_size=32, max_steps=3), train_dataset=Unsized(32))
    clean.train()
    for a, b in zip(weights(trainer), weights(clean), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("examples", "size"), [(40, 8), (60, 8), (100, 5), (32, 32)])
def test_every_step_of_a_sized_data_set_has_the_whole_batch(tmp_path, examples, size):
    seen = []

    class Counting(ClarsTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(len(inputs["labels"]))
            return super().training_step(model, inputs, *args, **kwargs)

    total = 32 if size != 5 else 35
    args = arguments(tmp_path, total_batch_size=total, per_device_train_batch_size=size, num_train_epochs=2)
    trainer = Counting(seeded(), args, train_dataset=dataset(examples))
    trainer.train()
    assert trainer.state.global_step == 2 * (examples // total)
    assert seen == [size] * (2 * (examples // total) * (total // size))


def test_fewer_examples_than_a_batch_are_an_error(tmp_path):
    trainer = ClarsTrainer(seeded(), arguments(tmp_path, total_batch_size=64), train_dataset=dataset(40))
    with pytest.raises(
        UserError, match="the training data has 40 examples, fewer than one batch of total_batch_size=64"
    ):
        trainer.train()


@pytest.mark.parametrize("optim", ["clars", "lars", "sgd"])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, optim):
    options = {"optim": optim, "total_batch_size": 16, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 5}
    if optim == "sgd":
        options["learning_rate"] = 0.1
    whole = ClarsTrainer(seeded(0.3), arguments(tmp_path / "a", **options), train_dataset=dataset(64))
    whole.train()
    assert whole.state.global_step == 12

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 7

    cut = ClarsTrainer(seeded(0.3), arguments(tmp_path / "b", **options), train_dataset=dataset(64), callbacks=[Stop()])
    cut.train()
    resumed = ClarsTrainer(seeded(0.3), arguments(tmp_path / "b", **options), train_dataset=dataset(64))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 12
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(a, b)
    tail = [[e["loss"] for e in t.state.log_history if "loss" in e and e["step"] > 5] for t in (whole, resumed)]
    assert tail[0] == tail[1]
    if optim == "clars":
        steps = [
            json.loads(line)["step"] for line in (tmp_path / "b" / "layer_statistics.jsonl").read_text().splitlines()
        ]
        assert steps == sorted(set(steps))


def test_what_a_trainer_user_expects(tmp_path):
    """evaluate, predict, early stopping, the best model at the end, label smoothing, save_model and the model card."""
    model = build_model("resnet10t", 3, channels=(8, 8, 8, 8), in_chans=3)
    data = [
        {"pixel_values": e["pixel_values"].expand(3, 4, 4).repeat(1, 4, 4), "labels": e["labels"]} for e in dataset(64)
    ]
    args = arguments(
        tmp_path, total_batch_size=32, num_train_epochs=6, label_smoothing_factor=0.1, load_best_model_at_end=True,
        metric_for_best_model="accuracy", eval_strategy="epoch", save_strategy="epoch", save_total_limit=2,
    )  # fmt: skip
    trainer = ClarsTrainer(
        model, args, train_dataset=data, eval_dataset=data, compute_metrics=accuracy,
        callbacks=[EarlyStoppingCallback(2)],
    )  # fmt: skip
    trainer.train()
    evaluations = [e["eval_accuracy"] for e in trainer.state.log_history if "eval_accuracy" in e]
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(max(evaluations))
    assert trainer.predict(data).predictions.shape == (64, 3)
    trainer.save_model()
    trainer.create_model_card(model_name="clars test")
    assert "clars" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "model.safetensors").exists()
    assert all("forward" not in m.__dict__ for m in trainer.model.modules())


def test_compute_loss_func_sees_the_items_of_the_whole_step(tmp_path):
    counts = []

    def loss(outputs, labels, num_items_in_batch=None):
        counts.append(int(num_items_in_batch))
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    results = []
    for function in (loss, None):
        args = arguments(tmp_path, total_batch_size=32, num_train_epochs=2)
        trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(64), compute_loss_func=function)
        trainer.train()
        results.append(weights(trainer))
    assert set(counts) == {32}
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_train_may_be_called_again(tmp_path):
    trainer = ClarsTrainer(seeded(), arguments(tmp_path, max_steps=2), train_dataset=dataset(64))
    trainer.train()
    trainer.train()
    assert trainer.state.global_step == 2


def test_layers_are_logged(tmp_path):
    args = arguments(tmp_path, total_batch_size=32, num_train_epochs=2, layer_statistics_steps=2)
    trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(64))
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "layer_statistics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 3]
    for record in records:
        assert record["layers"].keys() == {"conv.weight", "head.weight"}
        for layer in record["layers"].values():
            assert layer.keys() == {"weight_norm", "gradient_norm", "denominator", "variance_factor", "gamma"}
            assert layer["denominator"] >= layer["gradient_norm"]
            assert layer["variance_factor"] >= 1
    first = records[0]["layers"]["head.weight"]
    assert first["gamma"] == pytest.approx(3.0 * 0.01 * first["weight_norm"] / first["denominator"], rel=1e-5)
    assert any("images_per_second" in entry for entry in trainer.state.log_history)


def test_layers_are_logged_as_they_were_before_clipping(tmp_path):
    first = []
    for bound in (0.0, 1e-3):
        args = arguments(
            tmp_path / str(bound), total_batch_size=32, max_steps=1, layer_statistics_steps=1, max_grad_norm=bound
        )
        ClarsTrainer(seeded(), args, train_dataset=dataset(64)).train()
        lines = (tmp_path / str(bound) / "layer_statistics.jsonl").read_text().splitlines()
        first.append(json.loads(lines[0])["layers"])
    for name, layer in first[0].items():
        for statistic in ("gradient_norm", "denominator", "variance_factor"):
            assert first[1][name][statistic] == pytest.approx(layer[statistic], rel=1e-6)


def test_divergence_shows(tmp_path):
    trainer = ClarsTrainer(
        seeded(), arguments(tmp_path, optim="sgd", learning_rate=1e30, max_steps=6), train_dataset=dataset(64)
    )
    trainer.train()
    assert not all(math.isfinite(e["loss"]) for e in trainer.state.log_history if "loss" in e)


def test_weight_decay_is_decided_by_type_for_every_optimizer(tmp_path):
    model = build_model("resnet18", 3)
    trainer = ClarsTrainer(model, arguments(tmp_path, optim="sgd", weight_decay=0.1), train_dataset=dataset(8))
    decayed = set(trainer.get_decay_parameter_names(model))
    assert "timm_model.conv1.weight" in decayed
    assert not [n for n in decayed if ".bn" in n or n.endswith("bias")]


def test_bad_input(tmp_path):
    plain = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(UserError, match="takes ClarsTrainingArguments, not TrainingArguments"):
        ClarsTrainer(seeded(), plain)
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(UserError, match=r"accelerate launch --num_processes 2"):
        ClarsTrainer(seeded(), args)


class Detector(Classifier):
    """Takes labels as those for object detection are: a list of dictionaries, of a length of its own for each image."""

    def forward(self, pixel_values, labels=None):
        outputs = super().forward(pixel_values)
        boxes = torch.stack([label["boxes"].mean(0)[:3] for label in labels])
        return {"loss": F.mse_loss(outputs["logits"], boxes), "logits": outputs["logits"]}


@pytest.mark.parametrize("kind", [list, tuple])
def test_labels_of_a_detector_evaluate_as_in_trainer(tmp_path, kind):
    generator = torch.Generator().manual_seed(0)
    data = [
        {
            **e,
            "labels": {"boxes": torch.rand(1 + i % 3, 4, generator=generator), "class_labels": torch.zeros(1 + i % 3)},
        }
        for i, e in enumerate(dataset(12))
    ]

    def collate(examples):
        pixels = torch.stack([e["pixel_values"] for e in examples])
        return {"pixel_values": pixels, "labels": kind(e["labels"] for e in examples)}

    def metrics(prediction) -> dict[str, float]:
        seen = [label["boxes"] for batch in prediction.label_ids for label in batch]
        return {"boxes": float(sum(boxes.sum() for boxes in seen)), "images": len(seen)}

    options = {"per_device_eval_batch_size": 5, "eval_do_concat_batches": False, "remove_unused_columns": False}
    plain = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, **options)
    results = []
    for trainer, args in ((Trainer, plain), (ClarsTrainer, arguments(tmp_path, **options))):
        torch.manual_seed(1)
        evaluated = trainer(
            Detector(), args, eval_dataset=data, data_collator=collate, compute_metrics=metrics
        ).evaluate()  # fmt: skip
        results.append({key: evaluated[key] for key in ("eval_loss", "eval_boxes", "eval_images")})
    assert results[0] == pytest.approx(results[1])
    assert results[0]["eval_images"] == 12
