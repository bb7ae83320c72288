"""`hf-clars rates`: a model and a data set in, the admissible learning rates and those of LARS and CLARS out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..configuration import parse
from ..data import ImageCollator, ImageSource, eval_transform, open_source
from ..data.batches import IGNORED_LABEL
from ..errors import UserError
from ..image_classification.arguments import json_mapping
from ..models.timm_models import TimmForImageClassification, build_model
from .arguments import RatesArguments
from .rates_table import format_table, layer_rates


def run(argv: list[str]) -> None:
    """Print the table that `argv` asks for (see `RatesArguments`).

    Raises:
        UserError: anything the user can mend.
    """
    (args,) = parse(argv, RatesArguments)
    if (args.model_name is None) == (args.checkpoint is None):
        raise UserError("name a model: either --model_name, for initial weights, or --checkpoint, for saved ones")
    source = open_source(args.dataset, args.split)
    classes = args.num_classes or len(source.class_names or ())
    model: Any = _saved(args) if args.checkpoint is not None else _initial(args, classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train(args.model_mode == "train")
    size = int(args.image_size or model.config.pretrained_cfg["input_size"][-1])
    batches = list(
        _batches(args, source, ImageCollator(eval_transform(size), model.num_labels, training=False), device)
    )
    used = sum(batch["labels"].shape[0] for batch in batches)
    print(
        f"{args.checkpoint or args.model_name}, {args.model_mode} mode, "
        f"{used:,} examples of {source.name} ({source.split})"
    )
    print(
        f"B = {args.total_batch_size:,}, β = {args.momentum:g}, γ_scale = {args.learning_rate:g}, "
        f"η = {args.eta_lars:g} for LARS and {args.eta_clars:g} for CLARS; L_k and M_k at these weights, with M = 0",
        flush=True,
    )
    rows = layer_rates(
        model,
        batches,
        lambda outputs, labels: F.cross_entropy(outputs.logits, labels),
        gamma_scale=args.learning_rate,
        batch_size=args.total_batch_size,
        momentum=args.momentum,
        eta_lars=args.eta_lars,
        eta_clars=args.eta_clars,
        iterations=args.iterations,
        seed=args.seed,
    )
    print(format_table(rows))
    print("γ_k ≤: Theorem 2's bound on the layer alone; γ/L_k: with one γ for all layers and the condition on the mean")


def _initial(args: RatesArguments, classes: int) -> TimmForImageClassification:
    given = args.model_kwargs or {}
    kwargs = json_mapping("model_kwargs", given) if isinstance(given, str) else given
    if classes < 1:
        raise UserError(f"{args.dataset} does not name its classes: state their number with --num_classes")
    torch.manual_seed(args.seed)
    return build_model(str(args.model_name), classes, **kwargs)


def _saved(args: RatesArguments) -> TimmForImageClassification:
    folder = Path(os.path.expanduser(str(args.checkpoint)))
    if not (folder / "config.json").is_file():
        raise UserError(f"checkpoint {args.checkpoint}: no saved model (no config.json) in this folder")
    try:
        return TimmForImageClassification.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"checkpoint {args.checkpoint} cannot be loaded: {' '.join(str(error).split())}") from None


def _batches(
    args: RatesArguments, source: ImageSource, collator: ImageCollator, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Examples drawn at random, as a file may be sorted by class; those that cannot be used are left out."""
    table = source.table()
    drawn = np.random.default_rng(args.seed).permutation(len(table))[: args.examples]
    for start in range(0, len(drawn), args.per_device_batch_size):
        batch = collator([table[int(i)] for i in drawn[start : start + args.per_device_batch_size]])
        usable = batch["labels"] != IGNORED_LABEL
        if usable.any():
            yield {name: values[usable].to(device) for name, values in batch.items()}
