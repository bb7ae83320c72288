"""What a checkpoint has of a model comes back, whatever architecture it is; what does not is an error."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, load_model, save_file
from torch import nn

from hf_clars import ClarsTrainer, TrainingFailedError, UserError, build_model

from .helpers.models import Classifier, dataset
from .helpers.training import arguments, seal

TEXT = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**{k: v for k, v in TEXT.items() if k != "vocab_size"}, "image_size": 8, "patch_size": 4}
LM = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
CONVNEXT = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
DETR = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 4, "num_labels": 3,
}  # fmt: skip
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def clip() -> nn.Module:
    config = t.CLIPConfig(
        text_config={**TEXT, **LM, "max_position_embeddings": 8}, vision_config=VISION, projection_dim=8
    )
    return t.CLIPModel(config)


def detr() -> nn.Module:
    config = t.DetrConfig(
        backbone_config=t.ResNetConfig(**RESNET, out_features=["stage4"]),
        use_timm_backbone=False,
        backbone=None,
        **DETR,
    )
    return t.DetrForObjectDetection(config)


MODELS = {
    "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**VISION, num_labels=3)),
    "deit": lambda: t.DeiTForImageClassification(t.DeiTConfig(**VISION, num_labels=3)),
    "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT, num_labels=3)),
    "bert-mlm": lambda: t.BertForMaskedLM(t.BertConfig(**TEXT)),
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, **LM)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT)),
    "llama-tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=True)),
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0)
    ),
    "clip": clip,
    "swin": lambda: t.SwinForImageClassification(t.SwinConfig(**SWIN, num_labels=3)),
    "convnext": lambda: t.ConvNextForImageClassification(t.ConvNextConfig(**CONVNEXT, num_labels=3)),
    "resnet": lambda: t.ResNetForImageClassification(t.ResNetConfig(**RESNET, num_labels=3)),
    "detr": detr,
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**TEXT, num_local_experts=4, num_key_value_heads=2)),
    "qwen2-moe": lambda: t.Qwen2MoeForCausalLM(
        t.Qwen2MoeConfig(
            **TEXT, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_key_value_heads=2
        )
    ),
    "timm-resnet": lambda: build_model("resnet18", num_classes=3),
    "timm-vit": lambda: build_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2),
}


def examples(model: nn.Module) -> list[dict]:
    """16 of what the model takes: tokens, pixels, or both."""
    config, kind = getattr(model, "config", None), type(model).__name__
    size = getattr(config, "image_size", 32 if "Timm" in kind or "Detr" in kind else 16)
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(16):
        pixels = torch.randn(3, size, size, generator=generator)
        tokens = torch.randint(3, 32, (6,), generator=generator)
        if isinstance(model, t.CLIPModel):
            made.append({"pixel_values": pixels[:, :8, :8], "input_ids": tokens, "return_loss": True})
        elif hasattr(config, "vocab_size"):
            labels = torch.tensor(i % 3) if "ForSequenceClassification" in kind else tokens
            made.append({"input_ids": tokens, "labels": labels})
        else:
            made.append({"pixel_values": pixels, "labels": torch.tensor(i % 3)})
    return made


def collate(made: list[dict]) -> dict:
    batch = {key: [example[key] for example in made] for key in made[0]}
    return {key: torch.stack(v) if isinstance(v[0], torch.Tensor) else v[0] for key, v in batch.items()}


def loss_of_boxes(outputs, labels, **kwargs) -> torch.Tensor:
    """In the place of DETR's own, which needs scipy."""
    return outputs.logits.square().mean() + (outputs.pred_boxes - 0.5).square().mean()


