"""What a command ends with: an exit status, and one line in place of a traceback where a user can mend it."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

from ..errors import Preempted, TrainingFailedError, UserError, one_line
from ..safety.texts import printable
from .first_to_say import first_to_say
from .output import escaping, forgiving, give_up_broken_streams, open_closed_streams

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, the largest size of a file


def unstoppable(work: Callable[[], None]) -> int:
    """For what trains: a full disk behind standard output, and nobody who reads it, are no reason to end."""
    open_closed_streams()
    with forgiving():
        status = guarded(work)
    give_up_broken_streams()
    return status


def guarded(work: Callable[[], None]) -> int:
    """The exit status of `work`, whose errors that are a user's are said in one line, in any encoding."""
    open_closed_streams()
    with escaping():
        status = _status_of(work)
    give_up_broken_streams()
    return status


def _status_of(work: Callable[[], None]) -> int:
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
        if error.errno == errno.ENAMETOOLONG:
            return _say(f"{error.filename}: {error.strerror}", 2)  # which nobody but the user can have named
        if error.errno in _FULL:
            return _say(f"cannot write {error.filename or 'any more'}: {error.strerror}", 1)
        raise
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
        with forgiving():
            print(f"error: {printable(one_line(message))}", file=sys.stderr)
    return status
