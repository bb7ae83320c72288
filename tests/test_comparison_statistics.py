"""Statistics of a comparison: known answers, published values, and what must not change them."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clars import UserError
from hf_clars.comparison.analysis import analyse, ranked
from hf_clars.comparison.groups import group_names, grouping, mixed, remarks, settings_of, varying, where
from hf_clars.comparison.runs import Question, falls, the_axis, the_metric
from hf_clars.comparison.statistics import (
    Interval,
    area,
    difference,
    first_reaching,
    mean_curve,
    number,
    shared_range,
    short_interval,
    spread,
    spread_of,
    t_quantile,
)
from hf_clars.comparison.verdict import verdict

from .helpers.comparison import learning, run

# Student 1908: hours of sleep that ten patients gained with each of two drugs.
SLEEP = (
    pd.Series([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]),
    pd.Series([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]),
)
numbers = st.floats(-100, 100).map(lambda x: round(x, 4))


def curve(xs, ys) -> pd.Series:
    return pd.Series(ys, xs, dtype=float)


def bounds(interval: Interval) -> tuple:
    return interval.difference, interval.low, interval.high


@pytest.mark.parametrize(
    ("freedom", "level", "published"),
    [
        (1, 0.95, 12.706), (2, 0.95, 4.303), (4, 0.95, 2.776), (9, 0.95, 2.262), (30, 0.95, 2.042), (120, 0.95, 1.980),
        (1e9, 0.95, 1.960), (1, 0.99, 63.657), (5, 0.99, 4.032), (4, 0.90, 2.132), (10, 0.50, 0.700),
    ],
)  # fmt: skip
def test_t_quantiles_are_those_of_the_printed_tables(freedom, level, published):
    assert t_quantile(freedom, level) == pytest.approx(published, abs=6e-4)


def test_t_quantiles_in_closed_form():
    """For ν = 1 (Cauchy) and ν = 2 the quantile is elementary."""
    for level in (0.5, 0.9, 0.95, 0.99):
        assert t_quantile(1, level) == pytest.approx(math.tan(math.pi * level / 2), rel=1e-12)
        assert t_quantile(2, level) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-12)


def test_intervals_of_students_sleep_data():
    """As R's `t.test` gives them."""
    pairs = difference(SLEEP[1], SLEEP[0])
    assert bounds(pairs) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-7)
    assert pairs.pairs == 10
    welch = difference(SLEEP[0], SLEEP[1].rename(lambda seed: seed + 10))
    assert bounds(welch) == pytest.approx((-1.58, -3.3654832, 0.2054832), abs=1e-6)
    assert welch.pairs is None


def test_seeds_pair_where_two_are_common_and_others_do_not_count():
    both = difference(curve([0, 1, 2], [1.0, 2.0, 9.0]), curve([1, 0, 7], [1.0, 0.5, 100.0]))
    assert (both.difference, both.pairs) == (0.75, 2)
    assert both.high - both.difference == pytest.approx(12.7062 * np.std([0.5, 1.0], ddof=1) / math.sqrt(2), rel=1e-5)
    assert difference(curve([0, 1], [1, 2]), curve([1, 5], [1, 3])).pairs is None
    assert difference(curve([0, 0], [1, 2]), curve([0, 0], [1, 3])).pairs is None
    alone = difference(curve([0], [1]), curve([0], [3]))
    assert bounds(alone) == (-2.0, None, None)
    assert difference(curve([], []), curve([0], [1])) is None


def test_no_spread_is_an_interval_of_no_width():
    for seeds in ([0, 1], [2, 3]):
        assert bounds(difference(curve([0, 1], [2, 2]), curve(seeds, [1, 1]))) == (1, 1, 1)
    assert spread_of([0.1] * 3) == {"mean": pytest.approx(0.1), "std": 0, "n": 3}


@given(st.lists(numbers, max_size=6))
def test_means_are_those_of_pandas(values):
    expected = pd.Series(values, dtype=float)
    wanted = {"mean": expected.mean(), "std": expected.std(), "n": len(values)}
    assert spread_of([*values, math.nan]) == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_the_target_is_reached_at_a_point_that_was_measured():
    one = curve([1, 2, 3, 4], [0.5, 0.7, 0.8, 0.6])
    assert [first_reaching(one, target, False) for target in (0.75, 0.8)] == [3, 3]
    assert math.isnan(first_reaching(one, 0.81, False))
    assert first_reaching(one, 0.65, True) == 1
    assert math.isnan(first_reaching(one, 0.1, True))


