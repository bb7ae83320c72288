"""`ClarsTrainingArguments`: TrainingArguments whose defaults suit large batches, and fields of its own."""

import copy
import difflib
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, ParallelMode

from ...data.order import LAST_BATCH
from ...errors import UserError, one_line
from ...safety.secrets import is_secret, without_secrets
from ...starting_rate import GAMMA_SCALE
from ...validation.schema import check, one_of
from .clars_fields import ClarsFields
from .derived import FollowingNumbers, derived, given
from .foreign_optimizers import check_foreign_optimizer, refuse_adam
from .options import (
    AUTHORS,
    NOT_TAKEN,
    OPTIMIZERS,
    OURS,
    OptimizerOptions,
    check_lamb,
    parse_optim_args,
    refuse_deepspeed,
)
from .ranges import RANGES
from .schedules import check_schedule
from .without_effect import refuse_contradictions

_TYPES = {**RANGES, "last_batch": Annotated[str, one_of(LAST_BATCH)]}


@dataclass
class ClarsTrainingArguments(ClarsFields, FollowingNumbers, TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` for CLARS and LARS, and for what they are compared with.

    Differs from its base in these defaults: `optim="clars"`; a polynomial schedule of power 2; `max_grad_norm=0`
    (clipping would shrink the gradient but not the denominator); `logging_nan_inf_filter=False` (divergence must
    show); no dispatching of batches from rank 0; `learning_rate=None`, which stands for 10 with CLARS and LARS,
    whatever the batch size (`hf_clars.starting_rate`). With `base_learning_rate` or `base_batch_size`, with mNAG,
    AdaScale and `mode="authors"` it stands for linear scaling, `base_learning_rate × B / base_batch_size`.

    It takes the arguments of `TrainingArguments`, and the fields of `ClarsFields`, whose meaning stands beside them.

    Raises:
        UserError: values out of range, batch sizes that do not divide, or DeepSpeed.
    """

    def __post_init__(self) -> None:
        names = [member.value for member in OptimizerNames]
        if self.optim_name not in names:
            near = difflib.get_close_matches(str(self.optim), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": choose one of {OURS}, or of transformers' own"
            raise UserError(f"optim={self.optim!r} is unknown{hint}")
        evaluates_every = self.eval_steps = given(self.eval_steps)
        check(self, _TYPES)
        if self._is_layerwise():
            refuse_deepspeed(self.deepspeed)
        rate = given(self.learning_rate)
        self._check_epochs()
        self._keep_batches_local()
        self.lr_scheduler_kwargs = given(self.lr_scheduler_kwargs)  # without those of another schedule
        if self.lr_scheduler_type == "polynomial" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = derived({"power": 2.0})
        self.report_to = [] if self.report_to is None else self.report_to
        self.learning_rate = derived(0.0) if rate is None else rate
        self.total_batch_size = given(self.total_batch_size)
        try:
            super().__post_init__()
        except UserError:
            raise
        except Exception as error:  # all of it is about what was set, and transformers raises whatever it meets
            if self.ddp_backend is not None and "process group" in str(error):
                raise UserError(f"ddp_backend={self.ddp_backend!r} is for several processes: leave it out") from error
            raise UserError(f"{type(error).__name__}: {one_line(error)}") from error
        if evaluates_every is None and self.eval_steps is not None:  # transformers took logging_steps
            self.eval_steps = derived(self.eval_steps)
        self._check_optimizer()
        refuse_contradictions(self)
        if self.fsdp and self.parallel_mode != ParallelMode.DISTRIBUTED:
            raise UserError(
                f"fsdp={self.fsdp!r} is for several processes: begin with `accelerate launch` or `torchrun`"
            )
        if rate is None and self.base_learning_rate is None and not self._is_layerwise():
            raise UserError(
                f"optim={self.optim_name} has no learning rate of its own here: state learning_rate, or "
                f"base_learning_rate, which is multiplied with the batch size (linear scaling)"
            )
        self._check_accumulation()
        self.settle()
        if rate is not None and (self.base_learning_rate is not None or self.base_batch_size is not None):
            if rate != self._scaled_learning_rate():
                raise UserError(
                    f"learning_rate={rate!r} is γ_scale itself: leave it out, or base_learning_rate and base_batch_size"
                )
            self.learning_rate = derived(rate)
        check_schedule(self)
        if self.mixed_precision == "fp16" and self.device.type == "cpu":
            raise UserError("fp16=True needs a GPU, and this training is on the CPU: use bf16=True, or leave it out")
        self._is_complete = True

    @property
    def optim_name(self) -> str:
        """`optim` as plain text, before and after transformers made an enum member of it."""
        return str(getattr(self.optim, "value", self.optim))

    def optimizer_options(self) -> OptimizerOptions:
        """Those in force for CLARS, LARS, mNAG or AdaScale: of `optim_args`, else of the fields, else the defaults."""
        given = {f.name: getattr(self, f.name) for f in fields(OptimizerOptions)}
        return OptimizerOptions.in_force(self.optim_name, given, parse_optim_args(self.optim_args))

    def _check_epochs(self) -> None:
        """What is stated in epochs."""
        if self.warmup_epochs is not None and self.warmup_steps:
            raise UserError(f"warmup_epochs={self.warmup_epochs} and warmup_steps={self.warmup_steps}: leave one out")
        if self.warmup_start and self.warmup_epochs is None:
            raise UserError(f"warmup_start={self.warmup_start} is for warmup_epochs: state both, or none")
        if self.lr_decay != 0.1 and not self.lr_milestones:
            raise UserError(f"lr_decay={self.lr_decay} is for lr_milestones: state both, or none")
        milestones = self.lr_milestones or []
        if milestones != sorted(milestones):
            raise UserError(f"lr_milestones={milestones} must be in ascending order")

    def _check_optimizer(self) -> None:
        """What is set is taken by the optimizer, with all of `optim_args`."""
        name = self.optim_name
        for option in NOT_TAKEN.get(name, (*NOT_TAKEN["mnag"], "momentum")):
            if (value := getattr(self, option)) is not None:
                hint = " (optim_args: momentum=…, where it takes one)" if option == "momentum" else ""
                out = f"leave it out (a recipe's: --{option} null)"
                raise UserError(f"{option}={value!r} is nothing that optim={name!r} takes: {out}{hint}")
        if self.layerwise_epochs is not None and name not in ("clars", "lars"):
            raise UserError(f"layerwise_epochs={self.layerwise_epochs} is for clars and lars, not {name}")
        if name == "lamb":
            check_lamb(parse_optim_args(self.optim_args))
        elif not self._is_layerwise():
            check_foreign_optimizer(self, name)
            return
        else:
            refuse_adam(self, name)
        if self.optim_target_modules is not None:
            raise UserError(f"optim_target_modules={self.optim_target_modules!r} is for galore and apollo, not {name}")
        if name == "lamb":
            return
        options = self.optimizer_options()
        self.weight_decay = options.weight_decay  # Trainer makes groups of it
        if self.optim_name == "clars" and options.mode == AUTHORS and self.mixed_precision == "fp16":
            raise UserError(
                "mode='authors' with fp16=True: gradients of its extra passes would underflow without a loss "
                "scale, and have none. Use bf16=True, or another mode"
            )

    def _starting_rate(self) -> float:
        is_scaled = self.base_learning_rate is not None or self.base_batch_size is not None
        if is_scaled or self.optim_name not in ("clars", "lars") or self.optimizer_options().mode == AUTHORS:
            return super()._starting_rate()
        return GAMMA_SCALE

    def _is_layerwise(self) -> bool:
        return self.optim_name in OPTIMIZERS

    def _keep_batches_local(self) -> None:
        # accelerate's default for streams is that rank 0 reads and decodes for everyone.
        config = self.accelerator_config
        if config is None:
            self.accelerator_config = {"dispatch_batches": False}
        elif isinstance(config, dict):
            self.accelerator_config = {"dispatch_batches": False, **config}

    def to_dict(self) -> dict[str, Any]:
        """As `TrainingArguments.to_dict`, which hides `…_token`; here no other secret is in it, at any depth."""
        return without_secrets(super().to_dict())

    def __getstate__(self) -> dict[str, Any]:
        """A pickle of the arguments has no secrets: Trainer writes one, `training_args.bin`, and uploads it."""
        return {k: None if is_secret(k) else without_secrets(v) for k, v in self.__dict__.items()}

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = object.__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made
