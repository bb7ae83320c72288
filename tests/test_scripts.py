"""`python -m hf_clars SCRIPT …`: anybody's script, unchanged, with the optimizers registered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .helpers.processes import free_port
from .helpers.scripts import ROOT, run_python, without

LOOKS_AROUND = """\
import atexit, pickle, sys
import beside

class Local:
    pass

print(__name__, __file__, sys.argv, sys.path[0], beside.NAME, type(pickle.loads(pickle.dumps(Local()))).__name__)
atexit.register(lambda: print(sys.modules["__main__"].Local.__name__))
"""
ENDS = {
    "status": "import sys; sys.exit(3)",
    "message": "raise SystemExit('what is wrong')",
    "error": "def f():\n    raise ValueError('its own')\nf()",
    "cause": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('x') from e",
    "interrupt": "raise KeyboardInterrupt",
    "syntax": "if :",
}
# In the manner of transformers' examples: nothing in it knows of hf_clars.
TRAINS = """\
import json, sys
from dataclasses import dataclass, field

import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class ModelArguments:
    width: int = field(default=8, metadata={"help": "Width of the model."})


def main():
    model_args, training_args = HfArgumentParser((ModelArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    torch.set_num_threads(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=model_args.width, n_layer=1, n_head=1))
    ids = torch.randint(0, 16, (32, 8))
    trainer = Trainer(model, training_args, train_dataset=[{"input_ids": x, "labels": x} for x in ids])
    result = trainer.train()
    if trainer.is_world_process_zero():
        told = {"optim": training_args.optim.value, "processes": training_args.world_size, "steps": result.global_step}
        kind = type(trainer.optimizer.optimizer).__module__ + "." + type(trainer.optimizer.optimizer).__name__
        with open(training_args.output_dir + "/told.json", "w") as file:
            json.dump(told | {"kind": kind}, file)


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "beside.py").write_text("NAME = 'beside'\n")
    return tmp_path


def both(folder: Path, text: str, *words: str) -> list[tuple[int, str, str]]:
    """Exit status, output and error output of `python SCRIPT …` and of `python -m hf_clars SCRIPT …`."""
    (folder / "scripts" / "own.py").write_text(text)
    ran = [
        subprocess.run([sys.executable, *how, "scripts/own.py", *words], cwd=folder, env=without(),
                       capture_output=True, text=True, timeout=60)
        for how in ([], ["-m", "hf_clars"])
    ]  # fmt: skip
    return [(done.returncode, done.stdout, done.stderr) for done in ran]


def test_a_script_sees_what_python_would_show_it(folder):
    plain, ours = both(folder, LOOKS_AROUND, "--optim", "clars", "train", "-h")
    assert ours == plain
    assert plain[0] == 0
    assert "['scripts/own.py', '--optim', 'clars', 'train', '-h']" in ours[1]


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_a_script_ends_as_under_python(folder, text):
    plain, ours = both(folder, text)
    assert ours == plain
    assert plain[0] != 0


@pytest.mark.parametrize("words", [[], ["nothing.py"], ["nothing"], ["scripts"]])
def test_neither_a_script_nor_a_command_is_one_line(folder, words):
    error = run_python("-m", "hf_clars", *words, cwd=folder, environment=without(), status=2).stderr
    assert error.count("\n") == 1
    assert "compare) " in error
    assert all(word in error for word in words)


def test_modules_of_the_working_folder_are_not_in_the_way(folder):
    """Which `python SCRIPT` would not import."""
    (folder / "beside.py").write_text("NAME = 'of the working folder'\n")
    plain, ours = both(folder, "import beside; print(beside.NAME)")
    assert ours == plain == (0, "beside\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_of_transformers_trains_with_clars(folder, processes):
    (folder / "run_clm.py").write_text(TRAINS)
    config = ROOT / "recipes" / "accelerate" / "2_cpu_processes.yaml"
    launched = ["-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", free_port()]
    run_python(
        *(launched if processes > 1 else []), "-m", "hf_clars", "run_clm.py", "--optim", "clars", "--learning_rate",
        "1", "--max_grad_norm", "0", "--optim_args", "eta=0.02", "--output_dir", "out", "--max_steps", "2", "--use_cpu",
        "--per_device_train_batch_size", "4", "--report_to", "none", "--width", "16", "--save_strategy", "no",
        cwd=folder,
    )  # fmt: skip
    told = json.loads((folder / "out" / "told.json").read_text())
    assert told == {"optim": "clars", "processes": processes, "steps": 2, "kind": "hf_clars.optimizers.clars.CLARS"}


@pytest.mark.slow
def test_names_are_there_when_transformers_was_imported_first():
    run_python("-c", "from transformers import Trainer; import hf_clars; from transformers.training_args import "
               "OptimizerNames; OptimizerNames('clars')")  # fmt: skip
