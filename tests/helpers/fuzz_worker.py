"""Runs command lines up to where a training would begin, each in a fork of its own.

Reads a JSON case a line: `{"argv", "seconds", "environment"}`; writes a JSON outcome a line: the exit status (`"hang"`
where it had to be killed, a name where an exception came through), standard error, and what had been reached.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from typing import Any


class AtTheBorder(BaseException):
    """A training would begin."""


def stop_at_the_border(reached: dict[str, Any]) -> None:
    from hf_clars.experiments.running import Runner
    from hf_clars.image_classification import recipe
    from hf_clars.theory import command

    def train(self: Any, *args: Any, **kwargs: Any) -> None:
        self.create_optimizer_and_scheduler(4)
        optimizer = self.optimizer
        reached["args"] = {k: repr(getattr(v, "value", v)) for k, v in vars(self.args).items()}
        reached["about"] = {k: repr(v) for k, v in self.record.about.items()}
        reached["groups"] = [{k: repr(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        raise AtTheBorder

    def run_all(self: Any, runs: Any) -> None:
        reached["runs"] = [{k: repr(v) for k, v in run.settings.items()} for run in runs]
        raise AtTheBorder

    def rates(*args: Any, **kwargs: Any) -> None:
        reached["rates"] = {k: repr(v) for k, v in kwargs.items()}
        raise AtTheBorder

    recipe.ImageTrainer.train = train
    Runner._run_all = run_all
    command.layer_rates = rates


def outcome_of(argv: list[str]) -> tuple[Any, dict[str, Any]]:
    from hf_clars.cli import main

    reached: dict[str, Any] = {}
    stop_at_the_border(reached)
    try:
        return main(argv), reached
    except AtTheBorder:
        return "trains", reached
    except SystemExit as end:
        return end.code, reached
    except BaseException as error:
        traceback.print_exc()
        return type(error).__name__, reached


def in_a_fork(case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as found:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(said.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.environ.update(case.get("environment", {}))
            json.dump(outcome_of(case["argv"]), found)
            found.flush()
            sys.stderr.flush()
            os._exit(0)
        end = time.monotonic() + case.get("seconds", 60)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
            time.sleep(0.002)
        if ended[0] == 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        found.seek(0)
        said.seek(0)
        text = found.read()
        status, reached = json.loads(text) if text else ("hang" if ended[0] == 0 else f"wait status {ended[1]}", {})
        return {"status": status, "said": said.read(), "reached": reached}


if __name__ == "__main__":
    # Imported once, so that no fork does it again.
    import hf_clars.comparison.command
    import hf_clars.experiments.command
    import hf_clars.image_classification.recipe
    import hf_clars.theory.command  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(in_a_fork(json.loads(line))), flush=True)
