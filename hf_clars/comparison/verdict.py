"""The answer in words: which group is first, and how sure that is."""

import math

from .analysis import Comparison, distance, ranked
from .runs import AXES, TO_TARGET
from .statistics import LEVEL, Interval, interval_numbers, number, spread

_PAIRS_ALIKE = 5  # so many differences of one sign come by chance in 1 of 16 cases; steps may be equal in all pairs


def verdict(comparison: Comparison) -> list[str]:
    """Sentences; the first says who is first, the second how sure that is."""
    groups, leader, deciding = comparison.groups, comparison.leader, comparison.deciding
    if not groups.loc[leader, "final_n"]:
        return ["No run has finished: there is nothing to compare yet."]
    sentences = [_first(comparison)]
    rivals = groups.iloc[1:][lambda others: others[f"{deciding}_n"] > 0]
    if len(rivals):
        sentences.append(_certainty(comparison, rivals.index[0]))
    elif len(groups) > 1:
        sentences.append(f"No other group {'has a finished run' if deciding == 'final' else 'reached it'}.")
    if deciding != "final":
        faster = rivals.index[rivals[f"{deciding}_mean"] < groups.loc[leader, f"{deciding}_mean"]]
        if shares := ", ".join(_share(comparison, group) for group in faster):
            took = f"{', '.join(faster)} took less where the target was reached"
            sentences.append(f"{took}, but did not reach it in every run: {shares}.")
        for measure, sense in [*((TO_TARGET[axis], unit) for axis, unit in AXES.items()), ("final", "the last value")]:
            first = ranked(groups, comparison.question, measure).index[0]
            if comparison.has(measure) and first != leader:
                sentences.append(f"By {sense} {first} is first: {_mean(comparison, first, measure)}.")
    if len(diverged := groups[groups["diverged"] > 0]):
        counts = [f"{group.diverged} of {group.runs} of {group.Index}" for group in diverged[:5].itertuples()]
        more = f" and runs of {len(diverged) - 5} more groups" if len(diverged) > 5 else ""
        sentences.append(f"Diverged: {', '.join(counts)}{more}.")
    return sentences


def _first(comparison: Comparison) -> str:
    groups, question, deciding, leader = comparison.groups, comparison.question, comparison.deciding, comparison.leader
    mean = _mean(comparison, leader, deciding)
    if deciding == "final":
        n = groups.loc[leader, "final_n"]
        value = f"{question.metric} at the end: {mean} ({n} run{'' if n == 1 else 's'})."
        extreme = "lowest" if question.lower_is_better else "highest"
        return value if len(groups) == 1 else f"{leader} has the {extreme} {value}"
    what = f"{question.metric} {question.target_text}"
    after = f"after {mean}, in {_share(comparison, leader)} runs"
    if len(groups) == 1:
        return f"{what} is reached {after}."
    shares, means = groups["reached"] / groups["tried"], groups[f"{deciding}_mean"]
    alike = [g for g in groups.index if shares[g] == shares[leader] and math.isclose(means[g], means[leader])]
    first = f"reaches {what} first" if len(alike) == 1 else f"reach {what} first, and alike"
    return f"{', '.join(alike)} {first}: {after}."


def _certainty(comparison: Comparison, rival: str) -> str:
    deciding, axis = comparison.deciding, comparison.question.axis
    interval = comparison.differences[rival, deciding].times(comparison.scale(deciding))
    size = interval_numbers(interval)[0].lstrip("+-")
    more = interval.difference >= 0
    if interval.difference == 0:
        beginning = f"{rival}, the second, does the same on average"
    elif deciding == "final":
        size += " percentage points" if comparison.question.percent else ""
        beginning = f"{rival}, the second, ends {size} {'higher' if more else 'lower'}"
    else:
        beginning = f"{rival}, the second, needs {_amount(size, axis)} {'more' if more else 'less'}"
    if interval.low is None or interval.high is None:
        return f"{beginning}; there is no interval, for which each needs two seeds: that may be chance."
    beginning += f" ({_bounds(interval)})"
    if interval.low <= 0 <= interval.high:
        return f"{beginning}: 0 is inside the interval, so these runs do not tell the two apart."
    gap = max(distance(comparison.curves(group, axis)) for group in (rival, comparison.leader))
    if deciding != "final" and abs(interval.difference) <= gap * (1 + 1e-9):
        return f"{beginning}: no more than lies between two measurements ({number(gap)}), so do not build on it."
    if interval.low == interval.high and (interval.pairs or 0) < _PAIRS_ALIKE:
        return f"{beginning}: too few to tell how much seeds differ."
    return f"{beginning}: 0 is outside the interval, so the difference is more than seeds explain."


def _bounds(interval: Interval) -> str:
    """`95 % interval of the difference +0.9 to +2.1, 3 seed pairs`."""
    of = "Welch: the seeds do not pair" if interval.pairs is None else f"{interval.pairs} seed pairs"
    if interval.low == interval.high:
        return f"the same in all {of}" if interval.pairs else "no spread at all"
    _, low, high = interval_numbers(interval)
    return f"{LEVEL * 100:g} % interval of the difference {low} to {high}, {of}"


def _mean(comparison: Comparison, group: str, measure: str) -> str:
    """With its unit."""
    numbers = comparison.groups.loc[group, [f"{measure}_mean", f"{measure}_std"]]
    text = spread(*(numbers * comparison.scale(measure)))
    units = {to_target: axis for axis, to_target in TO_TARGET.items()}
    return _amount(text, units[measure]) if measure in units else f"{text}{comparison.question.unit}"


def _share(comparison: Comparison, group: str) -> str:
    return " of ".join(str(comparison.groups.loc[group, count]) for count in ("reached", "tried"))


def _amount(text: str, axis: str) -> str:
    """`4.4 ± 0.5 epochs`, `1 epoch`."""
    return f"{text} {AXES[axis].removesuffix('s') if text == '1' else AXES[axis]}"
