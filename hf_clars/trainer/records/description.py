"""What a run is called and described by: a flat mapping of its settings, and the name, group and tags that follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch

from ...runtime.provenance import HOUSEKEEPING, commit, hardware
from ...safety.secrets import without_secrets
from ..arguments.derived import plain
from ..arguments.options import NOT_TAKEN, OPTIMIZERS

GROUP_LENGTH, TAG_LENGTH = 128, 64  # W&B's limits
# Of TrainingArguments, beside HOUSEKEEPING: what does not change what is computed, or follows from what does.
_NOT_OF_A_GROUP = frozenset({"seed", "data_seed", "gradient_accumulation_steps", "accelerator_config", "project"})
_NOT_OF_A_GROUP_EITHER = (
    "dataloader_", "ddp_", "disable_", "eval_", "hub_", "log_", "logging_", "push_to_hub", "save_", "trackio_",
)  # fmt: skip


@dataclass(frozen=True)
class Description:
    """Of one run.

    Attributes:
        config: setting → value under the names of the recipe and of `TrainingArguments`; `eta`, `momentum` and
            `mode` are those in force, `gamma_scale` is the learning rate of the schedule's top, and `commit` and
            `hardware` say where the run is made. No tokens, no tables of class names.
        name: optimizer, model, B, seed.
        group: that without the seed, and a checksum of all settings that change what is computed, apart from seeds.
        tags: optimizer, model, data set.
    """

    config: dict[str, Any]
    name: str
    group: str
    tags: tuple[str, ...]


def describe(args: Any, model: Any, about: Mapping[str, Any]) -> Description:
    """The description of a run with `ClarsTrainingArguments`; `about` are settings that these do not have."""
    architecture = getattr(model, "config", None)
    of_model = architecture.to_dict() if architecture is not None and hasattr(architecture, "to_dict") else {}
    of_optimizer = _in_force(args)
    known = {
        **{k: v for k, v in of_model.items() if k not in ("id2label", "label2id")},
        **args.to_dict(),
        "model_name": _model_name(model, architecture),
        **about,
        **of_optimizer,
        "gamma_scale": args.learning_rate,
        "commit": commit(),
        "hardware": _hardware(args),
    }
    config = without_secrets({key: plain(value) for key, value in known.items()})  # W&B takes a marked number for text
    model_name = str(config["model_name"]).rstrip("/").rpartition("/")[2]
    data = str(about.get("dataset") or "").rstrip("/").rpartition("/")[2]
    head = " ".join(word for word in (args.optim_name, model_name, f"B={args.total_batch_size}") if word)
    words = [head, data, f"lr={args.learning_rate:g}"]
    words += [f"{k}={v:g}" if isinstance(v, float) else str(v) for k, v in of_optimizer.items() if k != "momentum"]
    digest = _digest(args, about, data)
    readable = " ".join(filter(None, words))[: GROUP_LENGTH - len(digest) - 1]
    return Description(
        config=config,
        name=f"{head} seed={args.seed}"[:GROUP_LENGTH],
        group=f"{readable} {digest}",
        tags=tuple(dict.fromkeys(tag[:TAG_LENGTH] for tag in (args.optim_name, model_name, data) if tag)),
    )


def _in_force(args: Any) -> dict[str, Any]:
    """η, β and the way to measure, as far as the optimizer has them, whichever way they were given."""
    name = args.optim_name
    if name not in OPTIMIZERS:
        return {}
    options = args.optimizer_options()
    values: dict[str, Any] = {"momentum": options.momentum}
    if "eta" not in NOT_TAKEN[name]:
        values["eta"] = options.eta
    if name == "clars":
        values["mode"] = options.mode
    return values


def _model_name(model: Any, architecture: Any) -> str:
    names = (getattr(architecture, key, None) for key in ("architecture", "name_or_path"))
    return next((str(name) for name in names if name), type(model).__name__)


def _hardware(args: Any) -> str:
    """On a line: `8 × NVIDIA H100, 4 thread(s), torch 2.11.0, Linux x86_64`."""
    where = hardware({"use_cpu": args.device.type == "cpu"}, torch.get_num_threads())
    devices = where["device"] if args.world_size == 1 else f"{args.world_size} × {where['device']}"
    return f"{devices}, {where['threads']} thread(s), torch {where['torch']}, {where['system']}"


def _digest(args: Any, about: Mapping[str, Any], data: str) -> str:
    """Eight hexadecimal digits, the same for runs that differ in their seeds alone."""
    plain = args.to_dict()
    counted = {
        f.name: plain[f.name]
        for f in fields(args)
        if f.init and plain[f.name] != _default(f) and not is_housekeeping(f.name)
    }
    counted |= {k: v for k, v in about.items() if k not in HOUSEKEEPING} | {"dataset": data}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, default=str).encode()).hexdigest()[:8]


def is_housekeeping(name: str) -> bool:
    return name in HOUSEKEEPING or name in _NOT_OF_A_GROUP or name.startswith(_NOT_OF_A_GROUP_EITHER)


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
