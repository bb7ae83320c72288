"""`PerSampleNorms`: every sample's gradient norm in every layer, measured during the ordinary backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..runtime import users_line
from .accumulator import COUNT, EXCLUDED, NORMS, SQUARES
from .agreement import is_distributed
from .arguments import check_arguments
from .backward_passes import backward_pass
from .inputs import Inputs
from .measurement import Measurement
from .recorder import Recorder
from .untracked import Untracked, listed
from .watch import Watch, watches_of


class PerSampleNorms:
    """Measures `‖c_i‖` of every sample in every layer while gradients are computed.

    `c_i` is the derivative of the loss that `backward()` was called on with respect to sample i's own copy of the
    weight. So `Σ_i c_i = weight.grad`, with train-mode BatchNorm included, and `c_i = ∇f_i / B` where samples do not
    mix. A sample is one index of the first dimension (`batch_dim`) of the first tensor argument of an outermost call.
    Where samples stand in other tensors is known from the functions that made them, see `sample_axis/`; after a
    function of which it is not, parameters are named. One backward pass is one batch: a parameter that is used
    several times in it has the norm of its summed contribution.

    Measuring begins with construction and ends with `detach()` or the end of a `with` block.

    Args:
        model: any module. Its `forward` methods are replaced, per instance, until `detach()`.
        mode: `"per_sample"` measures every sample, exactly. `"subset"` measures about `norm_samples` of each batch of
            `total_batch_size`. It measures several samples, or all, of one pass in some, and that pass stands for the
            others after it, which run almost as if nothing were attached. The first pass of each gradient is measured,
            and so is the next one after sums were read. In compiled models each pass is measured, of at least one
            sample. Counts are of all samples. Of a parameter that only every so many passes use, in step with the
            measured ones, the estimate is off. `"micro_batch"` takes the norm of each backward pass's whole gradient
            instead: free, but between `1/√b` and 1 times the truth for b samples, so the learning rates of Eq. 5 come
            out up to √b too large.
        norm_samples: `|J_t|` of `"subset"`, over all ranks; the paper uses 512. They come from at least eight passes
            of a step, if it has as many.
        total_batch_size: B of an optimizer step over all micro-batches and ranks, for `"subset"`; None stands for
            the batch of one backward pass, and each pass is measured.
        bias_and_norm: also measure biases and norm weights.
        untracked: what happens when a parameter cannot be measured. `"stand_in"`: it is warned about once, and CLARS
            gives it a denominator by the median of the measured layers, see there. `"error"`: the first parameter of
            two or more dimensions ends the training, on all ranks in the same step; this waits for the device.
        batch_size: the number of samples of a forward pass, where its arguments leave a doubt; see above.
        batch_dim: the dimension of each argument in which samples stand: the first, if not said otherwise. Say so where
            the first argument is a list of tensors that each hold all samples.

    Attributes:
        untracked: parameter name → why it cannot be measured, for trainable parameters that are to be (with
            `bias_and_norm` those of one dimension, too). Forward passes, gradients that came past them and other ranks
            fill it in.

    With several processes all of them decide together what is measured, in the all-reduce of the sums: a parameter that
    one cannot measure is measured on none. One that some did not use is measured by the others.

    A gradient lives until `close_gradient()`, until it is None, or until it is zero when the next backward pass comes,
    if it was zeroed in place since the last one (through `.data` that cannot be noticed).

    Raises:
        UserError: unknown mode or `untracked`, sizes below 1, a negative `batch_dim`, lazy parameters, or no module.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: str = "per_sample",
        norm_samples: int = 512,
        *,
        total_batch_size: int | None = None,
        bias_and_norm: bool = True,
        untracked: str = "stand_in",
        batch_size: int | None = None,
        batch_dim: int | None = None,
    ) -> None:
        check_arguments(model, mode, batch_dim, norm_samples, total_batch_size=total_batch_size, batch_size=batch_size)
        self._measurement = Measurement(mode, norm_samples, total_batch_size, Untracked(untracked, self.warn_of))
        inputs = Inputs(batch_dim, batch_size, self._measurement.bearers)
        self.watch = Watch(model, self._measurement, inputs, bias_and_norm)
        self.attach()

    @property
    def model(self) -> nn.Module:
        return self.watch.model

    @property
    def mode(self) -> str:
        return self._measurement.mode

    @property
    def norm_samples(self) -> int:
        return self._measurement.norm_samples

    @property
    def total_batch_size(self) -> int | None:
        return self._measurement.total_batch_size

    @property
    def bias_and_norm(self) -> bool:
        return self.watch.bias_and_norm

    @property
    def on_untracked(self) -> str:
        return self._measurement.untracked.action

    @property
    def _recorder(self) -> Recorder:
        return self._measurement.recorder

    # --- attaching ---------------------------------------------------------------------------------------------

    def attach(self) -> PerSampleNorms:
        """Begin to measure; nothing happens if it already does. Returns itself."""
        self.watch.attach()
        return self

    def resume(self) -> PerSampleNorms:
        """After `detach()`: measure again and go on with what was measured before. Returns itself."""
        self.watch.resume()
        return self

    def detach(self) -> None:
        """Stop measuring and leave the model as it was found. What was measured stays readable."""
        self.watch.detach()

    @staticmethod
    def detach_all(model: nn.Module) -> None:
        """Detach whichever `PerSampleNorms` is attached to the model or to part of it."""
        for watch in watches_of(model):
            watch.detach()

    def __enter__(self) -> PerSampleNorms:
        return self.attach()

    def __exit__(self, *exception: Any) -> None:
        self.detach()

    # --- what was measured -------------------------------------------------------------------------------------

    def sums(self) -> dict[str, Tensor]:
        """Parameter name → `Σ_i ‖c_i‖` (0-dim) of everything since `reset()`, on this rank."""
        self._learn()
        return self._recorder.totals(NORMS)

    def square_sums(self) -> dict[str, Tensor]:
        """Parameter name → `Σ_i ‖c_i‖²` (0-dim) of everything since `reset()`, on this rank."""
        self._learn()
        return self._recorder.totals(SQUARES)

    def per_sample(self) -> dict[str, Tensor]:
        """Parameter name → `‖c_i‖` of the last backward pass, shape `[batch]` (of the measured ones in a subset)."""
        self._learn()
        return self._recorder.last()

    def reset(self) -> None:
        """Forget everything measured."""
        self._recorder.reset()

    def denominators(self, parameters: Iterable[Tensor] | None = None) -> dict[Tensor, Tensor]:
        """Parameter → `Σ_i ‖c_i‖` (0-dim) of the gradient it now holds, averaged over ranks as the gradient is.

        A parameter that is not measured is absent, on all ranks alike. Where several processes decide that on devices
        (`settled` is False), it may be there instead, with NaN, because the host does not wait to know.

        All ranks must call it, as they all must step.

        Args:
            parameters: of the optimizer that asks; None for the model's. Those of them that joined the model after it
                was attached, or are outside of it, are named.

        Raises:
            UserError: with `untracked="error"`, a parameter of two or more dimensions cannot be measured.
        """
        self.watch.settle_check()
        values, present = self._recorder.of_gradient()
        self._notice_unmeasured(self.model.parameters() if parameters is None else parameters)
        return {tracked.parameter: values[NORMS, tracked.index] for tracked in present}

    def gradient_statistics(self) -> dict[str, tuple[Tensor, Tensor, int | Tensor]]:
        """Name → (`Σ‖c_i‖`, `Σ‖c_i‖²`, samples n) of the gradient at hand, over all ranks; a collective call.

        n counts the samples of those passes that used the parameter. It is a 0-dim tensor where the device alone knows
        it. What is not measured is absent, or NaN, as in `denominators()`.
        """
        self.watch.settle_check()
        values, present = self._recorder.of_gradient()
        lives = self._recorder.lives
        samples: Sequence[int | Tensor]
        if values.device.type == "cpu":
            counts = values[COUNT].tolist()
            samples = [int(counts[tracked.index]) for tracked in present]
        elif values.shape[0] == EXCLUDED and not any(lives[t.index].zeroed for t in present):  # of one process
            samples = [lives[tracked.index].samples for tracked in present]
        else:
            samples = [values[COUNT, tracked.index] for tracked in present]
        return {
            t.name: (values[NORMS, t.index], values[SQUARES, t.index], n) for t, n in zip(present, samples, strict=True)
        }

    @property
    def untracked(self) -> dict[str, str]:
        """Parameter name → why it cannot be measured. Waits for the device."""
        self._learn()
        return self._measurement.untracked.reasons

    @property
    def expensive(self) -> dict[str, str]:
        """Parameter name → why measuring it takes a multiple of its plain gradient. Forward passes fill it in."""
        return dict(self._measurement.expensive)

    @property
    def watched(self) -> bool:
        """Whether it is attached and has seen a forward pass."""
        return self.watch.attached and self._recorder.watched

    @property
    def settled(self) -> bool:
        """Whether the host knows what `denominators()` has measured; if not, NaN stands for what is not measured."""
        return self._recorder.settled

    def why_nothing(self, parameters: Iterable[Tensor]) -> str | None:
        """Why nothing was measured of these parameters' gradients, and what to do; None where that is no mistake."""
        return self.watch.why_nothing(parameters)

    def close_gradient(self, parameters: Iterable[Tensor] | None = None) -> None:
        """The gradient was used or cleared; what is measured from now on belongs to the next.

        Args:
            parameters: whose gradient; None for all.
        """
        self._recorder.end_gradients(parameters)

    def gradient_is_complete(self, parameters: Iterable[Tensor]) -> None:
        """Say that these parameters hold all of their gradient, though the backward pass may still go on to others.

        An optimizer that steps in a `register_post_accumulate_grad_hook` needs it, for parameters that are used several
        times: else their norms are known at the end of the pass. Outside of a backward pass nothing happens.
        """
        if backward_pass() != -1:
            self._recorder.is_whole(parameters)

    def compare_gradient(self, parameters: Iterable[Tensor], scale: Tensor | None = None) -> None:
        """Warn, once, if these parameters' gradients were changed since the backward pass, as clipping does.

        Looked at are the first 8 gradients and every 512th; changes by less than 1 % and gradients that were set to
        zero are left alone. With several processes only clipping by the norm is noticed. Waits for nothing: of
        gradients on a device the next call warns.

        Args:
            scale: which the loss was multiplied with, and the gradients were divided by since.
        """
        self._recorder.writes.look(self._recorder.tracked(parameters), scale)

    def _notice_unmeasured(self, parameters: Iterable[Tensor]) -> None:
        """Name what has a gradient and no record, once it is known, and those of the parameters that nobody watches."""
        untracked = self._measurement.untracked
        if self.watched:
            # Those of the model are looked through once: in each step that would take as long as a small step does.
            looked_through, self.watch.looked_through = self.watch.looked_through, True
            for each in (parameters,) if looked_through else (parameters, self.model.parameters()):
                for reason, named in self.watch.strangers(each).items():
                    untracked.name(named, reason)
            if not is_distributed():
                self._recorder.look_for_unwatched()
        self._learn(wait=untracked.action == "error")
        untracked.refuse()

    def warn_of(self, reasons: Mapping[str, str]) -> None:
        """Warn of parameters that are found not to be measurable, each of them once."""
        users_line.warn(
            f"PerSampleNorms cannot measure {len(reasons)} parameter(s), and CLARS takes stand-ins for what it "
            f"adapts of them: {listed(reasons)}. hf_clars.verify_norms(model, batch, loss_fn) checks the others on a "
            "batch of yours"
        )

    def _learn(self, wait: bool = True) -> None:
        """Name what the device found to be unmeasured, here or by another process, and what nobody was told of yet."""
        self.watch.settle_check()
        self._recorder.learn(wait)
        self._measurement.untracked.warn_of_new()
