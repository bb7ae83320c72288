"""What `hf-clars sweep`, `figure` and `tune` take. No import of torch, so that `--help` is quick."""

from argparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file", help="a sweep as `wandb sweep` takes it, or one that says more; or one of `hf-clars recipes`"
    )
    _add_options(parser)


def add_figure_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("number", type=int, choices=(1, 2, 3, 4), help="figure of the paper; 4 is Table 1, too")
    _add_options(parser)
    parser.set_defaults(preset="small")


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--preset", help="of the file; figures have paper, and small (minutes on a CPU, the default)")
    parser.add_argument("--results", default="results", help="folder of results and pictures")
    parser.add_argument("--work", default="outputs", help="folder of runs under way, with their checkpoints")
    parser.add_argument("--data_dir", help="folder with data sets by name (cifar10/, …); others come from the Hub")
    parser.add_argument("--only", nargs="+", default=[], metavar="AXIS=VALUE[,VALUE]", help="a part of the grid")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all runs: bf16=true")
    parser.add_argument("--count", type=int, help="runs of a file with method: random; its run_cap by default")
    parser.add_argument("--seed", type=int, help="of the draws of a file with method: random; 0 by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, help="CPU threads of each run; all cores by default")
    parser.add_argument("--launch", help="launch each run with this, for several GPUs: 'accelerate launch …'")
    parser.add_argument("--draw", action="store_true", help="run nothing, show the results there are")
    parser.add_argument("--list", action="store_true", help="say which runs there are and which have results")
