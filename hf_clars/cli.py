"""`hf-clars`: train an image classifier, draw its run, reproduce the paper, compare methods fairly."""

import sys
from argparse import Namespace
from importlib import import_module
from typing import NoReturn

from .configuration import Parser
from .image_classification.command import train
from .runtime.exit_status import guarded, unstoppable
from .runtime.version import __version__
from .safety.texts import printable


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
    parser = Parser(prog="hf-clars", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"hf_clars {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train an image classifier: --config FILE.yaml --key value …", add_help=False)
    commands.add_parser("rates", help="admissible learning rates beside those of LARS and CLARS", add_help=False)
    plot = commands.add_parser("plot", help="draw curves.png and layers.png of a run")
    plot.add_argument("output_dir", help="output folder of a run")
    for name, (purpose, module, add_arguments, _) in _IN_MODULES.items():
        command = commands.add_parser(name, help=purpose, allow_abbrev=False)
        if argv[:1] == [name]:  # what it needs is imported for it alone
            getattr(import_module(module, __package__), add_arguments)(command)
    return parser.parse_args(argv)


_TRAINING = ("figure", "tune", "sweep")  # beside `train`: what they print is not worth the runs they make

# Command → what it is for, its module, the function that adds its arguments, and the one that does its work.
_IN_MODULES = {
    "sweep": ("the runs of a `wandb sweep` file, offline", ".experiments.command", "add_arguments", "run"),
    "figure": (
        "the runs of a figure of the paper, and its picture",
        ".experiments.command",
        "add_figure_arguments",
        "run",
    ),
    "tune": (
        "as many trials for each method, fresh seeds for the best ones",
        ".experiments.command",
        "add_arguments",
        "run",
    ),
    "compare": (
        "which runs reach the target first, and how sure that is",
        ".comparison.command",
        "add_arguments",
        "compare",
    ),
}


def _plot(options: Namespace) -> None:
    from .image_classification.plots import plot_run

    for path in plot_run(options.output_dir):
        print(printable(path))


def _rates(argv: list[str]) -> None:
    from .theory.command import run

    run(argv)


def _work(options: Namespace) -> None:
    if options.command == "plot":
        return _plot(options)
    _, module, _, work = _IN_MODULES[options.command]
    getattr(import_module(module, __package__), work)(options)


def entry() -> NoReturn:
    sys.exit(main())
