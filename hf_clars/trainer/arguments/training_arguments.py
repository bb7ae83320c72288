"""`ClarsTrainingArguments`: TrainingArguments whose defaults suit large batches, and fields of its own."""

import copy
import difflib
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import Field
from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames, ParallelMode

from ...data.order import LAST_BATCH
from ...errors import UserError, one_line
from ...safety.secrets import is_secret, without_secrets
from ...validation.schema import Count, Epochs, NotNegative, PartOfOne, Positive, Share, Whole, check, one_of
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


@dataclass
class ClarsTrainingArguments(FollowingNumbers, TrainingArguments):
    """`transformers.TrainingArguments` for CLARS and LARS, and for mNAG and LAMB to compare them with.

    Differs from its base in these defaults: `optim="clars"`; a polynomial schedule of power 2; `max_grad_norm=0`
    (clipping would shrink the gradient but not the denominator); `logging_nan_inf_filter=False` (divergence must
    show); no dispatching of batches from rank 0; `learning_rate=None`, which stands for linear scaling,
    `γ_scale = base_learning_rate × B / base_batch_size`.

    Args:
        total_batch_size: B of one optimizer step. `gradient_accumulation_steps` follows from it, from
            `per_device_train_batch_size` and from the number of processes.
        base_learning_rate, base_batch_size: linear scaling, see above; 0.1 and 128 by default for CLARS, LARS and mNAG.
            Other optimizers need learning_rate, or base_learning_rate. Not with learning_rate.
        eta: η of Eq. 3 and 5; None is the paper's, 1e-2 for CLARS and 1e-3 for LARS.
        momentum: β of Eq. 4; None is 0.9.
        mode: how CLARS measures norms, see `PerSampleNorms`; or `"authors"`, the method of the code that the paper's
            authors released, see `AuthorsCLARS`. None is `"per_sample"`.
        norm_samples: how many samples `mode="subset"` measures per step; None is 512.
        untracked: what a parameter whose norms cannot be measured means for CLARS, see `PerSampleNorms`: `"stand_in"`
            (None) gives it a denominator of the same units, `"error"` ends the training.
        bias_and_norm: learning rate of biases and norm weights, see `CLARS`; None is `"authors"` with that mode, and
            `"eta"` otherwise.
        decay_in_denominator: add `λ‖w‖` to the denominator, see `LARS`; None is True for LARS, and False for CLARS.
        layer_statistics_steps: every how many optimizer steps the layers' norms, γ_k and M_k are logged; 0 for never.
        last_batch: what becomes of the examples that are left when a pass has no whole batch of B any more: `"drop"`
            leaves them out, others in every epoch; `"carry"` (a `TrainStream` alone) begins the next epoch with them.
        max_skipped_share: share of an epoch's examples that may be skipped because they cannot be used; more end the
            training.
        warmup_epochs: as `warmup_steps`, in epochs.
        warmup_start: what the warmup of `warmup_epochs` begins with, as a share of γ_scale: 0 as in transformers;
            `base_batch_size / B` is gradual warmup (Goyal et al. 2017).
        lr_milestones: epochs at which the learning rate is multiplied by `lr_decay`, on top of the schedule.
        layerwise_epochs: CLARS or LARS only for the first so many epochs, then plain mNAG (Eq. 2), as in Fig. 3; None
            for all of them. See `LayerwiseWarmup`.
        freeze_fc_epochs: leave fully-connected layers (`nn.Linear`) as they are in the first so many epochs.
        max_nonfinite_steps: so many optimizer steps in a row whose gradient has NaN or infinite values end the
            training; fewer are skipped. 0 to look at no gradient.

    Raises:
        UserError: values out of range, batch sizes that do not divide, or DeepSpeed.
    """

    learning_rate: NotNegative | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "γ_scale; by default base_learning_rate × total batch size / base_batch_size."}
    )
    optim: OptimizerNames | str = field(
        default="clars", metadata={"help": "The optimizer; clars, lars, mnag, lamb, or any other."}
    )
    lr_scheduler_type: SchedulerType | str = field(
        default="polynomial", metadata={"help": "The learning rate schedule."}
    )
    lr_scheduler_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of the schedule as JSON; a polynomial has power 2 by default."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0 for no clipping."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and infinite losses from the log."})

    total_batch_size: Count | None = field(
        default=None, metadata={"help": "Samples of one optimizer step over all processes and micro-batches."}
    )
    base_learning_rate: Positive | None = field(default=None, metadata={"help": "γ_base of linear scaling; 0.1."})
    base_batch_size: Count | None = field(default=None, metadata={"help": "B_base of linear scaling; 128."})
    eta: Positive | None = field(default=None, metadata={"help": "η; by default 0.01 for clars, 0.001 for lars."})
    momentum: PartOfOne | None = field(default=None, metadata={"help": "β of the Nesterov momentum; 0.9."})
    mode: str | None = field(default=None, metadata={"help": "per_sample (default), subset, micro_batch or authors."})
    norm_samples: Count | None = field(
        default=None, metadata={"help": "Samples measured per step with mode subset; 512."}
    )
    untracked: str | None = field(
        default=None, metadata={"help": "Parameters that cannot be measured: stand_in (default) or error."}
    )
    bias_and_norm: str | None = field(
        default=None, metadata={"help": "Learning rate of biases and norm weights: eta, mlperf, authors or paper."}
    )
    decay_in_denominator: bool | None = field(
        default=None, metadata={"help": "Add weight_decay × ‖w‖ to the denominator; by default for lars alone."}
    )
    layer_statistics_steps: Whole = field(default=50, metadata={"help": "Log layer statistics every so many steps."})
    last_batch: Annotated[str, one_of(LAST_BATCH)] = field(
        default="drop", metadata={"help": "Examples that fill no batch at the end of a pass: drop, or carry over."}
    )
    warmup_epochs: Epochs | None = field(default=None, metadata={"help": "Linear warmup, in epochs."})
    warmup_start: Share = field(
        default=0.0, metadata={"help": "Share of γ_scale that warmup_epochs begins with; base_batch_size / B as Goyal."}
    )
    lr_milestones: list[Positive] | None = field(
        default=None, metadata={"help": "Epochs at which the learning rate is multiplied by lr_decay."}
    )
    lr_decay: Annotated[float, Field(gt=0, le=1)] = field(default=0.1, metadata={"help": "Factor of lr_milestones."})
    layerwise_epochs: Epochs | None = field(
        default=None, metadata={"help": "Epochs of CLARS or LARS, after which it is plain mNAG; all by default."}
    )
    freeze_fc_epochs: Epochs | None = field(
        default=None, metadata={"help": "Epochs in which fully-connected layers are not updated."}
    )
    max_skipped_share: Share = field(
        default=0.01, metadata={"help": "End if more than this share of an epoch's examples cannot be used."}
    )
    max_nonfinite_steps: Whole = field(
        default=20, metadata={"help": "End after so many steps in a row without a finite gradient; 0 for no check."}
    )

    def __post_init__(self) -> None:
        names = [member.value for member in OptimizerNames]
        if self.optim_name not in names:
            near = difflib.get_close_matches(str(self.optim), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": choose one of {OURS}, or of transformers' own"
            raise UserError(f"optim={self.optim!r} is unknown{hint}")
        evaluates_every = self.eval_steps = given(self.eval_steps)
        check(self, RANGES)
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
        self._accumulate()
        scaled = self.base_learning_rate is not None or self.base_batch_size is not None
        if rate is not None and scaled and rate != self._scaled_learning_rate():
            raise UserError(
                f"learning_rate={rate!r} is γ_scale itself: leave it out, or base_learning_rate and base_batch_size"
            )
        if rate is None or scaled:
            self.learning_rate = derived(self._scaled_learning_rate())
        check_schedule(self)
        if self.mixed_precision == "fp16" and self.device.type == "cpu":
            raise UserError("fp16=True needs a GPU, and this training is on the CPU: use bf16=True, or leave it out")
        self._is_complete = True

    @property
    def optim_name(self) -> str:
        """`optim` as plain text, before and after transformers made an enum member of it."""
        return str(getattr(self.optim, "value", self.optim))

    def optimizer_options(self) -> OptimizerOptions:
        """The fields that concern the optimizer."""
        name = self.optim_name
        return OptimizerOptions(
            eta=OPTIMIZERS[name] if self.eta is None else self.eta,
            momentum=0.9 if self.momentum is None else self.momentum,
            weight_decay=self.weight_decay,
            bias_and_norm=self.bias_and_norm,
            decay_in_denominator=self.decay_in_denominator,
            mode=self.mode or "per_sample",
            norm_samples=self.norm_samples,
            untracked=self.untracked,
        )

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
                raise UserError(f"{option}={value!r} is nothing that optim={name!r} takes: leave it out{hint}")
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
        options = self.optimizer_options().override(self.optim_name, parse_optim_args(self.optim_args))
        self.weight_decay = options.weight_decay  # Trainer makes groups of it
        if self.optim_name == "clars" and options.mode == AUTHORS and self.mixed_precision == "fp16":
            raise UserError(
                "mode='authors' with fp16=True: gradients of its extra passes would underflow without a loss "
                "scale, and have none. Use bf16=True, or another mode"
            )

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
