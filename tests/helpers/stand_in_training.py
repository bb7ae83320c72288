"""Stands in for `accelerate launch --module hf_clars train …`: leaves what a run leaves, without training.

`--run_name` says how it ends. The accuracy is a tenth of the learning rate.
"""

import itertools
import json
import shutil
import signal
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    flags = {word: value for word, value in itertools.pairwise(words) if word.startswith("--")}
    folder, how = Path(flags["--output_dir"]), flags.get("--run_name", "")
    rate = float(flags.get("--learning_rate", 1))
    curve = [{"step": e, "epoch": float(e), "loss": 2.0 / e, "eval_accuracy": e * rate / 20} for e in (1, 2)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": curve}))
    print("training")
    if how == "fails":
        print("error: it broke")
        return 3
    if how == "diverges":
        print("error: the training has diverged at step 2")
        return 1
    if how == "waits":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # as launchers do
        (folder / "checkpoint-1").mkdir()
        signal.pause()
    if how.startswith("copies"):
        _, source, target = how.split()
        shutil.copy(source, target)
    layers = {f"timm_model.{name}.weight": {"gamma": 0.1 * rate, "variance_factor": 2.0} for name in "ab"}
    lines = [json.dumps({"step": e, "epoch": float(e), "layers": layers}) for e in (1, 2)]
    (folder / "layer_statistics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "all_results.json").write_text(json.dumps({"eval_accuracy": rate / 10, "train_loss": 1.0}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
