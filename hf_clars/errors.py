"""What ends a training early, other than a mistake of ours. Command-line entry points print the message alone."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that says what was wrong, which value, and what to do. Exit status 2."""


def one_line(message: object) -> str:
    """What somebody else has to say, on a line, with no word of endless length."""
    words = str(message).split()
    return " ".join(word if len(word) <= 300 else f"{word[:100]}…" for word in words)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`did you mean 'eta'?`, by the nearest of the known words; `choose one of …` where none is near."""
    words = list(known)
    near = difflib.get_close_matches(str(word), words, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(words)}"


DIVERGED = "the training has diverged"  # part of the message where that is why a training failed


class TrainingFailedError(RuntimeError):
    """What a training could not survive, in one line: what happened and how to go on. Exit status 1."""


class Preempted(SystemExit):
    """Asked to end by SIGTERM or SIGUSR1, after a checkpoint. Uncaught, it ends Python with status 75, no traceback."""

    EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later

    def __init__(self, message: str) -> None:
        super().__init__(self.EXIT_STATUS)
        self.message = message

    def __str__(self) -> str:
        return self.message