def test_area_is_a_mean_value():
    one = curve([0, 1, 4], [0, 1, 1])
    assert [area(one, *ends) for ends in ((0, 1), (0, 4), (0.5, 2))] == pytest.approx([0.5, 3.5 / 4, 1.375 / 1.5])
    assert all(math.isnan(area(*nothing)) for nothing in ((one, 0, 5), (one, 2, 2), (curve([], []), 0, 1)))
    assert shared_range([curve([0, 4], [1, 1]), curve([1, 9], [1, 1])]) == (1, 4)
    assert shared_range([curve([0, 1], [1, 1]), curve([2, 3], [1, 1])]) is None


@given(st.lists(st.tuples(st.floats(0.1, 5), numbers), min_size=2, max_size=9), numbers, st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_area_is_between_the_extremes_and_linear(steps, shift, stretch):
    xs, ys = np.cumsum([gap for gap, _ in steps]), np.array([y for _, y in steps])
    value = area(curve(xs, ys), xs[0], xs[-1])
    assert min(ys) - 1e-9 <= value <= max(ys) + 1e-9
    moved = area(curve(stretch * xs, ys + shift), stretch * xs[0], stretch * xs[-1])
    assert moved == pytest.approx(value + shift, abs=1e-6)


def test_mean_curves():
    band = mean_curve([curve([1, 2], [0, 1]), curve([1, 2], [2, 3])])
    assert (list(band.index), list(band["mean"])) == ([1, 2], [1, 2])
    assert list(band["std"]) == pytest.approx([math.sqrt(2)] * 2)
    band = mean_curve([curve([0, 2], [0, 2]), curve([1, 3], [1, 3])], points=11)  # both are y = x
    assert (band.index[0], band.index[-1], len(band)) == (1, 2, 11)
    assert list(band["mean"]) == pytest.approx(list(band.index))
    assert list(band["std"]) == pytest.approx([0] * 11)
    assert list(mean_curve([curve([1], [2]), curve([1], [4])])["mean"]) == [3]
    assert mean_curve([curve([1], [2]), curve([2], [4])]) is None
    assert mean_curve([]) is None


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8), numbers)
@settings(max_examples=60, deadline=None)
def test_differences_do_not_see_a_shift_and_turn_with_the_sides(pairs, shift):
    ours, theirs = (pd.Series(side) for side in zip(*pairs, strict=True))
    for one in (ours, ours.rename(lambda seed: seed + 100)):  # paired, and Welch
        interval, turned = difference(one, theirs), difference(theirs, one)
        near = pytest.approx(bounds(interval), abs=1e-6, rel=1e-6)
        assert bounds(difference(one + shift, theirs + shift)) == near
        assert (-turned.difference, -turned.high, -turned.low) == near
        assert interval.low - 1e-9 <= interval.difference <= interval.high + 1e-9


def test_numbers():
    assert spread(math.nan, math.nan) == "–"
    assert spread(0.86827, 0.00213) == "0.8683 ± 0.0021"
    assert spread(376832, 28378) == "376,832 ± 28,378"
    assert spread(4.0, 0.0) == "4 ± 0"
    assert spread(0.123456, math.nan) == "0.1235"
    assert spread(3e-12, 1e-13) == "3e-12 ± 1e-13"
    assert short_interval(Interval(1.5, 0.91, 2.09, 3)) == "+1.50 [+0.91, +2.09] n=3"
    assert short_interval(Interval(-1.5, -1.9, 0.2, None)) == "-1.5 [-1.9, +0.2] W"
    assert short_interval(Interval(2.0, 2.0, 2.0, 4)) == "+2 n=4"
    assert short_interval(Interval(2.0, None, None, None)) == "+2"
    assert [number(x) for x in (1e-9, 12345.6, math.inf, 1e40)] == ["1e-09", "12,346", "inf", "1e+40"]


# --- comparisons -----------------------------------------------------------------------------------------------------


def seeds(optim, top, speed, states=("finished",) * 3):
    return [
        run(optim, seed, learning(top, speed, 10 * seed + len(optim)), state=state) for seed, state in enumerate(states)
    ]


RUNS = [*seeds("clars", 0.90, 0.6), *seeds("lars", 0.92, 0.35), *seeds("mnag", 0.6, 0.4)]


