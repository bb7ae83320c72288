"""Trains `Classifier` for five steps and saves its weights: what `accelerate launch` runs in the multi-process tests.

launch.py OUTPUT OPTIM PER_DEVICE_BATCH [fsdp]
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from hf_clars import ClarsTrainer, ClarsTrainingArguments
from tests.helpers.models import Classifier, dataset


def main(output: str, optim: str, per_device: str) -> None:
    torch.set_num_threads(1)
    train_and_save(PartialState(cpu=True).process_index, output, optim, int(per_device))


def train_and_save(rank: int, output: str, optim: str, per_device: int) -> None:
    torch.manual_seed(1)
    args = ClarsTrainingArguments(
        output_dir=output, optim=optim, learning_rate=3.0, weight_decay=1e-3, total_batch_size=64, max_steps=5,
        per_device_train_batch_size=per_device, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        logging_steps=1, layer_statistics_steps=1,
    )  # fmt: skip
    trainer = ClarsTrainer(Classifier(), args, train_dataset=Ordered(320))
    calls = counted_all_reduces()
    trainer.train()
    if rank == 0:
        Path(f"{output}/world_size").write_text(str(PartialState().num_processes))
        Path(f"{output}/all_reduces.json").write_text(json.dumps(calls))
        model = trainer.accelerator.unwrap_model(trainer.model)
        torch.save(model.state_dict(), f"{output}/weights.pt")


def counted_all_reduces() -> list[list[int]]:
    """Sizes of the tensors that this process reduces from here on, but for those that DDP reduces in C++."""
    calls: list[list[int]] = []
    all_reduce = dist.all_reduce

    def counting(tensor, *args, **kwargs):
        calls.append([tensor.numel()])
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    return calls


class Ordered(torch.utils.data.IterableDataset):
    """The same 64 samples in every global batch, however they are dealt out to ranks and micro-batches."""

    def __init__(self, size: int) -> None:
        self.examples = dataset(size)

    def __iter__(self):
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)


if __name__ == "__main__":
    main(*sys.argv[1:])
