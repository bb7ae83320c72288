"""ClarsTrainer: accumulation that streams, nothing that leaks, resuming, and everything a Trainer user expects."""

import pytest
import torch
import torch.nn.functional as F
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from hf_clars import ClarsTrainer, ClarsTrainingArguments, UserError, build_model

from .helpers.models import Classifier, dataset
from .helpers.training import (
    StopAfter,
    Unsized,
    accuracy,
    arguments,
    assert_close,
    assert_same_weights,
    layer_statistics,
    logged,
    seeded,
    weights,
)

SIMILAR = ("lars", "mnag", "lamb")


def trained(folder, *, examples=None, kind=ClarsTrainer, dropout: float = 0.0, resume=None, given=None, **options):
    args = arguments(folder, **options)
    trainer = kind(seeded(dropout), args, train_dataset=examples or dataset(64), **(given or {}))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("options", "total", "sizes"),
    [
        ({"optim": "clars"}, 64, (64, 8, 1)),
        ({"optim": "lars"}, 64, (64, 8, 1)),
        ({"mode": "authors"}, 64, (64, 8, 4)),
        pytest.param({"mode": "authors"}, 1024, (1024, 256), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_is_the_same_in_micro_batches_of_any_size(tmp_path, options, total, sizes):
    data = dataset(2 * total)
    whole, *others = [
        trained(tmp_path, examples=data, per_device_train_batch_size=size, total_batch_size=total, num_train_epochs=1,
                **options)
        for size in sizes
    ]  # fmt: skip
    assert whole.state.global_step == 2
    for other in others:
        assert_close(weights(whole), weights(other), rtol=1e-4, atol=1e-6)


def test_micro_batches_are_fetched_when_they_are_needed(tmp_path):
    """transformers collects all of them first; here at most the one at work and the loader's look-ahead exist."""
    fetched: list[int] = []
    ahead: list[int] = []

    def collate(examples):
        fetched.append(len(fetched))
        return {k: torch.stack([torch.as_tensor(e[k]) for e in examples]) for k in ("pixel_values", "labels")}

    class Watching(ClarsTrainer):
        def training_step(self, *args, **kwargs):
            ahead.append(len(fetched) - len(ahead))
            return super().training_step(*args, **kwargs)

    options = {"total_batch_size": 64, "num_train_epochs": 1, "given": {"data_collator": collate}}
    trained(tmp_path, examples=dataset(128), kind=Watching, **options)
    assert len(ahead) == 16
    assert max(ahead) <= 2


def test_an_unfinished_accumulation_does_not_leak_into_the_next_pass(tmp_path):
    """40 examples at B = 32 and 8 a micro-batch: each pass ends one micro-batch into its second step."""
    assert_same_weights(
        *(trained(tmp_path, examples=Unsized(size), total_batch_size=32, max_steps=3) for size in (40, 32))
    )


@pytest.mark.parametrize(("examples", "size"), [(60, 8), (100, 5), (32, 32)])
def test_every_step_of_a_sized_data_set_has_the_whole_batch(tmp_path, examples, size):
    seen = []

    class Counting(ClarsTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(len(inputs["labels"]))
            return super().training_step(model, inputs, *args, **kwargs)

    total = 32 if size != 5 else 35
    options = {"total_batch_size": total, "per_device_train_batch_size": size, "num_train_epochs": 2}
    trainer = trained(tmp_path, examples=dataset(examples), kind=Counting, **options)
    assert trainer.state.global_step == 2 * (examples // total)
    assert seen == [size] * (2 * (examples // total) * (total // size))


def test_fewer_examples_than_a_batch_are_an_error(tmp_path):
    message = "the training data has 40 examples, fewer than one batch of total_batch_size=64"
    with pytest.raises(UserError, match=message):
        trained(tmp_path, examples=dataset(40), total_batch_size=64)


@pytest.mark.parametrize("optim", ["clars", "sgd", *(pytest.param(o, marks=pytest.mark.slow) for o in SIMILAR)])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, optim):
    options = {"optim": optim, "total_batch_size": 16, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 5}
    options |= {"dropout": 0.3, "learning_rate": 3.0 if optim in ("clars", "lars") else 0.1}
    whole = trained(tmp_path / "a", **options)
    trained(tmp_path / "b", **options, given={"callbacks": [StopAfter(7)]})
    resumed = trained(tmp_path / "b", resume=True, **options)
    assert whole.state.global_step == resumed.state.global_step == 12
    assert_same_weights(whole, resumed)
    assert logged(whole, "loss")[5:] == logged(resumed, "loss")[5:]
    if optim == "clars":
        steps = [record["step"] for record in layer_statistics(tmp_path / "b")]
        assert steps == sorted(set(steps))


def test_what_a_trainer_user_expects(tmp_path):
    """evaluate, predict, early stopping, the best model at the end, label smoothing, save_model and the model card."""
    model = build_model("resnet10t", 3, channels=(8, 8, 8, 8), in_chans=3)
    data = [
        {"pixel_values": e["pixel_values"].expand(3, 4, 4).repeat(1, 4, 4), "labels": e["labels"]} for e in dataset(64)
    ]
    args = arguments(
        tmp_path, total_batch_size=32, num_train_epochs=4, label_smoothing_factor=0.1, load_best_model_at_end=True,
        metric_for_best_model="accuracy", eval_strategy="epoch", save_strategy="epoch", save_total_limit=2,
    )  # fmt: skip
    trainer = ClarsTrainer(
        model, args, train_dataset=data, eval_dataset=data, compute_metrics=accuracy,
        callbacks=[EarlyStoppingCallback(2)],
    )  # fmt: skip
    trainer.train()
    evaluations = [value for _, value in logged(trainer, "eval_accuracy")]
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(max(evaluations))
    assert trainer.predict(data).predictions.shape == (64, 3)
    trainer.save_model()
    trainer.create_model_card(model_name="clars test")
    assert "clars" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "model.safetensors").exists()


def test_compute_loss_func_sees_the_items_of_the_whole_step(tmp_path):
    counts = []

    def loss(outputs, labels, num_items_in_batch=None):
        counts.append(int(num_items_in_batch))
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    options = {"total_batch_size": 32, "num_train_epochs": 1}
    own, usual = (trained(tmp_path, **options, given={"compute_loss_func": function}) for function in (loss, None))
    assert set(counts) == {32}
    assert_close(weights(own), weights(usual), rtol=1e-5, atol=1e-7)


def test_layers_are_logged_as_they_were_before_clipping(tmp_path):
    options = {"total_batch_size": 32, "num_train_epochs": 2, "layer_statistics_steps": 2}
    trainer = trained(tmp_path, **options)
    records = layer_statistics(tmp_path)
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
    with pytest.warns(UserWarning, match=r"gradients were changed between backward\(\) and step\(\)"):
        trained(tmp_path / "clipped", **{**options, "max_grad_norm": 1e-3, "num_train_epochs": 1})
    for name, layer in layer_statistics(tmp_path / "clipped")[0]["layers"].items():
        for statistic in ("gradient_norm", "denominator", "variance_factor"):
            assert layer[statistic] == pytest.approx(records[0]["layers"][name][statistic], rel=1e-6)


def test_weight_decay_is_decided_by_type_for_every_optimizer(tmp_path):
    model = build_model("resnet18", 3)
    trainer = ClarsTrainer(model, arguments(tmp_path, optim="sgd", weight_decay=0.1), train_dataset=dataset(8))
    decayed = set(trainer.get_decay_parameter_names(model))
    assert "timm_model.conv1.weight" in decayed
    assert not [n for n in decayed if ".bn" in n or n.endswith("bias")]


class TwoGpus(ClarsTrainingArguments):
    n_gpu = 2


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="takes ClarsTrainingArguments, not TrainingArguments"):
        ClarsTrainer(seeded(), TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(UserError, match=r"accelerate launch --num_processes 2"):
        ClarsTrainer(seeded(), TwoGpus(str(tmp_path), use_cpu=True, report_to=[]))


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
        {**e, "labels": {"boxes": torch.rand(number, 4, generator=generator), "class_labels": torch.zeros(number)}}
        for number, e in zip([1, 2, 3] * 4, dataset(12), strict=True)
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
        given = {"eval_dataset": data, "data_collator": collate, "compute_metrics": metrics}
        evaluated = trainer(Detector(), args, **given).evaluate()
        results.append({key: evaluated[key] for key in ("eval_loss", "eval_boxes", "eval_images")})
    assert results[0] == pytest.approx(results[1])
    assert results[0]["eval_images"] == 12
