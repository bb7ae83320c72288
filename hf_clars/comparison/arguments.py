"""What `hf-clars compare` takes. No import of pandas, so that `--help` is quick."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

from .axes import AXES

_ABOUT = """\
A SOURCE is a W&B project (wandb:ENTITY/PROJECT?FILTERS), a folder of offline W&B runs or one .wandb file, the output
folder of a Trainer, TensorBoard's event files, the results of hf-clars sweep, figure or tune, or a folder of such
folders.

Runs with the same settings are a group, and should differ by their seed alone. By default the settings that count are
those that differ between runs, apart from the seed, from where and how comfortably a run was made, and from those that
add nothing to the ones before them (a learning rate that goes with the optimizer).
"""


def _value(text: str) -> float:
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


_value.__name__ = "number"  # as argparse calls it where it is none
FLAGS: dict[str, dict[str, Any]] = {
    "metric": {"default": "eval/accuracy", "help": "what is compared (default: %(default)s)"},
    "target": {"type": _value, "help": "the value of the metric to reach: 0.75, or 75%%"},
    "axis": {"choices": AXES, "help": "how long is measured in (default: epoch, or step where not all know epochs)"},
    "lower_is_better": {"action": "store_true", "default": None, "help": "as is known of losses, errors, perplexities"},
    "group_by": {"metavar": "KEY[,KEY]", "help": "settings that make a group (default: see above)"},
    "where": {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY=VALUE[,VALUE]", "help": "only these"},
    "layers": {"nargs": "+", "metavar": "RUN", "help": "runs to draw γ_k and M_k of (default: the two best groups')"},
    "out": {"metavar": "FOLDER", "help": "write tables, pictures and report.html there"},
    "wandb_report": {"action": "store_true", "default": None, "help": "also save the comparison as a report in W&B"},
}


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = _ABOUT
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="where runs are")
    for name, flag in FLAGS.items():
        parser.add_argument(f"--{name}", **flag)
