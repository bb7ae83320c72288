"""Fields of `ClarsTrainingArguments` beside those of transformers. No import of torch, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ...starting_rate import BASE_BATCH_SIZE, BASE_LEARNING_RATE, GAMMA_SCALE
from ...validation.schema import Count, Epochs, NotNegative, PartOfOne, Positive, Share, Whole, setting


@dataclass
class ClarsFields:
    """Six of transformers with other defaults, and those of our own."""

    learning_rate: NotNegative | None = setting(
        None, f"γ_scale; by default {GAMMA_SCALE:g} with clars and lars, linear scaling with mnag and adascale."
    )
    optim: str = setting("clars", "The optimizer; clars, lars, mnag, adascale, lamb, or any other.")
    lr_scheduler_type: str = setting("polynomial", "polynomial, linear, cosine, constant, warmup_stable_decay, …")
    lr_scheduler_kwargs: dict[str, Any] | str | None = setting(
        None, "Arguments of the schedule as JSON; a polynomial has power 2 by default."
    )
    max_grad_norm: float = setting(0.0, "Clip gradients to this norm; 0 for no clipping.")
    logging_nan_inf_filter: bool = setting(False, "Hide NaN and infinite losses from the log.")

    total_batch_size: Count | None = setting(
        None, "B, the samples of one optimizer step; gradient_accumulation_steps follows from it."
    )
    base_learning_rate: Positive | None = setting(
        None, f"γ_base of linear scaling, γ_base × B / B_base; {BASE_LEARNING_RATE}. Not with learning_rate."
    )
    base_batch_size: Count | None = setting(
        None, f"B_base of linear scaling; {BASE_BATCH_SIZE}. Not with learning_rate."
    )
    eta: Positive | None = setting(None, "η of Eq. 3 and 5; by default the paper's, 0.01 for clars and 0.001 for lars.")
    momentum: PartOfOne | None = setting(None, "β of Eq. 4; 0.9.")
    mode: str | None = setting(None, "How CLARS measures: per_sample (default), subset, micro_batch or authors.")
    norm_samples: Count | None = setting(None, "Samples measured per step with mode subset; 512.")
    untracked: str | None = setting(
        None, "What cannot be measured: stand_in (default), a denominator like the others; or error."
    )
    bias_and_norm: str | None = setting(
        None, "Rate of biases and norm weights: eta (default), mlperf, authors (of that mode) or paper."
    )
    decay_in_denominator: bool | None = setting(
        None, "Add weight_decay × ‖w‖ to the denominator; by default for lars alone."
    )
    layer_statistics_steps: Whole = setting(
        50, "Log layers' norms, γ_k and M_k every so many optimizer steps; 0 for never."
    )
    last_batch: str = setting("drop", "Examples that fill no batch of B in a pass: drop, or carry to the next.")
    warmup_epochs: Epochs | None = setting(None, "Linear warmup, in epochs.")
    warmup_start: Share = setting(0.0, "Share of γ_scale that warmup begins with; Goyal et al.: base_batch_size / B.")
    decay_epochs: Epochs | None = setting(
        None, "Epochs of the decay at the end, of lr_scheduler_type warmup_stable_decay."
    )
    lr_milestones: list[Positive] | None = setting(
        None, "Epochs at which the learning rate is multiplied by lr_decay, on top of the schedule."
    )
    lr_decay: Annotated[float, Field(gt=0, le=1)] = setting(0.1, "Factor of lr_milestones.")
    layerwise_epochs: Epochs | None = setting(
        None, "Epochs of CLARS or LARS, after which it is plain mNAG (Eq. 2); all by default."
    )
    freeze_fc_epochs: Epochs | None = setting(
        None, "Epochs in which fully-connected layers (nn.Linear) are not updated."
    )
    max_skipped_share: Share = setting(0.01, "End if more than this share of an epoch's examples cannot be used.")
    max_nonfinite_steps: Whole = setting(
        20, "End after so many steps in a row without a finite gradient; 0 for no check."
    )
