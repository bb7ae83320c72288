"""`python -m hf_clars` is `hf-clars`."""

from .cli import entry

if __name__ == "__main__":
    entry()
