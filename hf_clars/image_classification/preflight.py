"""What a training is going to be, in a few lines before its first step."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..data import ResidentImages, TrainStream
from ..norms import PerSampleNorms
from ..norms.restored import randomness_restored
from ..trainer import ClarsTrainingArguments


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
    epochs = args.num_train_epochs
    steps = stream.steps_of(epochs) if args.last_batch == "carry" else math.ceil(order.steps * epochs)
    if args.max_steps > 0:
        steps = args.max_steps
    name = args.optim_name
    rest = "is left out" if args.last_batch == "drop" else "begins the next one"
    rate = f"{name}: γ_scale = {args.learning_rate:g}"
    if name in ("clars", "lars"):
        rate += f", η = {args.optimizer_options().eta:g}"
    expensive: list[str] = []
    if name == "clars":
        options = args.optimizer_options()
        rate += f", norms: {options.mode}"
        if options.mode in ("per_sample", "subset"):
            expensive = _expensive(model, image_size, options.bias_and_norm == "paper")
    return "\n".join(
        (
            f"{model_name} ({parameters:,} parameters) on {dataset}",
            f"B = {args.total_batch_size:,} = {args.train_batch_size} a device × {args.gradient_accumulation_steps} "
            f"accumulated × {args.world_size} process(es); {order.steps} steps an epoch, {steps:,} in all; "
            f"the rest of an epoch {rest}",
            _data(args, stream),
            rate,
            f"device memory, about: {_memory(args, model, parameters, image_size)}",
            *expensive,
        )
    )


def _data(args: ClarsTrainingArguments, stream: TrainStream) -> str:
    order = stream.order
    if isinstance(stream, ResidentImages):
        held = _readable(stream.decoded.images.nbytes)
        return (
            f"{order.examples:,} examples, decoded once, {held} on {stream.device}; order drawn from seed {order.seed}"
        )
    return (
        f"{order.examples:,} examples in {len(stream.chunks.sizes):,} chunks, read by {args.world_size} × "
        f"{max(1, args.dataloader_num_workers)} worker(s); order drawn from seed {order.seed} "
        f"among {stream.shuffle_buffer:,} examples a process"
    )


def _memory(args: ClarsTrainingArguments, model: nn.Module, parameters: int, image_size: int) -> str:
    fixed = 4 * parameters * 3  # weights, gradients, momentum
    activations = activation_bytes(model, image_size, torch.bfloat16 if args.bf16 or args.fp16 else torch.float32)
    total = fixed + activations * args.train_batch_size
    return (
        f"{_readable(fixed)} for weights, gradients and momentum + {args.train_batch_size} × "
        f"{_readable(activations)} of activations = {_readable(total)}"
    )


def activation_bytes(model: nn.Module, image_size: int, dtype: torch.dtype) -> int:
    """What a forward pass keeps for the backward pass for each image; seen by running two and four images on the CPU.

    What does not grow with their number (parameters, and their copies under autocast) does not count. The model is as
    it was afterwards.
    """
    return (_kept(model, 4, image_size, dtype) - _kept(model, 2, image_size, dtype)) // 2


def _expensive(model: nn.Module, image_size: int, bias_and_norm: bool) -> list[str]:
    """A line for each reason for which parameters take a multiple of their plain gradient to measure."""
    with PerSampleNorms(model, bias_and_norm=bias_and_norm) as norms, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what cannot be measured, the training warns
        _try(model, 2, image_size)
        found = norms.expensive
    of_reason: dict[str, list[str]] = {}
    for name, reason in found.items():
        of_reason.setdefault(reason, []).append(name)
    return [
        f"expensive to measure: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {reason}"
        for reason, names in of_reason.items()
    ]


def _kept(model: nn.Module, images: int, image_size: int, dtype: torch.dtype) -> int:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    low = torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), low:
        _try(model, images, image_size)
    return sum(kept.values())


def _try(model: nn.Module, images: int, image_size: int) -> None:
    """Run a forward pass in train mode on the CPU, and leave the model as it was."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    pixels = torch.zeros(images, 3, image_size, image_size, dtype=torch.uint8)
    was_training = model.training
    with randomness_restored():
        output: Any = model.train()(pixel_values=pixels, labels=torch.zeros(images, dtype=torch.int64))
    del output
    model.train(was_training)
    for buffer, before in buffers:
        buffer.copy_(before)


def _readable(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
