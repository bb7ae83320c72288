"""`hf-clars`: train an image classifier, draw its run, reproduce the paper, compare methods fairly."""

import errno
import os
import select
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from .configuration import Parser
from .errors import Preempted, TrainingFailedError, UserError, one_line
from .runtime.output import forgiving, give_up_broken_streams, open_closed_streams
from .runtime.processes import first_to_say
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
        return _guarded(lambda: _rates(argv[1:]))
    guarded = _unstoppable if argv[:1] and argv[0] in _TRAINING else _guarded
    return guarded(lambda: _work(_parsed(argv)))


def _parsed(argv: list[str]) -> Namespace:
    parser = Parser(prog="hf-clars", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"hf_clars {_version()}")
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
    "figure": ("the runs of a figure of the paper, and its picture", ".paper.command", "add_arguments", "figure"),
    "tune": (
        "as many trials for each method, fresh seeds for the best ones",
        ".experiments.command",
        "add_tuning_arguments",
        "tune",
    ),
    "sweep": ("the runs of a `wandb sweep` file, offline", ".experiments.sweep_command", "add_arguments", "sweep"),
    "pack": (
        "this package, what it needs and data, for a machine without network",
        ".packing.command",
        "add_arguments",
        "pack",
    ),
    "compare": (
        "which runs reach the target first, and how sure that is",
        ".comparison.command",
        "add_arguments",
        "compare",
    ),
}


def train(argv: list[str] | None = None) -> int:
    """Entry point of `recipes/imagenet_clars.py` and `hf-clars train`; the same exit status."""
    argv = sys.argv[1:] if argv is None else argv

    def work() -> None:
        from .image_classification.recipe import run

        run(argv)

    return _unstoppable(work)


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


def _unstoppable(work: Callable[[], None]) -> int:
    """For what trains: a full disk behind standard output, and nobody who reads it, are no reason to end."""
    open_closed_streams()
    with forgiving():
        status = _guarded(work)
    give_up_broken_streams()
    return status


def _guarded(work: Callable[[], None]) -> int:
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141
    except UserError as error:
        return _say(error, 2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _say(f"{error.filename}: {error.strerror}", 2)  # which nobody but the user can have named
    except TrainingFailedError as error:
        return _say(error, 1)
    except Preempted as stop:
        if os.environ.get("RANK", "0") == "0":  # all processes stop, and one says so
            print(printable(stop), file=sys.stderr)
        return stop.EXIT_STATUS
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    return 0


def _nobody_reads() -> bool:
    """Whether the broken pipe is the output, which is then let go: what is left of it would raise at the very end."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _say(error: object, status: int) -> int:
    message = str(error).strip()
    if "Traceback (most recent call last)" in message:  # that of a DataLoader's worker; the last line is ours
        message = message.splitlines()[-1].removeprefix("hf_clars.errors.UserError: ")
    if status != 2 or first_to_say():
        print(f"error: {printable(one_line(message))}", file=sys.stderr)
    return status


def _version() -> str:
    from . import __version__

    return __version__


def entry() -> NoReturn:
    sys.exit(main())
