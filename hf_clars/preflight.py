"""What a training is going to be, in a few lines before its first step."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from .data import TrainStream
from .training import ClarsTrainingArguments
from .training.resuming import same_randomness_afterwards


def summary(
    args: ClarsTrainingArguments,
    model: nn.Module,
    stream: TrainStream,
    *,
    model_name: str,
    dataset: str,
    image_size: int,
) -> str:
    """Model, batch, data, learning rate and memory of a run."""
    order = stream.order
    parameters = sum(p.numel() for p in model.parameters())
    steps = args.max_steps if args.max_steps > 0 else int(order.steps * args.num_train_epochs)
    name = args.optim_name
    rest = "is left out" if args.tail == "drop" else "begins the next one"
    rate = f"{name}: γ_scale = {args.learning_rate:g}"
    if name in ("clars", "lars"):
        rate += f", η = {args.optimizer_options().eta:g}"
    if name == "clars":
        rate += f", norms: {args.norm_mode}"
    return "\n".join(
        (
            f"{model_name} ({parameters:,} parameters) on {dataset}",
            f"B = {args.total_batch_size:,} = {args.train_batch_size} a device × {args.gradient_accumulation_steps} "
            f"accumulated × {args.world_size} process(es); {order.steps} steps an epoch, {steps:,} in all; "
            f"the rest of an epoch {rest}",
            f"{order.examples:,} examples in {len(stream.chunks.sizes):,} chunks, read by {args.world_size} × "
            f"{max(1, args.dataloader_num_workers)} worker(s); order drawn from seed {order.seed} "
            f"among {stream.shuffle_buffer:,} examples a process",
            rate,
            f"device memory, about: {_memory(args, model, parameters, image_size)}",
        )
    )


def _memory(args: ClarsTrainingArguments, model: nn.Module, parameters: int, image_size: int) -> str:
    fixed = 4 * parameters * 3  # weights, gradients, momentum
    activations = activation_bytes(model, image_size, torch.bfloat16 if args.bf16 or args.fp16 else torch.float32)
    total = fixed + activations * args.train_batch_size
    return (
        f"{_gib(fixed)} for weights, gradients and momentum + {args.train_batch_size} × "
        f"{activations / 2**20:.1f} MiB of activations = {_gib(total)}"
    )


def activation_bytes(model: nn.Module, image_size: int, dtype: torch.dtype) -> int:
    """What a forward pass keeps for the backward pass for each image; seen by running one of two images on the CPU.

    Parameters do not count. The model is as it was afterwards.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    images = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    was_training = model.training
    low = torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()
    with same_randomness_afterwards(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), low:
        output: Any = model.train()(pixel_values=images, labels=torch.zeros(2, dtype=torch.int64))
    del output
    model.train(was_training)
    for buffer, before in buffers:
        buffer.copy_(before)
    return sum(kept.values()) // 2


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
