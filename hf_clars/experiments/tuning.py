"""A fair comparison: every method gets as many trials, on the same seed; the best trial of each then gets fresh seeds.

The sweep's file has a parameter `method`, and a section `tuning`: settings of the trials (`search`), which say what
they are judged on; seeds of the winners, which the file's own settings judge; and what is tried of each method.

A trial is as good as its last evaluation; one that diverged is worse than any other. A method whose search is not
complete, because a trial failed for another reason, has no winner.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .grid import Run
from .results import Result
from .schema import Tuning
from .sweeps import Sweep

Results = Mapping[str, Result]  # by the key of their run


@dataclass(frozen=True)
class Contestant:
    """A method at one place of the grid; `place` is no run yet."""

    place: Run
    tuning: Tuning

    @property
    def tried(self) -> Sequence[Mapping[str, Any]]:
        """What each trial sets."""
        return self.tuning.trials[str(self.place.place["method"])]

    def trials(self) -> list[Run]:
        """The search."""
        return [
            Run({**self.place.place, "trial": number}, {**self.place.settings, **trial, **self.tuning.search})
            for number, trial in enumerate(self.tried)
        ]

    def finals(self, found: Results, searched: bool = False) -> list[Run]:
        """The best trial on fresh seeds; nothing before there is one. With `searched`, places say how that went."""
        results = [found.get(run.key) for run in self.trials()]
        scores = [math.nan if result is None else result.final.get("eval_accuracy", math.nan) for result in results]
        if None in results or all(map(math.isnan, scores)):
            return []
        winner = self.tried[scores.index(max(score for score in scores if not math.isnan(score)))]
        shown = ", ".join(
            f"{n}: {'×' if math.isnan(score) else f'{100 * score:.1f}'}" for n, score in enumerate(scores)
        )
        best = ", ".join(f"{key} {value}" for key, value in winner.items())
        place = dict(self.place.place) | ({"trials": shown, "best trial": best} if searched else {})
        settings = {**self.place.settings, **winner}
        return [Run({**place, "seed": seed}, {**settings, "seed": seed}) for seed in self.tuning.seeds]


def contestants(
    sweep: Sweep,
    only: Mapping[str, Sequence[str]] | None = None,
    settings: Mapping[str, Any] | None = None,
    *draws: Any,
) -> list[Contestant]:
    """The methods at their places.

    Raises:
        UserError: settings and parameters that the section tuning decides; trials that are one run, which of them says
            nothing; a seed of the winners that they were chosen on.
    """
    tuning = sweep.tuning
    assert tuning is not None
    tried = itertools.chain.from_iterable(tuning.trials.values())
    for key in {"seed", *tuning.search, *itertools.chain.from_iterable(tried)} & {*(settings or {}), *sweep.parameters}:
        raise UserError(f"{key} is what the section tuning decides: edit it there")
    contest = [Contestant(place, tuning) for place in sweep.runs(only, settings, *draws)]
    _check_trials(search(contest), tuning.seeds)
    return contest


def _check_trials(trials: Sequence[Run], fresh: Sequence[int]) -> None:
    from ..trainer import ClarsTrainingArguments

    known: dict[str, Run] = {}
    for run in trials:
        if (other := known.setdefault(run.key, run)) is not run:
            raise UserError(f"tuning: {other.title} and {run.title} are one run, with the same settings: change one")
        given = run.settings.get("seed")
        seed = str(ClarsTrainingArguments.seed if given is None else given)
        if seed.isdecimal() and int(seed) in fresh:  # of what is no seed, the recipe says so
            how = "by default" if given is None else "too"
            raise UserError(
                f"tuning: the seeds must be fresh: they are {', '.join(map(str, fresh))}, and {run.title} of the "
                f"search has {seed}, {how}: give search a seed of its own"
            )


def search(contest: Sequence[Contestant]) -> list[Run]:
    """All trials, place by place. At each the methods take turns: a search that is cut off has been fair so far."""
    places: dict[str, list[list[Run]]] = {}
    for one in contest:
        where = str({axis: value for axis, value in one.place.place.items() if axis != "method"})
        places.setdefault(where, []).append(one.trials())
    return [run for methods in places.values() for turn in zip(*methods, strict=True) for run in turn]


def finals(contest: Sequence[Contestant], found: Results, searched: bool = False) -> list[Run]:
    """The winners on fresh seeds, a seed of all of them first."""
    turns = itertools.zip_longest(*(one.finals(found, searched) for one in contest))
    return [run for turn in turns for run in turn if run is not None]