@given(st.permutations(range(len(RUNS))))
@settings(max_examples=15, deadline=None)
def test_the_order_of_runs_changes_nothing(order):
    question = Question(target=0.75)
    before, after = analyse(RUNS, question), analyse([RUNS[i] for i in order], question)
    pd.testing.assert_frame_equal(before.groups, after.groups)
    assert verdict(before) == verdict(after)


def test_a_comparison_by_hand():
    runs = [
        run("clars", 0, [0.3, 0.8, 0.9]), run("clars", 1, [0.3, 0.6, 0.8]),
        run("lars", 0, [0.2, 0.5, 0.8]), run("lars", 1, [0.2, 0.7, 0.7]),
    ]  # fmt: skip
    found = analyse(runs, Question(target=0.8))
    groups = found.groups
    assert list(groups.index) == ["clars", "lars"]
    assert groups[["reached", "tried"]].to_numpy().tolist() == [[2, 2], [1, 2]]
    to_target = [f"{unit}_to_target_mean" for unit in ("steps", "epochs", "images", "seconds")]
    assert list(groups.loc["clars", to_target]) == [25, 2.5, 25_000, 12.5]
    assert groups.loc["clars", "epochs_to_target_std"] == pytest.approx(math.sqrt(0.5))
    values = [f"{value}_mean" for value in ("final", "best", "area")]
    assert list(groups.loc["clars", values]) == pytest.approx([0.85, 0.85, (0.7 + 0.575) / 2])
    assert groups.loc["lars", "epochs_to_target_mean"] == 3
    assert math.isnan(groups.loc["lars", "epochs_to_target_std"])
    final = found.differences["lars", "final"]
    assert (final.difference, final.pairs) == (pytest.approx(-0.1), 2)
    assert bounds(found.differences["lars", "epochs_to_target"]) == (0.5, None, None)  # one run of lars reached it


def test_diverged_runs_are_counted_and_are_in_no_mean():
    runs = seeds("clars", 0.9, 0.6) + seeds("lars", 0.95, 2.0, ("finished", "diverged", "finished"))
    runs.append(run("lars", 3, [], state="diverged"))  # before it was first evaluated
    runs.append(run("lars", 4, [math.nan] * 3, state="diverged"))
    found = analyse(runs, Question(target=0.75))
    assert list(found.groups.loc["lars", ["diverged", "final_n", "reached", "tried"]]) == [3, 2, 2, 5]
    assert found.leader == "clars"  # slower, but every run of it reaches the target
    assert found.differences["lars", "final"].pairs == 2
    text = " ".join(verdict(found))
    assert "Diverged: 3 of 5 of lars." in text
    assert "lars took less where the target was reached, but did not reach it in every run: 2 of 5." in text


def test_unfinished_runs_are_in_no_mean_and_not_among_those_that_tried():
    runs = seeds("clars", 0.9, 0.6, ("finished", "failed", "running"))
    (group,) = analyse(runs, Question(target=0.75)).groups.itertuples()
    assert (group.tried, group.reached, group.final_n) == (1, 1, 1)
    assert any("2 runs" in line for line in analyse(runs, Question()).remarks)
    assert verdict(analyse(runs[1:], Question())) == ["No run has finished: there is nothing to compare yet."]


def test_the_verdict_says_how_sure_it_is():
    def said(runs, target=None):
        return verdict(analyse(runs, Question(target=target)))

    far = said(seeds("clars", 0.9, 0.6) + seeds("lars", 0.9, 0.2))
    assert "clars has the highest eval/accuracy at the end" in far[0]
    assert "0 is outside the interval" in far[1]
    near = [run("a", s, [0.5, 0.8 + d]) for s, d in enumerate((0.01, -0.02, 0.02))]
    near += [run("b", s, [0.5, 0.8 + d]) for s, d in enumerate((-0.02, 0.02, 0.0))]
    assert "0 is inside the interval, so these runs do not tell the two apart" in said(near)[1]
    assert "there is no interval" in said([run("a", 0, [0.5, 0.9]), run("b", 0, [0.5, 0.8])])[1]
    steps = [run("a", s, [0.5, 0.9, 0.9]) for s in (0, 1)] + [run("b", s, [0.5, 0.6, 0.9]) for s in (0, 1)]
    assert "no more than lies between two measurements" in said(steps, 0.8)[1]
    slow = [run("b", s, [0.5, 0.6, 0.6, 0.6, 0.9]) for s in range(5)]
    fast = [run("a", s, [0.5, 0.9, 0.9, 0.9, 0.9]) for s in range(5)]
    assert "0 is outside the interval" in said(fast + slow, 0.8)[1]
    assert "all 2 seed pairs): too few" in said(fast[:2] + slow[:2], 0.8)[1]
    alike = fast + [run("c", s, [0.5, 0.9, 0.9, 0.9, 0.9]) for s in range(5)]
    assert "a, c reach eval/accuracy ≥ 0.8 first, and alike" in said(alike, 0.8)[0]
    other = [run("a", 0, [0.5, 0.9, 0.9]), run("b", 0, [0.5, 0.6, 0.95])]
    assert "By the last value b is first: 0.95." in said(other, 0.8)