def trained(
    folder: Path, model: nn.Module, resume: str | None = None, callbacks: Sequence = (), **options
) -> ClarsTrainer:
    """Four steps, with a checkpoint after every other one."""
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.1, "optim": "lars"}
    args = arguments(folder, total_batch_size=8, remove_unused_columns=False, **{**steps, **options})
    small = isinstance(model, Classifier)
    data = dataset(16) if small else examples(model)
    trainer = ClarsTrainer(
        model, args, train_dataset=data, eval_dataset=data[:8], data_collator=None if small else collate,
        compute_loss_func=loss_of_boxes if isinstance(model, t.DetrForObjectDetection) else None,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def built(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]()


def assert_same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


QUICK = ("vit", "llama-tied", "mixtral")  # renamed, tied, merged


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MODELS])
def test_resumed_is_uninterrupted(tmp_path, name):
    """Weights are bit for bit those of the uninterrupted run; a checkpoint is what `from_pretrained` takes."""
    whole = trained(tmp_path, built(name, 1)).model
    resumed = trained(tmp_path, built(name, 2), str(tmp_path / "checkpoint-2")).model
    assert_same(whole, resumed)
    assert_same(whole, type(whole).from_pretrained(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("name", ["vit", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_a_checkpoint_with_the_names_of_the_hub(tmp_path, name):
    """As a version before this one, and `save_model`, write it."""
    whole = trained(tmp_path, built(name, 1))
    whole.save_model()
    own = set(whole.model.state_dict())
    assert set(load_file(tmp_path / "model.safetensors")) - own
    assert set(load_file(tmp_path / "checkpoint-2" / "model.safetensors")) <= own
    at_two = type(whole.model).from_pretrained(tmp_path / "checkpoint-2")
    at_two.save_pretrained(tmp_path / "checkpoint-2")
    seal(tmp_path / "checkpoint-2")
    resumed = trained(tmp_path, built(name, 2), str(tmp_path / "checkpoint-2"))
    assert_same(whole.model, resumed.model)


def changed(checkpoint: Path, drop: str = "", **more: torch.Tensor) -> None:
    weights = {n: w for n, w in load_file(checkpoint / "model.safetensors").items() if n != drop}
    save_file({**weights, **more}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    seal(checkpoint)


class Deeper(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


def test_keys_that_do_not_fit_are_an_error_that_names_them(tmp_path):
    trained(tmp_path, Classifier())
    with pytest.raises(UserError, match=r"checkpoint-4 is of another model: it lacks extra\.bias, extra\.weight$"):
        trained(tmp_path, Deeper(), "true")
    changed(tmp_path / "checkpoint-4", other=torch.zeros(2))
    with pytest.raises(UserError, match=r"of another model: it has other, which the model has not$"):
        trained(tmp_path, Classifier(), "true")
    changed(tmp_path / "checkpoint-4", drop="head.bias")
    with pytest.raises(UserError, match=r"it lacks head\.bias and it has other, which the model has not$"):
        trained(tmp_path, Classifier(), "true")


def test_so_are_those_of_a_transformers_model(tmp_path):
    trained(tmp_path, built("vit", 1), max_steps=2)
    name = "vit.encoder.layer.0.attention.attention.query.weight"
    del_own = next(
        n for n in load_file(tmp_path / "checkpoint-2" / "model.safetensors") if n.endswith("0.bias") or "q" in n
    )
    changed(tmp_path / "checkpoint-2", drop=del_own, **{f"x.{name}": torch.zeros(2)})
    with pytest.raises(UserError, match=f"it lacks {del_own}.* and it has x.vit"):
        trained(tmp_path, built("vit", 1), str(tmp_path / "checkpoint-2"))


BEST = {
    "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_strategy": "steps", "eval_steps": 2,
}  # fmt: skip


class Break(t.TrainerCallback):
    """Does something to the best checkpoint when the last one has been written."""

    def __init__(self, what) -> None:
        self.what = what

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.what(Path(state.best_model_checkpoint))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda best: changed(best, drop="head.bias"), "it lacks head.bias$"),
        (lambda best: (best / "model.safetensors").write_bytes(b"no"), "cannot be used .model.safetensors has 2 bytes"),
        (shutil.rmtree, "cannot be used .no such folder."),
    ],
)
def test_the_best_model_is_loaded_or_an_error(tmp_path, what, message):
    with pytest.raises(UserError, match=message):
        trained(tmp_path, Classifier(), callbacks=[Break(what)], **BEST)


def test_the_best_model_of_transformers(tmp_path):
    trainer = trained(tmp_path, built("vit", 1), learning_rate=9.0, **BEST)
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    assert_same(best, trainer.model)


class ForSequenceClassificationOfItsOwn(t.BertForSequenceClassification):
    def save_pretrained(self, save_directory, state_dict=None, is_main_process=True):
        super().save_pretrained(save_directory, state_dict=state_dict, is_main_process=is_main_process)


def test_a_save_pretrained_with_fewer_arguments(tmp_path):
    model = ForSequenceClassificationOfItsOwn(t.BertConfig(**TEXT, num_labels=3))
    trained(tmp_path, model, max_steps=2)
    assert_same(type(model).from_pretrained(tmp_path / "checkpoint-2"), model)
    assert "save_pretrained" not in vars(model)


# --- tensors that share memory -----------------------------------------------------------------------------------


class Tied(Classifier):
    """Two layers with one weight, a view of it, and a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("part", self.first.weight.detach()[:3])
        self.turned = nn.Parameter(torch.randn(4, 16).T)

    def forward(self, pixel_values, labels=None):
        x = self.second(torch.relu(self.first(pixel_values.flatten(1)))) @ self.turned @ self.turned.T
        return super().forward(x.view(-1, 1, 4, 4), labels)


@pytest.mark.parametrize("optim", ["clars", pytest.param("lars", marks=pytest.mark.slow)])
def test_tied_weights_outside_transformers(tmp_path, optim):
    torch.manual_seed(1)
    whole = trained(tmp_path, Tied(), optim=optim)
    stored = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert len({"first.weight", "second.weight"} & set(stored)) == 1
    torch.manual_seed(2)
    resumed = trained(tmp_path, Tied(), str(tmp_path / "checkpoint-2"), optim=optim)
    assert_same(whole.model, resumed.model)
    assert resumed.model.first.weight is resumed.model.second.weight
    assert resumed.model.part.data_ptr() == resumed.model.first.weight.data_ptr()
    resumed.save_model()
    fresh = Tied()
    load_model(fresh, tmp_path / "model.safetensors")
    assert_same(fresh, whole.model)


class Untied(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(16, 16, bias=False)


def test_a_model_that_does_not_tie_them_is_another(tmp_path):
    trained(tmp_path, Tied())
    with pytest.raises(UserError, match=r"it lacks (second|first)\.weight$"):
        trained(tmp_path, Untied(), "true")


class WithNotes(Classifier):
    def get_extra_state(self):
        return {"a": "note"}

    def set_extra_state(self, state):
        pass


def test_a_model_that_cannot_be_saved_ends_at_the_first_checkpoint(tmp_path):
    with pytest.raises(TrainingFailedError, match=r"checkpoint of step 2 could not be written: .*save_strategy=no"):
        trained(tmp_path, WithNotes())
    assert not list(tmp_path.glob("checkpoint-*"))


# --- adapters ----------------------------------------------------------------------------------------------------


def adapted(seed: int) -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)  # the base model is given, and not saved
    base = MODELS["llama"]()
    torch.manual_seed(seed)
    return peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_adapters(tmp_path):
    whole = trained(tmp_path, adapted(1)).model
    assert_same(whole, trained(tmp_path, adapted(2), str(tmp_path / "checkpoint-2")).model)
    file = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    weights = load_file(file)
    lost = next(iter(weights))
    save_file({n: w for n, w in weights.items() if n != lost}, file, metadata={"format": "pt"})
    seal(tmp_path / "checkpoint-2")
    with pytest.raises(
        UserError, match=r"checkpoint-2 is of another model: it lacks .*q_proj\.lora_A\.default\.weight$"
    ):
        trained(tmp_path, adapted(2), str(tmp_path / "checkpoint-2"))


# --- transformers' own Trainer -----------------------------------------------------------------------------------


def plain(folder: Path, model: nn.Module, resume: bool = False, **options) -> t.Trainer:
    args = t.TrainingArguments(
        output_dir=str(folder), optim="clars", learning_rate=1.0, max_grad_norm=0, per_device_train_batch_size=8,
        max_steps=4, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        **options,
    )  # fmt: skip
    trainer = t.Trainer(model, args, train_dataset=examples(model), data_collator=collate)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trainer_with_clars_does_not_go_on_from_random_values(tmp_path):
    plain(tmp_path, built("vit", 1))
    shutil.rmtree(tmp_path / "checkpoint-4")
    message = (
        r"Trainer does not restore this model from .*checkpoint-2: it lacks vit\..* and it has vit\..*ClarsTrainer"
    )
    with pytest.raises(UserError, match=message):
        plain(tmp_path, built("vit", 2), True)


@pytest.mark.slow
def test_trainer_with_clars_goes_on_where_names_are_the_models(tmp_path):
    whole = plain(tmp_path, built("llama-tied", 1)).model
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert_same(whole, plain(tmp_path, built("llama-tied", 2), True).model)
