"""LoRA (PEFT) with CLARS: a language model of Python's manual learns Python's source code; only adapters are trained.

Only what is trained is measured: the frozen weights cost nothing.
"""

import math
import tokenize
from pydoc_data.topics import topics  # text that every Python has

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import hf_clars  # noqa: F401 - makes optim="clars" known

LENGTH = 64


def pieces(text: bytes) -> list[dict[str, torch.Tensor]]:
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer_for(model, text: bytes, held_out: bytes, **arguments) -> Trainer:
    args = TrainingArguments(
        "outputs/examples/peft_lora",
        per_device_train_batch_size=128,
        lr_scheduler_type="linear",
        logging_steps=20,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        **arguments,
    )
    return Trainer(model, args, train_dataset=pieces(text), eval_dataset=pieces(held_out))


def main() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4))
    manual = "\n".join(topics.values()).encode()[:200_000]
    with open(tokenize.__file__, "rb") as file:
        source = file.read()
    cut = len(source) * 4 // 5
    before = trainer_for(model, manual, source[cut:], optim="adamw_torch", learning_rate=3e-3, num_train_epochs=2)
    before.train()
    was = before.evaluate()["eval_loss"]

    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))
    adapted.print_trainable_parameters()
    after = trainer_for(
        adapted, source[:cut], source[cut:], optim="clars", learning_rate=3.2, max_grad_norm=0, num_train_epochs=20
    )  # fmt: skip
    after.train()
    now = after.evaluate()["eval_loss"]
    print(f"bits a byte on held-out source code: {was / math.log(2):.2f} before, {now / math.log(2):.2f} after")


if __name__ == "__main__":
    main()