def test_lower_is_better():
    assert all(map(falls, ("eval/loss", "train/perplexity", "eval/word_error")))
    assert not any(map(falls, ("eval/accuracy", "eval/glossary")))
    found = analyse(RUNS, Question("train/loss", target=0.25, lower_is_better=True))
    assert list(found.groups.index) == ["clars", "lars", "mnag"]
    assert (found.groups["best_mean"] <= found.groups["final_mean"]).all()
    assert found.groups.loc["mnag", "reached"] == 0
    assert "≤ 0.25" in verdict(found)[0]


def test_no_target_reached_ranks_by_the_last_value():
    found = analyse(RUNS, Question(target=0.99))
    assert list(found.groups.index) == list(found.groups.sort_values("final_mean", ascending=False).index)
    assert ranked(found.groups, found.question, "area").index[0] == found.groups["area_mean"].idxmax()
    assert any("no finished run reached eval/accuracy ≥ 0.99" in line for line in found.remarks)


def test_runs_without_the_metric_are_named():
    runs = [*RUNS, run("clars", 7, []), run("clars", 8, [math.nan, math.inf])]
    left_out = analyse(runs, Question()).left_out
    assert [line.partition(": left out, it has no ")[::2] for line in left_out] == [
        ("outputs/clars-7", "eval/accuracy"), ("outputs/clars-8", "finite value of eval/accuracy"),
    ]  # fmt: skip
    assert the_metric(runs, "eval_accuracy") == "eval/accuracy"
    with pytest.raises(UserError, match="no run has a finite value"):
        analyse([run("clars", 8, [math.nan])], Question())


def test_axes():
    without = replace(run("clars", 0), history=run("clars", 0).history.drop(columns="epoch"))
    assert the_axis(RUNS, "eval/accuracy", None) == "epoch"
    assert the_axis([*RUNS, without], "eval/accuracy", None) == "step"
    assert the_axis(RUNS, "eval/accuracy", "seconds") == "seconds"
    with pytest.raises(UserError, match="--axis epoch: no run has eval/accuracy over it; there is images, sec"):
        the_axis([without], "eval/accuracy", "epoch")


def test_the_area_is_over_what_all_runs_cover():
    long = run("clars", 0, [0.5] * 2 + [0.9] * 6)
    found = analyse([run("lars", 0, [0.5, 0.6]), long], Question())
    assert found.range == (1, 2)
    assert any("up to 2 epochs, where the shortest finished run ends" in line for line in found.remarks)
    single = analyse([run("lars", 0, [0.5]), long], Question())
    assert single.range is None
    assert any("share no range of epochs" in line for line in single.remarks)


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([0.1, 0.2, 0.3], True),
        ([0.1, 0.2, 0.2], False),
        ([0.1, 0.3, 0.2], False),
        ([0.3, 0.3, 0.3], False),
        (None, False),
    ],
)
def test_a_run_that_never_left_warmup_is_named(rates: list[float] | None, said: bool) -> None:
    lars = [run("lars", seed) for seed in (0, 1)]
    if rates is not None:
        lars = [replace(one, history=one.history.assign(**{"train/learning_rate": rates})) for one in lars]
    lines = [line for line in analyse([*lars, run("clars", 0)], Question()).remarks if "warmup alone" in line]
    expected = ["lars: the learning rate rose until the end, so warmup alone was seen of its schedule"]
    assert lines == (expected if said else [])


def test_different_distances_of_measurements_are_said():
    fine = [run("b", s, [0.5, 0.6, 0.7, 0.9] * 2) for s in (0, 1)]
    fine = [replace(one, history=one.history.assign(epoch=one.history["epoch"] / 4)) for one in fine]
    lines = analyse([run("a", s, [0.5, 0.9]) for s in (0, 1)] + fine, Question(target=0.8)).remarks
    assert any("known to the distance of two measurements: 1 for a, 0.25 for b" in line for line in lines)


