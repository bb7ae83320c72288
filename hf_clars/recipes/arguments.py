"""What `hf-clars recipes` takes."""

from argparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes to show or to copy; none: list them")
    parser.add_argument("--to", metavar="FOLDER", help="copy them, or all, with what they name: into FOLDER/recipes/")
    parser.add_argument("--overwrite", action="store_true", help="replace files there that differ")
