"""Every mistake is a line: a fuzz of command lines, YAMLs, sweeps, grids and damaged run folders, without training."""

import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .helpers.scripts import ROOT, run_python, without
from .helpers.settings_fuzz import TINY, Case, cases, flags

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Worker:
    """Command lines in forks of one process, see fuzz_worker.py."""

    def __init__(self, folder: Path) -> None:
        environment = without(HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fuzz_worker"], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, case: Case) -> dict[str, Any]:
        asked = {"argv": case.argv, "environment": case.environment, "seconds": 120}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        outcome: dict[str, Any] = json.loads(self._process.stdout.readline())
        return outcome

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def worker(tmp_path_factory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("here"))
    yield worker
    worker.close()


def complaint(case: Case, outcome: dict[str, Any]) -> str | None:
    """What is wrong with how a case ended; None where nothing is."""
    status, said, reached = outcome["status"], outcome["said"], outcome["reached"]
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if status not in (0, 1, 2, "trains"):
        return f"it ended with {status}"
    if "Traceback" in said:
        return "it has a traceback"
    if len(errors) != (status in (1, 2)):
        return f"it has {len(errors)} lines of errors with status {status}"
    if errors and len(errors[0]) > 1500:
        return f"its error has {len(errors[0])} characters"
    if status == 2 and case.settings and not any(named(key, text, errors[0]) for key, text in case.settings.items()):
        return "its error names no setting"
    if status == "trains" and case.argv[0] == "train":
        known = {**reached["args"], **reached["about"]}
        lost = {key: (text, known.get(key)) for key, text in case.settings.items() if not arrived(key, text, known)}
        if lost:
            return f"these settings did not arrive: {lost}"
    return None


def named(key: str, text: str, error: str) -> bool:
    new = key.replace("gradient_checkpointing", "activation_checkpointing")  # transformers' name for it now
    words = (key, key.replace("_", "-"), new, *(["fp16", "bf16"] if "fp16" in key else []))
    shown = (" ".join(text.split())[:50], repr(text)[1:51].rstrip("'"))
    return any(word in error.lower() for word in words) or (bool(text.strip()) and any(part in error for part in shown))


def arrived(key: str, text: str, known: dict[str, str]) -> bool:
    """Whether a setting that was taken is in force."""
    have = known.get(key)
    if key == "gradient_accumulation_steps" and text == "1":  # transformers' default, which stands for what B needs
        return True
    if key == "dataloader_persistent_workers" and known["dataloader_num_workers"] == "0":  # there is none to persist
        return True
    if key == "dataloader_pin_memory" and known["use_cpu"] == "True":  # transformers turns it off there
        return True
    if have is None or have == repr(text):
        return have is not None or key == "plots"  # which is no setting of the training
    if text in ("null", "none", "~") and have in ("None", "[]"):
        return True
    if text in TRUTH and have in ("True", "False"):
        return have == str(TRUTH[text])
    try:
        return math.isclose(float(have), float(text))
    except ValueError:  # a list, a mapping, or a word that stands for one
        return text in have or text.replace('"', "'") in have or (text == "none" and have == "[]")


def assert_all_are_lines(worker: Worker, some: Iterator[Case]) -> Counter[str]:
    found, complaints = Counter[str](), []
    for case in some:
        outcome = worker.run(case)
        found[f"{case.argv[0]} {outcome['status']}"] += 1
        if wrong := complaint(case, outcome):
            complaints.append(f"{wrong}: {[word[:80] for word in case.argv]} {outcome['said'][-500:]}")
    assert not complaints, f"{len(complaints)} cases:\n" + "\n".join(complaints[:20])
    return found


def test_a_sample_of_mistakes(worker, tmp_path):
    found = assert_all_are_lines(worker, itertools.islice(cases(12, tmp_path), 60))
    assert found["train trains"] >= 1
    assert found["train 2"] >= 15


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_all_of_them(worker, tmp_path, seed):
    """2,500 cases."""
    found = assert_all_are_lines(worker, itertools.islice(cases(seed, tmp_path), 250))
    assert found["train trains"] >= 5
    assert found["train 2"] >= 80
    assert sum(count for name, count in found.items() if not name.startswith("train ")) >= 80


def test_what_would_be_ignored_is_named_on_the_command_line(worker, tmp_path):
    base = ["train", *flags(TINY), "--output_dir", str(tmp_path / "run")]
    for words, message in (
        (["--optim", "sgd", "--momentum", "0.9"], "momentum=0.9 is nothing that optim='sgd' takes"),
        (["--fp16", "true"], "fp16=True needs a GPU"),
        (["--optim", "adamw_torch"], "optim=adamw_torch has no learning rate of its own"),
        (["--do_predict"], "do_predict=True has nothing to predict"),
        (["--use_liger_kernel"], "use_liger_kernel=True is not for image classification"),
        (["--neftune_noise_alpha", "5"], "neftune_noise_alpha=5.0 is not for image classification"),
        (["--hub_model_id", "x"], "hub_model_id='x' is for push_to_hub"),
        (
            ["--eval_strategy", "epoch", "--metric_for_best_model", "f1"],
            "metric_for_best_model='f1' is none of: loss, acc",
        ),
        (["--min_scale", "0.5"], "min_scale=0.5 is for augmentation=random_resized_crop"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config b.yaml: one file is read"),
    ):
        outcome = worker.run(Case([*base, *words]))
        assert outcome["status"] == 2, words
        assert message in outcome["said"]
        assert not (tmp_path / "run").exists()
    offline = worker.run(Case([*base, "--push_to_hub", "true"]))
    assert (offline["status"], "error: push_to_hub: OfflineModeIsEnabled" in offline["said"]) == (2, True)
    first_log = worker.run(Case([*base, "--logging_first_step", "false"]))["reached"]["args"]["logging_first_step"]
    assert first_log == "False"


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [["--eta", "x"], ["--dataset", "./nowhere"], ["--resume_from_checkpoint", "true"]])
def test_two_processes_say_it_once(tmp_path, mistake):
    """Before there is a process group, and after."""
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--num_machines", "1"]  # fmt: skip
    words = [ROOT / "recipes" / "imagenet_clars.py", *flags(TINY), "--output_dir", tmp_path / "run", *mistake]
    done = subprocess.run([sys.executable, *map(str, [*launch, *words])], capture_output=True, text=True, timeout=240,
                          cwd=ROOT, env=without())  # fmt: skip
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    names = (mistake[1].removeprefix("./"), mistake[0].removeprefix("--"), "checkpoint")
    assert any(name in error for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--config", "/dev/zero"], "--config /dev/zero: no such file"),
        (["train", "--lerning_rate", "3"], "unknown flag --lerning_rate; did you mean learning_rate?"),
        (["sweep", "nothing.yaml"], "nothing.yaml: no such file"),
        (["plot", "nothing"], "nothing has no trainer_state.json"),
        (["compare", "nothing", "--target", "x"], "argument --target: invalid number value: 'x'"),
        (["figure", "5"], "argument number: invalid choice: 5"),
        (["nothing"], "'nothing' is neither a command"),
    ],
)
def test_the_process_itself(tmp_path, words, message):
    ran = run_python("-m", "hf_clars", *words, cwd=tmp_path, status=2)
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert message in ran.stderr
