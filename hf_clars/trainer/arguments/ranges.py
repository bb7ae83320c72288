"""What transformers' own settings may be: its type hints leave words and ranges open, and it checks few of them."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate.utils import DynamoBackend, GradientAccumulationPlugin
from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError
from transformers import SchedulerType
from transformers.debug_utils import DebugOption
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import trainer_log_levels
from transformers.utils import is_torch_xla_available

from ...validation.schema import Count, NotNegative, PartOfOne, Positive, Seed, one_of

_Interval = Annotated[float, Field(gt=0, le=1e12)]


def _installed(reporter: str) -> str:
    # Of the rest, W&B has a line of its own, and some are not known by a package.
    if reporter in ("wandb", "azure_ml", "flyte", "kubeflow", "all", "none"):
        return reporter
    if reporter not in get_available_reporting_integrations():
        raise PydanticCustomError("reporter", "cannot be used: its package is not installed")
    return reporter


_Report = Annotated[str, one_of((*INTEGRATION_TO_CALLBACK, "all", "none")), AfterValidator(_installed)]


def _json(text: str) -> str:
    """Which transformers takes apart itself."""
    try:
        if isinstance(json.loads(text), dict):
            return text
    except (ValueError, RecursionError):
        pass
    raise PydanticCustomError("json", "must be a mapping, in JSON")


def _accelerator(given: Any) -> Any:
    """A mapping or a file of accelerate's; transformers puts an object of its own in the place of it."""
    config = given
    try:
        if isinstance(given, str) and not given.startswith("{"):
            config = AcceleratorConfig.from_json_file(given)
        elif isinstance(given, str | dict):
            config = AcceleratorConfig(**(json.loads(given) if isinstance(given, str) else given))
        if config is not None and not isinstance(config, AcceleratorConfig):
            raise TypeError("it must be a mapping")
        if config is not None and config.split_batches:
            raise ValueError("split_batches would divide the batch that total_batch_size states: leave it out")
        # transformers itself writes num_steps=1 there.
        accumulation = {} if config is None else dict(config.gradient_accumulation_kwargs or {})
        if accumulation.get("num_steps", 1) != 1:
            raise ValueError("num_steps would change the batch that total_batch_size states: leave it out")
        GradientAccumulationPlugin(**{"num_steps": 1, **accumulation})
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise PydanticCustomError("accelerator", "cannot be used: {why}", {"why": str(error)}) from error
    return given


def _debug(given: Any) -> Any:
    """Words in a text or a list; transformers asks a TPU for its metrics when all else is done."""
    words = given.split() if isinstance(given, str) else given or []
    known = [option.value for option in DebugOption]
    if not isinstance(words, list | tuple) or any(getattr(word, "value", word) not in known for word in words):
        raise PydanticCustomError("debug", "must be some of: {known}", {"known": ", ".join(known)})
    if DebugOption.TPU_METRICS_DEBUG in words and not is_torch_xla_available():
        raise PydanticCustomError("debug", "cannot be used: tpu_metrics_debug needs a TPU")
    return given


def _mapping_or_file(given: Any) -> Any:
    """A mapping, one in JSON, or a JSON file that holds one, as transformers reads them."""
    if not isinstance(given, str) or not given:
        return given
    if given.startswith("{"):
        return _json(given)
    try:
        _json(Path(os.path.expanduser(given)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PydanticCustomError("file", "cannot be read: {why}", {"why": str(error)}) from error
    return given


RANGES: dict[str, Any] = {
    "per_device_train_batch_size": Count,
    "per_device_eval_batch_size": Count,
    "gradient_accumulation_steps": Count,
    "num_train_epochs": Annotated[float, Field(gt=0, le=1e9)],
    "max_steps": Literal[-1] | Annotated[int, Field(ge=1, le=10**12)],
    "lr_scheduler_type": SchedulerType,
    "warmup_steps": NotNegative,
    "weight_decay": NotNegative,
    "adam_beta1": PartOfOne,
    "adam_beta2": PartOfOne,
    "adam_epsilon": NotNegative,
    "max_grad_norm": Annotated[float, Field(ge=0, allow_inf_nan=True)],  # infinite: look at the norm, clip nothing
    "label_smoothing_factor": PartOfOne,
    "neftune_noise_alpha": Positive | None,
    "torch_compile_mode": Annotated[
        str, one_of(("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"))
    ]
    | None,
    "torch_compile_backend": Annotated[  # accelerate takes either case
        str, StringConstraints(to_lower=True), one_of([backend.value.lower() for backend in DynamoBackend])
    ]
    | None,
    "torch_empty_cache_steps": Count | None,
    "logging_strategy": IntervalStrategy,
    "logging_steps": _Interval,
    "log_level": Annotated[str, one_of(trainer_log_levels)],
    "log_level_replica": Annotated[str, one_of(trainer_log_levels)],
    "report_to": _Report | list[_Report] | None,
    "eval_strategy": IntervalStrategy,
    "eval_steps": _Interval | None,
    "eval_delay": NotNegative,
    "eval_accumulation_steps": Count | None,
    "save_strategy": SaveStrategy,
    "save_steps": _Interval,
    "save_total_limit": Count | None,
    "hub_strategy": HubStrategy,
    "seed": Seed,
    "data_seed": Seed | None,
    "accelerator_config": Annotated[Any, AfterValidator(_accelerator)],
    "activation_checkpointing_kwargs": dict[str, Any] | Annotated[str, AfterValidator(_json)] | None,
    "lr_scheduler_kwargs": dict[str, Any] | Annotated[str, AfterValidator(_json)] | None,
    "dataloader_num_workers": Annotated[int, Field(ge=0, le=4096)],
    "dataloader_prefetch_factor": Count | None,
    "dataloader_multiprocessing_context": Annotated[str, one_of(("fork", "spawn", "forkserver"))] | None,
    "train_sampling_strategy": Annotated[str, one_of(("random", "sequential", "group_by_length", "batch_rebalance"))],
    "ddp_bucket_cap_mb": Count | None,
    "ddp_timeout": Count,
    "local_rank": Annotated[int, Field(ge=-1)],
    "optim_target_modules": str | list[str] | None,
    "debug": Annotated[Any, AfterValidator(_debug)],
    "deepspeed": Annotated[Any, AfterValidator(_mapping_or_file)],
    "fsdp": str | bool | list[str] | None,
    "fsdp_config": Annotated[Any, AfterValidator(_mapping_or_file)],
}
