"""W&B without a login, TensorBoard, and what is logged: real runs written and read back."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from hf_clars import ClarsTrainer, ClarsTrainingArguments
from hf_clars.training.tracking import wandb_line
from tests.models import Classifier, dataset

args = ClarsTrainingArguments(
    output_dir="run", report_to=sys.argv[1:], total_batch_size=32, num_train_epochs=2, logging_steps=1, use_cpu=True,
    layer_statistics_steps=1, save_strategy="no", disable_tqdm=True, learning_rate=2.0, run_name="offline test",
)
ClarsTrainer(Classifier(), args, train_dataset=dataset(64)).train()
print("LINE", wandb_line())
"""


def run(folder: Path, *report_to: str) -> str:
    root = Path(__file__).resolve().parents[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"PYTHONPATH": str(root), "HOME": str(folder), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *report_to], cwd=folder, env=environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_wandb_without_a_login_is_an_offline_run_with_everything_in_it(tmp_path):
    printed = run(tmp_path, "wandb")
    (line,) = [line for line in printed.splitlines() if line.startswith("LINE")]
    assert "W&B run (offline): wandb/offline-run-" in line
    assert "`wandb sync`" in line
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    records = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(file)],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    records = [json.loads(record) for record in records]
    keys = {k for r in records if r["type"] == "history" for k in _flat(r["history"])}
    for statistic in ("weight_norm", "gradient_norm", "denominator", "gamma", "variance_factor"):
        assert f"layers/{statistic}/head.weight" in keys, sorted(keys)
    assert {"train/loss", "train/learning_rate", "train/images_per_second"} <= keys
    assert len({k.partition("_table")[0] for k in keys if k.startswith("layer panels/")}) == 5


def _flat(history: dict) -> set[str]:
    """Keys of a history record, however the tool nests them."""
    items = history.get("item", {})
    nested = set(items) if isinstance(items, dict) else {item["key"] for item in items}
    return set(history) | nested


def test_tensorboard(tmp_path):
    run(tmp_path, "tensorboard")
    assert list(tmp_path.rglob("events.out.tfevents.*"))