@pytest.mark.parametrize("value", [1e-300, 1e30, 3e38, 1e39, 1.7e308])
@pytest.mark.parametrize("apart", [0, 9])
def test_no_size_of_a_value_is_too_much(value, apart):
    runs = [run("a", s, [0.5, value / (s + 1), 1 - value]) for s in (0, 1, 2)]
    runs += [run("b", s + apart, [0.5, -value / (s + 2), value]) for s in (0, 1, 2)]
    found = analyse(runs, Question(target=0.4))
    assert list(found.groups["reached"]) == [3, 3]
    assert all(math.isfinite(interval.difference) for interval in found.differences.values())
    assert verdict(found)


def test_points_out_of_order_and_twice():
    one = run("clars", 0, [0.1, 0.2, 0.3])
    history = pd.concat([one.history.iloc[[2, 0, 1]], one.history.iloc[[1]].assign(**{"eval/accuracy": 0.25})])
    points = replace(one, history=history).curve("eval/accuracy", "epoch")
    assert (list(points.index), list(points)) == ([1, 2, 3], [0.1, 0.25, 0.3])


# --- groups ----------------------------------------------------------------------------------------------------------


def names(runs, keys=None) -> list[str]:
    return list(dict.fromkeys(group_names(runs, grouping(runs, keys))))


def test_default_groups():
    runs = [
        run(optim, seed, eta=eta, output_dir=f"o/{optim}{seed}", learning_rate=rate, model_kwargs={"power": 2})
        for optim, eta in (("clars", 1e-2), ("lars", "1e-3"))
        for rate in (32, 8.0)
        for seed in (0, 1)
    ]  # fmt: skip
    assert grouping(runs) == ["optim", "learning_rate"]
    assert names(runs) == [f"{optim}, learning_rate={rate}" for optim in ("clars", "lars") for rate in (32, 8)]
    assert names(runs, ["optim"]) == ["clars", "lars"]
    assert names(runs[:2]) == ["all runs"]
    some = [run(seed=0, warmup_epochs=1), run(seed=0), run(optim=None, seed=0)]
    assert names(some) == ["clars, warmup_epochs=1", "clars", "optim=–"]
    assert "seed" in varying(settings_of(runs))


def test_the_same_setting_written_by_different_tools_is_the_same():
    runs = [run(seed=0, eta=1e-2, a=1, b=True, c=None), run(seed=1, eta="1e-2", a=1.0, b="true")]
    assert names(runs) == ["all runs"]
    assert varying(settings_of(runs)) == ["seed"]
    assert len(names([run(b=True), run(b=1)])) == 2  # but true is not 1
    alike = [run(seed=seed, betas=betas) for betas in ([1], "[1]") for seed in (0, 1)]
    assert names(alike) == ["betas=[1]", "betas=[1] (2)"]


def test_accumulation_follows_from_the_batch_size_where_that_is_known():
    runs = [run(seed=s, gradient_accumulation_steps=4 * (s + 1), per_device_train_batch_size=8) for s in (0, 1)]
    assert len(names(runs)) == 1
    bare = [replace(r, config={k: v for k, v in r.config.items() if k != "total_batch_size"}) for r in runs]
    assert len(names(bare)) == 2


def test_remarks_about_groups():
    clars = [run(seed=0, eta=1), run(seed=0, eta=2), run(seed=1, eta=1)]
    lines = remarks({"clars": clars})
    assert "clars: runs differ in more than the seed: eta" in lines
    assert "clars: seed 0 more than once, so seeds do not pair with others'" in lines
    two = remarks({"clars": clars, "lars": [run("lars", 5, eta=1), run("lars", 6, eta=2)]})
    assert "clars and 1 other groups: runs differ in more than the seed: eta" in two
    found = analyse([*clars, run("lars", 0), run("lars", 1)], Question(), ["optim"])
    assert all(interval.pairs is None for interval in found.differences.values())


def test_what_differs_within_a_group_begins_with_what_runs_say_differently():
    group = [run("clars", 0, eta=0.1, aaa=1, momentum=0.9), run("clars", 1, eta=0.2, momentum=0.8)]
    assert mixed(settings_of(group))[:3] == ["eta", "momentum", "aaa"]


def test_where():
    assert [r.name for r in where(RUNS, {"optim": ["clars"], "seed": ["0", "2.0"]})] == ["clars-0", "clars-2"]
