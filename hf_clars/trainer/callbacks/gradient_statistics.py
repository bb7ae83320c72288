"""How noisy the gradient is: gradient noise scale and M_k, for every Trainer and every optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from accelerate.utils import is_compiled_module
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from ...errors import UserError
from ...norms import PerSampleNorms
from ...optimizers import sharded
from ...optimizers.loss_scale import loss_scale
from ...statistics.noise_scale import Averages, noise_statistics
from ...validation import checks
from ..arguments.options import refuse_data_parallel, refuse_deepspeed
from ..measuring import OwnNorms, norms_of
from ..seams import at_end_of_training, calling_trainer
from .measured_steps import MeasuredSteps

FILE_NAME = "gradient_statistics.jsonl"
DRAWN = {"gradient_noise_scale": "noise scale", "gradient_variance_factor": "M_k"}
LOGGED = ("gradient_noise_scale", "gradient_noise_scale_raw", "gradient_variance_factor")


class GradientStatisticsCallback(MeasuredSteps, ExportableState):
    """Measures the gradient noise scale and M_k in a `transformers.Trainer`, whatever its optimizer.

    `Trainer(..., callbacks=[GradientStatisticsCallback(every=10)])`. In every tenth optimizer step the norms of all
    samples' gradients are measured in the step's own backward passes, over all micro-batches and ranks. From them and
    from the gradient before clipping, without the loss scale, follow for each layer (weight of two or more dimensions)
    and for the model (all measured parameters: sums of numerators and denominators, not means of ratios):

    - `gradient_square`: `|G|²`, squared norm of the true gradient, estimated without bias; average
    - `noise_trace`: `tr Σ`, variance of one sample's gradient, estimated without bias; average
    - `gradient_noise_scale`: `tr Σ / |G|²` of the two averages, in samples: about the critical batch size
    - `gradient_noise_scale_raw`: the same of this step alone
    - `gradient_variance_factor`: `M_k = ((1/n) Σ_i ‖∇f_i‖²) / ‖g‖²` of this step and its n samples, at least 1

    `|G|²` and `tr Σ` are those of McCandlish et al. 2018, appendix A.1, with batch sizes 1 and n, see
    `formulas.gradient_and_noise`. Where the estimate of `|G|²` is not positive, there is no noise scale to tell (the
    batch is far too small for one) and the value is left out.

    The three last ones, of the model, go through `Trainer.log` to every reporter and to `log_history`. Everything goes
    to `output_dir/gradient_statistics.jsonl`: `{"step", "epoch", "samples", "model": {…}, "layers": {name: {…}}}`; to
    W&B the layers go as `LayerRecords` says. A step whose gradient overflowed leaves no record.

    `PerSampleNorms` is attached for the measured steps alone, so that the others cost nothing. A compiled model would
    be compiled anew at each change and stays attached throughout the training. CLARS has one already, which is used
    instead (unless `bias_and_norm="paper"` it measures no biases and norm weights; they are then not in the model's
    sums).
    Several of these callbacks in one Trainer share theirs; each has averages of its own, and says in its records which
    `every` and `smoothing` they are of.

    A sample's gradient is `n c_i`, with `c_i` its contribution to `weight.grad`. In a model whose train-mode BatchNorm
    mixes samples, `c_i` contains what sample i does to the others through the statistics: the values then describe the
    noise of this batch as it was normalised, not of independent samples. All samples should weigh alike: an incomplete
    last micro-batch, or sequences of unequal length in a loss that is a mean over tokens, add a little bias.

    Args:
        every: optimizer steps from one measured step to the next; the first is step number `every`.
        smoothing: share in [0, 1) that the old value keeps in the exponential moving averages of `|G|²` and `tr Σ`
            from one measured step to the next; 0 for no averaging. They survive a resumed training.

    Raises:
        UserError: arguments out of range; at the begin of training, a batch of one sample, CLARS with
            `mode="micro_batch"`, another PerSampleNorms attached to the model, DeepSpeed, or several devices in one
            process.
    """

    def __init__(self, every: int = 10, smoothing: float = 0.9) -> None:
        super().__init__(FILE_NAME, DRAWN, "gradient")
        self.every = int(checks.count("every", every))
        self.smoothing = checks.number("smoothing", smoothing, "in [0, 1)", lambda x: 0 <= x < 1)
        self.averages: Averages = {}
        self._of_several: dict[str, Any] = {}  # in each record: whose it is, where others write theirs
        self._norms: PerSampleNorms | None = None
        self._stays_attached = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": self._arguments, "attributes": {"averages": self.averages}}

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"every": self.every, "smoothing": self.smoothing}

    # --- a training ----------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        refuse_deepspeed(args.deepspeed, "GradientStatisticsCallback")
        refuse_data_parallel(args)
        if args.train_batch_size * args.gradient_accumulation_steps * args.world_size < 2:
            raise UserError("GradientStatisticsCallback needs at least 2 samples per optimizer step, and there is 1")
        self._restore(state)
        self._find_norms(calling_trainer(), kwargs.get("optimizer"))
        super().on_train_begin(args, state, control, **kwargs)
        callbacks = [c for c in self.trainer.callback_handler.callbacks if isinstance(c, GradientStatisticsCallback)]
        self._of_several = self._arguments if len(callbacks) > 1 else {}
        at_end_of_training(self.trainer, self._end)

    def is_due(self, args: Any, state: Any, optimizer: Any) -> bool:
        norms = self._norms
        is_due = (
            norms is not None
            and (state.global_step + 1) % self.every == 0
            # What is left over from a step cut short is part of this gradient, and was not measured.
            and all(p.grad is None for p in norms.model.parameters())
        )
        if isinstance(norms, OwnNorms):
            if is_due or self._stays_attached:
                norms.hold(self)
            else:
                norms.release(self)
            if is_due:
                norms.reset()
        return is_due

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self._norms, OwnNorms) and not self._stays_attached:
            self._norms.release(self)

    def record(self, pending: MeasuredGradient, args: Any, state: Any, control: Any) -> None:
        squares = pending.squares.to("cpu", torch.float64)  # the only wait for the device
        # Another process may not have been able to measure a parameter, which the device alone knew.
        kept = ~squares[0].isnan() | squares[1].isnan()
        is_layer = {name: is_one for (name, is_one), keep in zip(pending.is_layer.items(), kept, strict=True) if keep}
        samples = int(pending.samples)
        if samples < 2 or not is_layer:  # the last batch of an epoch may have one
            return
        whole, layers = noise_statistics(squares[:, kept], samples, is_layer, self.averages, self.smoothing)
        if not whole:
            return
        self.add(args, state, layers, samples=samples, model=whole, **self._of_several)
        should_log = control.should_log  # of the Trainer's own values, later in this step; logging clears it
        self.trainer.log({key: whole[key] for key in LOGGED if key in whole})
        control.should_log = should_log

    def _end(self) -> None:
        """The training is over, or an error ended it."""
        if isinstance(self._norms, OwnNorms):
            self._norms.release(self)
        self._norms = self.trainer = self.pending = None

    def _restore(self, state: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, list):  # of several such callbacks; Trainer adds to the list with each checkpoint
            saved = next((each for each in reversed(saved) if each["args"] == self._arguments), None)
        if not state.global_step:
            self.averages = {}
        elif isinstance(saved, dict):  # whatever args.restore_callback_states_from_checkpoint says
            self.averages = saved["attributes"]["averages"]
        # Trainer fails at its next checkpoint when the one it resumed from knows no such callback.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def _find_norms(self, trainer: Trainer, optimizer: Any) -> None:
        self._norms = norms_of(optimizer)
        if self._norms is None:
            self._norms = OwnNorms.of(trainer)
            self._stays_attached = _is_compiled(trainer.model_wrapped)
        elif self._norms.mode == "micro_batch":
            raise UserError(
                "GradientStatisticsCallback needs norms of samples, and mode='micro_batch' has none: "
                "choose 'per_sample' or 'subset'"
            )

    def measure(self) -> MeasuredGradient | None:
        assert self._norms is not None
        return MeasuredGradient.of(self._norms, self.trainer.accelerator.scaler)


class MeasuredGradient(NamedTuple):
    """Which of K parameters are layers, the number of samples, and `Σ_i ‖c_i‖²` and `‖g‖²`, shape `[2, K]`."""

    is_layer: dict[str, bool]
    samples: int | Tensor
    squares: Tensor

    @classmethod
    def of(cls, norms: PerSampleNorms, scaler: Any) -> MeasuredGradient | None:
        """That of the gradient at hand, without a `GradScaler`'s scale. Collective, and waits for nothing."""
        measured = norms.gradient_statistics()
        parameters = dict(norms.model.named_parameters(remove_duplicate=False))
        gradients = {name: g for name in measured if (g := parameters[name].grad) is not None}
        if not gradients:
            return None
        squares = torch.stack([measured[name][1] for name in gradients])
        counts: list[Any] = [measured[name][2] for name in gradients]  # all on the host, or all on the device
        scale = loss_scale(scaler, squares.device)
        gradient_norms = sharded.norms_of_any(list(gradients.values())).to(squares)
        return cls(
            {name: parameters[name].ndim >= 2 for name in gradients},
            torch.stack(counts).amax() if isinstance(counts[0], Tensor) else max(counts),
            torch.stack((squares / scale**2, (gradient_norms / scale).square())),
        )


def _is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` was given the model or a part of it."""
    return any(is_compiled_module(m) or m._compiled_call_impl is not None for m in model.modules())
