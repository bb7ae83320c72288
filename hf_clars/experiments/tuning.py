"""A fair comparison: every method gets as many trials, on the same seed; the best trial of each then gets fresh seeds.

The grid's YAML has a section `tuning`:

    tuning:
      search: {seed: 0, eval_split: "train[45000:]"}  # settings of the trials: what they are judged on
      seeds: [1, 2, 3]                                # of the winners, which the grid's own settings judge
      trials:                                         # method → settings to try, as many for each method
        clars: [{base_learning_rate: 0.1}, …]

A trial is as good as its last evaluation; one that diverged is worse than any other. A method whose search is not
complete, because a trial failed for another reason, has no winner.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..errors import UserError
from ..validation.schema import read_as
from .grid import Grid, Run
from .results import Result
from .running import Runner


@dataclass(frozen=True)
class Contestant:
    """A method at one place of the grid.

    Attributes:
        place: axis → value.
        searched: last accuracy of each trial on what the search is judged on; NaN where it diverged, None where it has
            no result.
        winner: settings of the best trial; None where there is none yet.
        finals: results of the winner on fresh seeds.
    """

    place: Mapping[str, Any]
    searched: Sequence[float | None]
    winner: Mapping[str, Any] | None
    finals: Sequence[tuple[Run, Result]]


class _Tuning(BaseModel):
    """The grid's section."""

    search: dict[str, Any]
    seeds: list[int]
    trials: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Plan:
    """What a tuned grid wants to be run.

    Args:
        grid: with an axis `method` and a section `tuning`.
        only: a part of it.
        settings: over those of the grid's base.

    Raises:
        UserError: `tuning` lacks something or has something twice, its methods have different numbers of trials, or
            `settings` are what it decides itself.
    """

    grid: Grid
    only: Mapping[str, Sequence[str]]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        read_as(_Tuning, self.grid.tuning, "the grid's section tuning")
        tuning = self.grid.tuning
        if "method" not in self.grid.axes:
            raise UserError("a grid that is tuned needs an axis 'method'")
        counts = {str(m): len(tuning["trials"].get(m) or ()) for m in self.grid.axes["method"]}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            numbers = ", ".join(f"{method} {count}" for method, count in counts.items())
            raise UserError(f"every method needs as many trials: they have {numbers}")
        seeds = [*tuning["seeds"], tuning["search"].get("seed")]
        if len(set(seeds)) < len(seeds) or not tuning["seeds"]:
            raise UserError(f"the seeds of tuning must be fresh: {seeds[:-1]}, and {seeds[-1]} of the search")
        decided = {"seed", *tuning["search"], *(key for m in counts for trial in tuning["trials"][m] for key in trial)}
        for key in decided & set(self.settings):
            raise UserError(f"{key} is what the grid's section tuning decides: edit it there")

    def places(self) -> list[Run]:
        """The methods at their places, which are no runs yet."""
        return self.grid.runs(self.only, self.settings)

    def trials(self, place: Run) -> list[Run]:
        """The search of a method at its place."""
        trials = self.grid.tuning["trials"][place.place["method"]]
        search = self.grid.tuning["search"]
        return [
            Run({**place.place, "trial": number}, {**place.settings, **trial, **search})
            for number, trial in enumerate(trials)
        ]

    def search(self) -> list[Run]:
        """All trials, place by place. At each the methods take turns: a search that is cut off has been fair so far."""
        at: dict[str, list[list[Run]]] = {}
        for place in self.places():
            where = str({axis: value for axis, value in place.place.items() if axis != "method"})
            at.setdefault(where, []).append(self.trials(place))
        return [run for methods in at.values() for turn in zip(*methods, strict=True) for run in turn]

    def finals(self, place: Run, winner: Mapping[str, Any]) -> list[Run]:
        """The best trial on fresh seeds."""
        return [
            Run({**place.place, "seed": seed}, {**place.settings, **winner, "seed": seed})
            for seed in self.grid.tuning["seeds"]
        ]

    def winner(self, place: Run, scores: Sequence[float | None]) -> Mapping[str, Any] | None:
        """The settings of the best trial, when all have a score and one did not diverge."""
        known = [score for score in scores if score is not None]
        if len(known) < len(scores) or all(map(math.isnan, known)):
            return None
        best = max(range(len(known)), key=lambda i: -math.inf if math.isnan(known[i]) else known[i])
        winner: Mapping[str, Any] = self.grid.tuning["trials"][place.place["method"]][best]
        return winner


def tune(plan: Plan, runner: Runner) -> list[Contestant]:
    """Search, then make the final runs; what has results is not run again."""
    places = plan.places()
    found = runner.fill(plan.search())
    scores = [[_score(found.get(run.key)) for run in plan.trials(place)] for place in places]
    winners = [plan.winner(place, of_place) for place, of_place in zip(places, scores, strict=True)]
    finals = [
        [] if winner is None else plan.finals(place, winner) for place, winner in zip(places, winners, strict=True)
    ]
    found |= runner.fill([run for seed in itertools.zip_longest(*finals) for run in seed if run is not None])
    return [
        Contestant(place.place, of_place, winner, [(run, found[run.key]) for run in runs if run.key in found])
        for place, of_place, winner, runs in zip(places, scores, winners, finals, strict=True)
    ]


def _score(result: Result | None) -> float | None:
    if result is None:
        return None
    return math.nan if result.state == "diverged" else result.final.get("eval_accuracy", math.nan)
