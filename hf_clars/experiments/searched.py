"""What a search has found of each method: how good its trials were, and how far from its best rate one may be.

A table and a picture beside those of the winners. A row of the table is a method at a place of the grid, with all of
its settings but the rate: a schedule, say. What a user gets who cannot tune is in the column `within a point`, and in
the width of a line of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..image_classification.panels import colours, panels, percent
from ..safety.texts import in_markdown
from .results import Result
from .tuning import Contestant, Results

RATES = ("learning_rate", "base_learning_rate")
EARLY = (1, 3, 5)  # epochs after which it is said who is ahead
_POINT = 0.01
_SHOWN = 0.15  # of accuracy, below the best of a panel


def search_table(contest: Sequence[Contestant], found: Results) -> str:
    """Markdown; empty where there is no result yet."""
    axes = list(dict.fromkeys(axis for one in contest for axis in one.place.place))
    early = f"after {', '.join(map(str, EARLY))} epochs"
    head = [*axes, "settings", "accuracy at each rate, %", "within a point", f"best rate {early}, %"]
    rows = [
        [*(in_markdown(str(one.place.place.get(axis, ""))) for axis in axes), in_markdown(settings), *_cells(trials)]
        for one in contest
        for settings, trials in _by_settings(one, found).items()
        if any(result is not None for _, result in trials)
    ]
    if not rows:
        return ""
    lines = [[*map(in_markdown, head)], ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_search(contest: Sequence[Contestant], found: Results) -> Any:
    """A matplotlib figure, or None where there is no result yet: accuracy over the rate, by that method's best rate.

    A panel is a place of the grid, a line a method; at each rate the best of its other settings, schedules say.
    """
    places: dict[str, dict[str, dict[float, float]]] = {}
    for one in contest:
        scores: dict[float, float] = {}
        for trials in _by_settings(one, found).values():
            for rate, result in trials:
                if result is not None and math.isfinite(rate):
                    scores[rate] = max(scores.get(rate, 0.0), _score_or_zero(result))
        if any(scores.values()):
            where = ", ".join(f"{k} = {v}" for k, v in one.place.place.items() if k != "method")
            places.setdefault(where, {})[str(one.place.place["method"])] = dict(sorted(scores.items()))
    if not places:
        return None
    methods = list(dict.fromkeys(method for lines in places.values() for method in lines))
    shades = dict(zip(methods, colours(len(methods)), strict=True))
    figure, axes = panels(1, len(places))
    labels: dict[str, Any] = {}
    for axis, (where, lines) in zip(axes.flat, places.items(), strict=True):
        for method, scores in lines.items():
            best = max(scores, key=scores.__getitem__)
            factors = [rate / best for rate in scores]
            (labels[method],) = axis.plot(factors, [*scores.values()], marker=".", color=shades[method])
        top = max(max(scores.values()) for scores in lines.values())
        axis.set(xscale="log", xlabel="learning rate, by the method's best", ylim=(top - _SHOWN, top + _POINT))
        axis.set_ylabel("accuracy on held-out images")
        axis.set_title(where, fontsize=9, parse_math=False)
        _factors(axis)
        percent(axis)
    for text in figure.legend(labels.values(), labels, loc="outside right upper", fontsize=7).get_texts():
        text.set_parse_math(False)
    return figure


def _factors(axis: Any) -> None:
    """Numbers along a logarithmic x: 0.5, 1, 2, 5; of more than two magnitudes, powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=12))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _by_settings(one: Contestant, found: Results) -> dict[str, list[tuple[float, Result | None]]]:
    """What the trials of a method have beside the rate, as text → rates, from the smallest, and their results.

    The rate is infinite in trials that state none.
    """
    groups: dict[str, list[tuple[float, Result | None]]] = {}
    for run in one.trials():
        number = run.place["trial"]
        rate = next((float(run.settings[key]) for key in RATES if run.settings.get(key) is not None), math.inf)
        others = {key: value for key, value in one.tried[number].items() if key not in RATES}
        text = ", ".join(f"{key} {value}" for key, value in others.items())
        groups.setdefault(text, []).append((rate, found.get(run.key)))
    return {text: sorted(trials, key=lambda trial: trial[0]) for text, trials in groups.items()}


def _cells(trials: Sequence[tuple[float, Result | None]]) -> list[str]:
    names = ["default" if math.isinf(rate) else f"{rate:g}" for rate, _ in trials]
    results = [result for _, result in trials]
    each = ["–" if result is None else _percent(_score(result)) for result in results]
    shown = ", ".join(f"{name}: {score}" for name, score in zip(names, each, strict=True))
    known = [(rate, result) for rate, result in trials if result is not None]
    scores = [_score_or_zero(result) for *_, result in known]
    if not any(scores):
        return [shown, "–", "–"]
    best = scores.index(max(scores))
    early = dict(zip(*known[best][1].points("eval_accuracy"), strict=True))
    ahead = " / ".join(_percent(_nearest(early, epoch)) for epoch in EARLY)
    return [shown, _range([rate for rate, *_ in known], scores, best), ahead]


def _range(rates: Sequence[float], scores: Sequence[float], best: int) -> str:
    """Rates around the best one that lose less than a point; `≤` and `≥` where the search ended before. Between trials,
    accuracy is taken to be a straight line over the rate's logarithm."""
    if math.inf in rates:
        return "–"
    ends = []
    for step in (-1, 1):
        i = best
        while 0 <= i + step < len(rates) and scores[i + step] >= scores[best] - _POINT:
            i += step
        if not 0 <= i + step < len(rates):
            ends.append((rates[i], True))
            continue
        share = (scores[i] - scores[best] + _POINT) / (scores[i] - scores[i + step])
        ends.append((rates[i] * (rates[i + step] / rates[i]) ** share, False))
    (low, open_below), (high, open_above) = ends
    factor = f"{'≥ ' if open_below or open_above else ''}× {high / low:.1f}"
    return f"{'≤ ' if open_below else ''}{low:.3g} to {'≥ ' if open_above else ''}{high:.3g} ({factor})"


def _score(result: Result) -> float:
    return float(result.final.get("eval_accuracy", math.nan))


def _score_or_zero(result: Result) -> float:
    """Of a run that diverged, nothing."""
    return 0.0 if math.isnan(score := _score(result)) else score


def _nearest(curve: dict[float, Any], epoch: int) -> float:
    """The evaluation at this epoch, to the nearest half."""
    near = [at for at in curve if abs(at - epoch) <= 0.5]
    return float(curve[min(near, key=lambda at: abs(at - epoch))]) if near else math.nan


def _percent(share: float) -> str:
    return "×" if math.isnan(share) else f"{100 * share:.1f}"
