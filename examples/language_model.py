"""A small GPT-2 on the bytes of Python's own manual, in a plain `transformers.Trainer` with CLARS.

The token embedding is tied to the output layer: its samples' norms are those of both uses together.
"""

import math
from pydoc_data.topics import topics  # text that every Python has

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import hf_clars  # noqa: F401 - makes optim="clars" known

LENGTH = 64


class Pieces(Dataset):
    """Pieces of `LENGTH` bytes of a text, one after the other."""

    def __init__(self, text: bytes) -> None:
        self.pieces = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self.pieces = self.pieces[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.pieces[index], "labels": self.pieces[index]}


def main() -> None:
    torch.manual_seed(0)
    text = "\n".join(topics.values()).encode()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4))
    args = TrainingArguments(
        "outputs/examples/language_model",
        optim="clars",
        learning_rate=3.0,  # γ_scale: language models want less than others
        max_grad_norm=0,  # CLARS bounds each layer's step by γ_scale · η of its weight's norm
        lr_scheduler_type="polynomial",
        per_device_train_batch_size=64,
        gradient_accumulation_steps=2,  # B = 128 pieces
        num_train_epochs=2,
        logging_steps=20,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model, args, train_dataset=Pieces(text[:-20_000]), eval_dataset=Pieces(text[-20_000:]))
    trainer.train()
    print(f"bits a byte on held-out text: {trainer.evaluate()['eval_loss'] / math.log(2):.2f}")


if __name__ == "__main__":
    main()
