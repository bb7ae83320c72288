"""Each architecture in a process of its own."""

import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from architecture import Case, one_line

Look = Callable[[Case], dict[str, Any]]


def survey(cases: list[Case], look: Look, jobs: int, time_limit: float) -> Iterator[dict[str, Any]]:
    """Each case in a forked process of its own, `jobs` at a time; yields what `look` found, as they finish."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(reversed(cases)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop()
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(theirs, case, look))
            process.start()
            theirs.close()
            running[ours] = case, process, time.monotonic()
        earliest = min(start for _, _, start in running.values()) + time_limit
        ready = multiprocessing.connection.wait(list(running), timeout=max(0.0, earliest - time.monotonic()))
        late = [c for c, (_, _, start) in running.items() if time.monotonic() - start > time_limit and c not in ready]
        for connection in [*ready, *late]:
            case, process, start = running.pop(connection)
            if connection in late:
                process.kill()
                result = {"failed": f"longer than {time_limit:g} s"}
            else:
                try:
                    result = connection.recv()
                except EOFError:
                    process.join()
                    result = {"failed": f"the process died with exit status {process.exitcode}"}
            process.join()
            connection.close()
            yield {"name": case.name, "seconds": round(time.monotonic() - start, 1), **result}


def _work(connection: Any, case: Case, look: Look) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        connection.send(look(case))
    except Exception as error:
        connection.send({"failed": one_line(error)})
