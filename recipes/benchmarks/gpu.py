"""Everything that is to be measured on a GPU, most telling first, in about ten minutes.

    python recipes/benchmarks/gpu.py [--out recipes/results/gpu] [--only norms step …]

A command after the other, with a time limit each; one that fails or takes too long stops none of the others. `--out`
gets of each its output (`NAME.log`) and its figures (`NAME.json`). `--list` shows the commands, `--tiny` tries them at
tiny sizes on a CPU, which says that they work and nothing else. Goals: steps in a row with exact norms 1.10 × those
without, and as much memory; `CLARS.step()` 1.05 × fused SGD's; a whole step, and one of B = 16384, 1.10 ×.
Exit status 0 if all ran, else 1.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import command_line
import torch

from hf_clars.errors import UserError
from hf_clars.validation.checks import writable_folder

NORMS = "norms.py --methods per_sample --batch_size 256 --width 768 --dtype bfloat16 --channels_last --no_error"
MODELS = "resnet50 vit_small_patch16_224 gpt2 mobilenetv2_100 densenet121"
SIZES = "--batch_size 2 --image_size 32 --width 64"
ROUNDS = "--rounds 1 --in_a_row 1"
TESTS = "-m pytest -q -p no:cacheprovider tests"
# Name → seconds at most, command, and what makes it tiny. Most of the tests' time is Triton's compiler's.
RUNS = {
    "norms": (150, f"{NORMS} --models {MODELS} --rounds 9", f"--models resnet18 gpt2 {SIZES} {ROUNDS}"),
    "step": (45, "optimizer_step.py", "--models resnet18 --rounds 1"),
    "roofline": (45, "roofline.py --models resnet50", f"--measure --models resnet18 {SIZES}"),
    "large-step": (
        75,
        "memory.py --accumulation 64 --micro_batch 256 --image_size 224 --optims mnag clars --steps 3",
        "--accumulation 2 --micro_batch 4 --image_size 32 --model_name resnet18",
    ),
    "kernels": (110, f"{TESTS}/test_norms_kernels.py -k 'which_kernel or not_served'", "--collect-only"),
    "fused": (75, f"{TESTS}/test_optimizers_fused.py", "--collect-only"),
    "compiled": (100, f"{NORMS} --models resnet50 --rounds 9 --compile", f"--models gpt2 {SIZES} {ROUNDS}"),
}


def command(name: str, out: Path, *, tiny: bool) -> list[str]:
    _, text, if_tiny = RUNS[name]
    words = shlex.split(text) + (shlex.split(if_tiny) if tiny else [])
    if words[0] != "-m":
        words[0] = f"recipes/benchmarks/{words[0]}"
        words += ["--out", str(out / name)] if name == "roofline" else ["--json", str(out / f"{name}.json")]
    elif importlib.util.find_spec("xdist") and not tiny:
        words += ["-n", "8"]
    return [sys.executable, *words]


def main() -> int:
    parser = command_line.Parser(__doc__)
    parser.add_argument("--out", default="recipes/results/gpu", help="folder of results, relative to the checkout")
    parser.add_argument("--only", nargs="+", default=[*RUNS], choices=[*RUNS], help="these measurements")
    parser.add_argument("--list", action="store_true", help="show the measurements and measure nothing")
    parser.add_argument("--tiny", action="store_true", help="try all of them at tiny sizes on a CPU")
    options = parser.parse_args()
    os.chdir(command_line.ROOT)  # so that results name no paths of this machine
    out = Path(options.out)
    commands = {name: command(name, out, tiny=options.tiny) for name in options.only}
    if options.list:
        print("\n".join(f"{name:<12} {RUNS[name][0]:>4} s  {shlex.join(words)}" for name, words in commands.items()))
        return 0
    if not (torch.cuda.is_available() or options.tiny):
        raise UserError("torch sees no GPU here: run it where there is one, or try it out with --tiny")
    writable_folder("--out", out)
    paths = [str(command_line.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    ended = {}
    for name, words in commands.items():
        start = time.monotonic()
        with (out / f"{name}.log").open("wb") as log:
            limit = RUNS[name][0] * (5 if options.tiny else 1)  # a CPU may be busy
            timed = ["timeout", "--foreground", "--kill-after=5", str(limit), *words]
            status = subprocess.run(timed, stdout=log, stderr=log, env=environment).returncode
        ended[name] = "ok" if status == 0 else "took too long" if status in (124, -9) else f"exit status {status}"
        print(f"--- {name}: {ended[name]} after {time.monotonic() - start:.0f} s", flush=True)
        print((out / f"{name}.log").read_text(errors="replace", encoding="utf-8"), flush=True)
    print("\n".join(f"{name:<12} {how}" for name, how in ended.items()))
    return 0 if set(ended.values()) == {"ok"} else 1


if __name__ == "__main__":
    command_line.run(main)
