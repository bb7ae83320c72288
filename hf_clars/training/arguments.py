"""`ClarsTrainingArguments`: TrainingArguments whose defaults suit large batches, and fields of its own."""

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from ..data.order import TAILS
from ..errors import UserError
from .derived import FollowingNumbers, derived, given
from .options import AUTHORS, OPTIMIZERS, OURS, OptimizerOptions, check_lamb, parse_optim_args, refuse_deepspeed


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
        base_learning_rate, base_batch_size: linear scaling, see above; 0.1 and 128 by default. Not with learning_rate.
        eta: η of Eq. 3 and 5; None is the paper's, 1e-2 for CLARS and 1e-3 for LARS.
        momentum: β of Eq. 4.
        norm_mode: how CLARS measures, see `PerSampleNorms`; or `"authors"`, the method of the code that the paper's
            authors released, see `AuthorsCLARS`.
        norm_samples: how many samples `norm_mode="subset"` measures per step.
        untracked: what a parameter whose norms cannot be measured means for CLARS, see `PerSampleNorms`: `"stand_in"`
            gives it a denominator of the same units, `"error"` ends the training.
        vectors: learning rate of biases and norm weights, see `CLARS`; None is `"authors"` with that norm_mode, and
            `"eta"` otherwise.
        decay_in_denominator: add `λ‖w‖` to the denominator, see `LARS`; None is True for LARS, and False for CLARS.
        layer_statistics_steps: every how many optimizer steps the layers' norms, γ_k and M_k are logged; 0 for never.
        tail: what becomes of the examples that are left when a pass has no whole batch of B any more: `"drop"` leaves
            them out, others in every epoch; `"carry"` (a `TrainStream` alone) begins the next epoch with them.
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

    learning_rate: float | None = field(  # type: ignore[assignment]
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

    total_batch_size: int | None = field(
        default=None, metadata={"help": "Samples of one optimizer step over all processes and micro-batches."}
    )
    base_learning_rate: float | None = field(default=None, metadata={"help": "γ_base of linear scaling; 0.1."})
    base_batch_size: int | None = field(default=None, metadata={"help": "B_base of linear scaling; 128."})
    eta: float | None = field(default=None, metadata={"help": "η; by default 0.01 for clars, 0.001 for lars."})
    momentum: float = field(default=0.9, metadata={"help": "β of the Nesterov momentum."})
    norm_mode: str = field(default="per_sample", metadata={"help": "per_sample, subset, micro_batch or authors."})
    norm_samples: int = field(default=512, metadata={"help": "Samples measured per step with norm_mode subset."})
    untracked: str = field(
        default="stand_in",
        metadata={"help": "What is done with parameters that cannot be measured: stand_in or error."},
    )
    vectors: str | None = field(
        default=None, metadata={"help": "Learning rate of biases and norm weights: eta, mlperf, authors or paper."}
    )
    decay_in_denominator: bool | None = field(
        default=None, metadata={"help": "Add weight_decay × ‖w‖ to the denominator; by default for lars alone."}
    )
    layer_statistics_steps: int = field(default=50, metadata={"help": "Log layer statistics every so many steps."})
    tail: str = field(
        default="drop", metadata={"help": "Examples that fill no batch at the end of a pass: drop, or carry over."}
    )
    warmup_epochs: float | None = field(default=None, metadata={"help": "Linear warmup, in epochs."})
    warmup_start: float = field(
        default=0.0, metadata={"help": "Share of γ_scale that warmup_epochs begins with; base_batch_size / B as Goyal."}
    )
    lr_milestones: list[float] | None = field(
        default=None, metadata={"help": "Epochs at which the learning rate is multiplied by lr_decay."}
    )
    lr_decay: float = field(default=0.1, metadata={"help": "Factor of lr_milestones."})
    layerwise_epochs: float | None = field(
        default=None, metadata={"help": "Epochs of CLARS or LARS, after which it is plain mNAG; all by default."}
    )
    freeze_fc_epochs: float | None = field(
        default=None, metadata={"help": "Epochs in which fully-connected layers are not updated."}
    )
    max_skipped_share: float = field(
        default=0.01, metadata={"help": "End if more than this share of an epoch's examples cannot be used."}
    )
    max_nonfinite_steps: int = field(
        default=20, metadata={"help": "End after so many steps in a row without a finite gradient; 0 for no check."}
    )

    def __post_init__(self) -> None:
        names = [member.value for member in OptimizerNames]
        if self.optim_name not in names:
            near = difflib.get_close_matches(str(self.optim), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": choose one of {OURS}, or of transformers' own"
            raise UserError(f"optim={self.optim!r} is unknown{hint}")
        if self._is_layerwise():
            refuse_deepspeed(self.deepspeed)
        rate = given(self.learning_rate)
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise UserError(f"learning_rate={rate!r} must be a finite number ≥ 0")
        if self.tail not in TAILS:
            raise UserError(f"tail={self.tail!r} is unknown: choose {' or '.join(TAILS)}")
        if not 0 <= self.max_skipped_share <= 1:
            raise UserError(f"max_skipped_share={self.max_skipped_share!r} must lie in [0, 1]")
        if self.max_nonfinite_steps < 0:
            raise UserError(f"max_nonfinite_steps={self.max_nonfinite_steps!r} must be at least 0")
        self._check_epochs()
        self._keep_batches_local()
        self.lr_scheduler_kwargs = given(self.lr_scheduler_kwargs)  # without those of another schedule
        if self.lr_scheduler_type == "polynomial" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = derived({"power": 2.0})
        self.learning_rate = derived(0.0) if rate is None else rate
        self.total_batch_size = given(self.total_batch_size)
        super().__post_init__()
        self._check_optimizer()
        self._accumulate()
        scaled = self.base_learning_rate is not None or self.base_batch_size is not None
        if rate is not None and scaled and rate != self._scaled_learning_rate():
            raise UserError(
                f"learning_rate={rate!r} is γ_scale itself: leave it out, or base_learning_rate and base_batch_size"
            )
        if rate is None or scaled:
            self.learning_rate = derived(self._scaled_learning_rate())
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
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            vectors=self.vectors,
            decay_in_denominator=self.decay_in_denominator,
            mode=self.norm_mode,
            norm_samples=self.norm_samples,
            untracked=self.untracked,
        )

    def _check_epochs(self) -> None:
        """What is stated in epochs."""
        stated = {name: getattr(self, name) for name in ("warmup_epochs", "layerwise_epochs", "freeze_fc_epochs")}
        for name, epochs in stated.items():
            if epochs is not None and not 0 <= epochs < math.inf:
                raise UserError(f"{name}={epochs!r} must be a finite number of at least 0")
        if self.warmup_epochs is not None and self.warmup_steps:
            raise UserError(f"warmup_epochs={self.warmup_epochs} and warmup_steps={self.warmup_steps}: leave one out")
        if not 0 <= self.warmup_start <= 1:
            raise UserError(f"warmup_start={self.warmup_start!r} must lie in [0, 1]")
        if not 0 < self.lr_decay <= 1:
            raise UserError(f"lr_decay={self.lr_decay!r} must be above 0 and at most 1")
        milestones = self.lr_milestones or []
        if any(not 0 < m < math.inf for m in milestones) or milestones != sorted(milestones):
            raise UserError(f"lr_milestones={milestones} must be epochs above 0, in ascending order")

    def _check_optimizer(self) -> None:
        if self.layerwise_epochs is not None and self.optim_name not in ("clars", "lars"):
            raise UserError(f"layerwise_epochs={self.layerwise_epochs} is for clars and lars, not {self.optim_name}")
        if self.optim_name == "lamb":
            check_lamb(parse_optim_args(self.optim_args))
        if not self._is_layerwise():
            return
        options = self.optimizer_options().override(self.optim_name, parse_optim_args(self.optim_args))
        self.weight_decay = options.weight_decay  # Trainer makes groups of it
        if self.optim_name == "clars" and options.mode == AUTHORS and self.mixed_precision == "fp16":
            raise UserError(
                "norm_mode='authors' with fp16=True: gradients of its extra passes would underflow without a loss "
                "scale, and have none. Use bf16=True, or another norm_mode"
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
