"""Progress in optimizer steps, with images per second and the time that is left."""

from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback


class StepProgressCallback(ProgressCallback):
    """transformers' progress bar, counting optimizer steps and showing images/s; one short line per log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", desc="training", dynamic_ncols=True
            )
        self.current_step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            rate = self.training_bar.format_dict["rate"]
            if rate:
                self.training_bar.set_postfix_str(f"{rate * args.total_batch_size:,.0f} images/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        shown = {
            k: v
            for k, v in logs.items()
            if k in _SHOWN or k.startswith("skipped_") or (k.startswith("eval_") and not k.endswith(_NOISE))
        }
        if shown:
            values = "  ".join(f"{k} {v:.4g}" for k, v in shown.items() if isinstance(v, (int, float)))
            self.training_bar.write(f"step {state.global_step:>6}  epoch {state.epoch or 0:.2f}  {values}")


_SHOWN = ("loss", "grad_norm", "learning_rate", "images_per_second")
_NOISE = ("_runtime", "_per_second")
