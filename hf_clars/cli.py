"""`hf-clars`: train an image classifier, draw its run, reproduce the paper, compare methods fairly."""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from importlib import import_module
from typing import NoReturn

from .command_line import Parser, asks_for_help
from .errors import UserError
from .image_classification.command import train
from .runtime.exit_status import guarded, unstoppable
from .runtime.version import __version__
from .safety.texts import printable
from .scripts import is_script, run_script


def main(argv: list[str] | None = None) -> int:
    """Entry point of `hf-clars`; returns the exit status.

    0; 2 for what the user can mend before the training; 1 for what ended it; 75 when it was asked to end (SIGTERM,
    SIGUSR1) and left a checkpoint; 130 after Ctrl-C; 141 where nobody reads on (`| head`).
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:  # the recipe has flags by the hundred, and parses them itself
        return train(argv[1:])
    if argv[:1] == ["rates"]:
        return guarded(lambda: _rates(argv[1:]))
    run = unstoppable if argv[:1] and argv[0] in _TRAINING else guarded
    return run(lambda: _work(_parsed(argv)))


def _parsed(argv: list[str]) -> Namespace:
    if not argv or (argv[0] not in COMMANDS and not argv[0].startswith("-")):
        known = ", ".join(COMMANDS)
        given = f"{argv[0]!r} is neither a command ({known}) nor" if argv else f"give a command ({known}) or"
        raise UserError(f"{given} a script (a file that ends in .py)")
    parser = Parser(
        prog="hf-clars", usage="hf-clars [-h] [--version] COMMAND …  |  hf-clars SCRIPT.py …", description=__doc__,
        epilog=_EXAMPLES, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"hf_clars {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="hf-clars")
    subparsers.add_parser("train", help="train an image classifier: --config FILE.yaml --key value …", add_help=False)
    subparsers.add_parser("rates", help="admissible learning rates beside those of LARS and CLARS", add_help=False)
    purpose = "draw curves.png and layers.png of a run"
    plot = subparsers.add_parser("plot", help=purpose, description=purpose, epilog="example: hf-clars plot outputs")
    plot.add_argument("output_dir", help="output folder of a run")
    for name, (purpose, room, add_arguments, _, example) in _IN_MODULES.items():
        command = subparsers.add_parser(
            name, help=purpose, description=purpose, epilog=f"example: hf-clars {name} {example}", allow_abbrev=False
        )
        if argv[0] == name:  # what it needs is imported for it alone
            getattr(import_module(f"{room}.arguments", __package__), add_arguments)(command)
    return parser.parse_args(argv)


_TRAINING = ("figure", "tune", "sweep")  # beside `train`: what they print is not worth the runs they make

# Command → what it is for; its room, with a light module `arguments` and `command`; what of the first adds its
# arguments, and what of the second does its work; an example.
_IN_MODULES = {
    "sweep": (
        "the runs of a `wandb sweep` file, offline",
        ".experiments",
        "add_arguments",
        "run",
        "fashion_mnist --jobs 2",
    ),
    "figure": (
        "the runs of a figure of the paper, and its picture",
        ".experiments",
        "add_figure_arguments",
        "run",
        "3 --preset small",
    ),
    "tune": (
        "as many trials for each method, fresh seeds for the best ones",
        ".experiments",
        "add_arguments",
        "run",
        "evidence --list",
    ),
    "recipes": (
        "the recipes that come with the package: list, show or copy them",
        ".recipes",
        "add_arguments",
        "run",
        "resnet50_clars 8_gpus --to .",
    ),
    "compare": (
        "which runs reach the target first, and how sure that is",
        ".comparison",
        "add_arguments",
        "compare",
        "outputs/clars outputs/lars --target 0.75 --out report",
    ),
}
COMMANDS = ("train", "rates", "plot", *_IN_MODULES)
_EXAMPLES = """\
SCRIPT.py is run as `python SCRIPT.py …` would, with the optimizers registered: `--optim clars` for a Trainer in it.
`python -m hf_clars` is the same command, for `accelerate launch -m hf_clars …`.

examples:
  hf-clars train --config fashion_mnist
  hf-clars recipes
  hf-clars compare --help
  accelerate launch -m hf_clars run_clm.py --optim clars --learning_rate 1 --max_grad_norm 0 …"""


def _plot(options: Namespace) -> None:
    from .image_classification.plots import plot_run

    pictures = plot_run(options.output_dir)
    print(*map(printable, pictures), sep="\n")
    if len(pictures) == 1:
        print("no layers.png: γ_k and M_k of each layer are recorded with layer_statistics_steps")


def _rates(argv: list[str]) -> None:
    if asks_for_help(argv):
        from .theory.arguments import rates_help

        return print(rates_help(), end="")
    from .theory.command import run

    run(argv)


def _work(options: Namespace) -> None:
    if options.command == "plot":
        return _plot(options)
    _, room, _, work, _ = _IN_MODULES[options.command]
    getattr(import_module(f"{room}.command", __package__), work)(options)


def entry() -> NoReturn:
    """`hf-clars` and `python -m hf_clars`: a script, or one of our commands."""
    if is_script(sys.argv[1:]):
        run_script(sys.argv[1:])
        sys.exit()
    sys.exit(main())
