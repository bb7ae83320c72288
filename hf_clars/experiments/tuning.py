"""A fair comparison: every method gets as many trials, on the same seed; the best trial of each then gets fresh seeds.

The grid's YAML has a section `tuning`:

    tuning:
      search: {seed: 0, eval_split: "train[45000:]"}  # settings of the trials: what they are judged on
      seeds: [1, 2, 3]                                # of the winners, which the grid's own settings judge
      trials:                                         # method → settings to try, as many for each method
        clars: [{base_learning_rate: 0.1}, …]

A trial is as good as its last evaluation; one that diverged is worse than any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .grid import Grid, Run
from .results import Result
from .running import Runner


@dataclass(frozen=True)
class Contestant:
    """A method at one place of the grid.

    Attributes:
        place: axis → value.
        searched: last accuracy of each trial on what the search is judged on; NaN where it diverged or has no result.
        winner: settings of the best trial.
        finals: results of the winner on fresh seeds.
    """

    place: Mapping[str, Any]
    searched: Sequence[float]
    winner: Mapping[str, Any]
    finals: Sequence[tuple[Run, Result]]


def tune(grid: Grid, runner: Runner, only: Mapping[str, Sequence[str]], **settings: Any) -> list[Contestant]:
    """Search, then make the final runs; what has results is not run again.

    Raises:
        UserError: `tuning` lacks something, or its methods have different numbers of trials.
    """
    trials = _trials(grid)
    places = grid.runs(only, **settings)
    search = {run.title: list(_search_runs(run, trials, grid.tuning["search"])) for run in places}
    found = runner.fill([run for runs in search.values() for run in runs])
    contests: list[tuple[Run, list[float], Mapping[str, Any], list[Run]]] = []
    finals: list[Run] = []
    for place in places:
        scores = [_score(found.get(run.key)) for run in search[place.title]]
        if all(math.isnan(score) for score in scores):
            contests.append((place, scores, {}, []))
            continue
        best = max(range(len(scores)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
        winner = trials[str(place.place["method"])][best]
        runs = [
            Run({**place.place, "seed": seed}, {**place.settings, **winner, "seed": seed})
            for seed in grid.tuning["seeds"]
        ]
        finals += runs
        contests.append((place, scores, winner, runs))
    found |= runner.fill(finals)
    return [
        Contestant(place.place, scores, winner, [(run, found[run.key]) for run in runs if run.key in found])
        for place, scores, winner, runs in contests
    ]


def _search_runs(place: Run, trials: Mapping[str, Any], search: Mapping[str, Any]) -> Iterator[Run]:
    for number, trial in enumerate(trials[str(place.place["method"])]):
        yield Run({**place.place, "trial": number}, {**place.settings, **trial, **search})


def _trials(grid: Grid) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    for section in ("search", "seeds", "trials"):
        if section not in grid.tuning:
            raise UserError(f"the grid's section tuning lacks {section!r}")
    if "method" not in grid.axes:
        raise UserError("a grid that is tuned needs an axis 'method'")
    trials = grid.tuning["trials"]
    counts = {str(method): len(trials.get(method) or ()) for method in grid.axes["method"]}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        numbers = ", ".join(f"{method} {count}" for method, count in counts.items())
        raise UserError(f"every method needs as many trials: they have {numbers}")
    return trials


def _score(result: Result | None) -> float:
    if result is None or result.state == "diverged":
        return math.nan
    return result.final.get("eval_accuracy", math.nan)
