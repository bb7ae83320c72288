"""Statistics of a comparison: known answers, published values, and what must not change them."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clars import UserError
from hf_clars.comparison.analysis import analyse
from hf_clars.comparison.groups import default_keys, group_runs, remarks, varying, where
from hf_clars.comparison.question import Question, falls, the_axis, the_metric
from hf_clars.comparison.runs import AXES
from hf_clars.comparison.statistics import (
    area,
    difference,
    first_reaching,
    mean_curve,
    mean_of,
    paired,
    shared_range,
    t_quantile,
    welch,
)
from hf_clars.comparison.summaries import ranked
from hf_clars.comparison.verdict import verdict

from .comparison import learning, run

# Student 1908: hours of sleep that ten patients gained with each of two drugs.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
numbers = st.floats(-100, 100).map(lambda x: round(x, 4))


@pytest.mark.parametrize(
    ("freedom", "level", "published"),
    [
        (1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (5, 0.95, 2.571), (9, 0.95, 2.262),
        (20, 0.95, 2.086), (30, 0.95, 2.042), (60, 0.95, 2.000), (120, 0.95, 1.980), (1e9, 0.95, 1.960),
        (1, 0.99, 63.657), (5, 0.99, 4.032), (30, 0.99, 2.750), (4, 0.90, 2.132), (10, 0.50, 0.700),
    ],
)  # fmt: skip
def test_t_quantiles_are_those_of_the_printed_tables(freedom, level, published):
    assert t_quantile(freedom, level) == pytest.approx(published, abs=6e-4)


def test_t_quantiles_in_closed_form():
    """For ν = 1 (Cauchy) and ν = 2 the quantile is elementary."""
    for level in (0.5, 0.9, 0.95, 0.99):
        assert t_quantile(1, level) == pytest.approx(math.tan(math.pi * level / 2), rel=1e-12)
        assert t_quantile(2, level) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-12)


def test_paired_interval_of_students_sleep_data():
    interval = paired(SLEEP[1], SLEEP[0])
    assert (interval.difference, interval.low, interval.high) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=1e-7)
    assert (interval.pairs, interval.clear) == (10, True)


def test_welchs_interval_of_students_sleep_data():
    interval = welch(SLEEP[0], SLEEP[1])
    assert (interval.difference, interval.low, interval.high) == pytest.approx((-1.58, -3.3654832, 0.2054832), abs=1e-6)
    assert (interval.pairs, interval.clear) == (None, False)


def test_seeds_pair_where_two_are_common_and_others_do_not_count():
    both = difference({0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.0, 0: 0.5, 7: 100.0})
    assert (both.difference, both.pairs) == (0.75, 2)
    assert both.high - both.difference == pytest.approx(12.7062 * statistics.stdev([0.5, 1.0]) / math.sqrt(2), rel=1e-5)
    assert difference({0: 1.0, 1: 2.0}, {1: 1.0, 5: 3.0}).pairs is None
    alone = difference({0: 1.0}, {0: 3.0})
    assert (alone.difference, alone.low, alone.high, alone.clear) == (-2.0, None, None, False)
    assert difference({}, {0: 1.0}) is None


def test_no_spread_is_an_interval_of_no_width():
    assert (paired([2, 3], [1, 2]).low, paired([2, 3], [1, 2]).high) == (1, 1)
    assert (welch([2, 2], [1, 1]).low, welch([2, 2], [1, 1]).high) == (1, 1)


def test_means():
    assert mean_of([]) is None
    assert mean_of([3.0]).std is None
    mean = mean_of([1.0, 2.0, 4.0])
    assert (mean.mean, mean.std, mean.n) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1), 3))


def test_the_target_is_reached_at_a_point_that_was_measured():
    curve = ([1, 2, 3, 4], [0.5, 0.7, 0.8, 0.6])
    assert first_reaching(curve, 0.75, False) == 3
    assert first_reaching(curve, 0.8, False) == 3
    assert first_reaching(curve, 0.81, False) is None
    assert first_reaching(curve, 0.65, True) == 1
    assert first_reaching(curve, 0.1, True) is None


def test_area_is_a_mean_value():
    curve = ([0, 1, 4], [0, 1, 1])
    assert area(curve, 0, 1) == 0.5
    assert area(curve, 0, 4) == pytest.approx(3.5 / 4)
    assert area(curve, 0.5, 2) == pytest.approx((0.375 + 1) / 1.5)
    assert area(curve, 0, 5) is None
    assert area(curve, 2, 2) is None
    assert area(([], []), 0, 1) is None
    assert shared_range([([0, 4], [1, 1]), ([1, 9], [1, 1])]) == (1, 4)
    assert shared_range([([0, 1], [1, 1]), ([2, 3], [1, 1])]) is None


def test_mean_curves():
    xs, mean, std = mean_curve([([1, 2], [0, 1]), ([1, 2], [2, 3])])
    assert (list(xs), list(mean)) == ([1, 2], [1, 2])
    assert list(std) == pytest.approx([math.sqrt(2)] * 2)
    xs, mean, std = mean_curve([([0, 2], [0, 2]), ([1, 3], [1, 3])], points=11)  # both are y = x
    assert (xs[0], xs[-1], len(xs)) == (1, 2, 11)
    assert list(mean) == pytest.approx(list(xs))
    assert list(std) == pytest.approx([0] * 11)
    assert mean_curve([([1], [2]), ([1], [4])])[1] == [3]
    assert mean_curve([([1], [2]), ([2], [4])]) is None
    assert mean_curve([]) is None


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8), numbers)
@settings(max_examples=60, deadline=None)
def test_differences_do_not_see_a_shift_and_turn_with_the_sides(pairs, shift):
    ours, theirs = (dict(enumerate(part)) for part in zip(*pairs, strict=True))
    for one, other in ((ours, theirs), ({(0, k): v for k, v in ours.items()}, theirs)):  # paired, and Welch
        interval = difference(one, other)
        moved = difference({k: v + shift for k, v in one.items()}, {k: v + shift for k, v in other.items()})
        turned = difference(other, one)
        scale = {"abs": 1e-6, "rel": 1e-6}
        assert (moved.difference, moved.low, moved.high) == pytest.approx(
            (interval.difference, interval.low, interval.high), **scale
        )
        assert (-turned.difference, -turned.high, -turned.low) == pytest.approx(
            (interval.difference, interval.low, interval.high), **scale
        )
        assert interval.low <= interval.difference + 1e-9
        assert interval.difference <= interval.high + 1e-9


@given(st.lists(st.tuples(st.floats(0.1, 5), numbers), min_size=2, max_size=9), numbers, st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_area_is_between_the_extremes_and_linear(steps, shift, stretch):
    xs = list(np.cumsum([gap for gap, _ in steps]))
    ys = [y for _, y in steps]
    value = area((xs, ys), xs[0], xs[-1])
    assert min(ys) - 1e-9 <= value <= max(ys) + 1e-9
    moved = area(([stretch * x for x in xs], [y + shift for y in ys]), stretch * xs[0], stretch * xs[-1])
    assert moved == pytest.approx(value + shift, abs=1e-6)


def seeds(optim, top, speed, states=("finished",) * 3, **settings):
    return [
        run(optim, seed, learning(top, speed, 10 * seed + len(optim)), state=state, **settings)
        for seed, state in enumerate(states)
    ]


RUNS = [*seeds("clars", 0.90, 0.6), *seeds("lars", 0.92, 0.35), *seeds("mnag", 0.6, 0.4)]


@given(st.permutations(range(len(RUNS))))
@settings(max_examples=25, deadline=None)
def test_the_order_of_runs_changes_nothing(order):
    question = Question(target=0.75)
    before, after = analyse(RUNS, question), analyse([RUNS[i] for i in order], question)
    assert [g.name for g in before.groups] == [g.name for g in after.groups]
    for one, other in zip(before.groups, after.groups, strict=True):
        assert one.means.keys() == other.means.keys()
        for measure, mean in one.means.items():
            assert (mean.mean, mean.std) == pytest.approx((other.means[measure].mean, other.means[measure].std))
    assert verdict(before) == verdict(after)


@given(numbers)
@settings(max_examples=25, deadline=None)
def test_a_shifted_metric_shifts_the_values_and_not_the_differences(shift):
    def moved(one):
        history = [row | {"eval/accuracy": row["eval/accuracy"] + shift} for row in one.history]
        return type(one)(one.name, one.source, one.config, history, one.state)

    before = analyse(RUNS, Question(target=0.75))
    after = analyse([moved(one) for one in RUNS], Question(target=0.75 + shift - 1e-9))
    for one, other in zip(before.groups, after.groups, strict=True):
        assert one.name == other.name
        for measure, mean in one.means.items():
            by = 0 if measure in AXES else shift
            assert other.means[measure].mean == pytest.approx(mean.mean + by, abs=1e-6)
    for one, other in zip(before.differences, after.differences, strict=True):
        assert one.interval.difference == pytest.approx(other.interval.difference, abs=1e-6)


def test_a_comparison_by_hand():
    runs = [
        run("clars", 0, [0.3, 0.8, 0.9]), run("clars", 1, [0.3, 0.6, 0.8]),
        run("lars", 0, [0.2, 0.5, 0.8]), run("lars", 1, [0.2, 0.7, 0.7]),
    ]  # fmt: skip
    comparison = analyse(runs, Question(target=0.8))
    clars, lars = comparison.groups
    assert (clars.name, clars.reached, clars.tried) == ("clars", 2, 2)
    assert (clars.means["epoch"].mean, clars.means["step"].mean, clars.means["images"].mean) == (2.5, 25, 25_000)
    assert (clars.means["seconds"].mean, clars.means["epoch"].std) == (12.5, pytest.approx(math.sqrt(0.5)))
    assert (clars.means["final"].mean, clars.means["best"].mean) == pytest.approx((0.85, 0.85))
    assert clars.means["area"].mean == pytest.approx((0.7 + 0.575) / 2)
    assert (lars.reached, lars.tried, lars.means["epoch"].mean, lars.means["epoch"].std) == (1, 2, 3.0, None)
    (final,) = comparison.differences_in("final")
    assert (final.interval.difference, final.interval.pairs) == (pytest.approx(-0.1), 2)
    (epochs,) = comparison.differences_in("epoch")
    assert (epochs.interval.difference, epochs.interval.low) == (0.5, None)  # one run of lars reached it


def test_diverged_runs_are_counted_and_are_in_no_mean():
    runs = seeds("clars", 0.9, 0.6) + seeds("lars", 0.95, 2.0, ("finished", "diverged", "finished"))
    runs.append(run("lars", 3, [], state="diverged"))  # before it was first evaluated
    runs.append(run("lars", 4, [math.nan] * 3, state="diverged"))
    comparison = analyse(runs, Question(target=0.75))
    lars = next(g for g in comparison.groups if g.name == "lars")
    assert (lars.count("diverged"), lars.means["final"].n, lars.reached, lars.tried) == (3, 2, 2, 5)
    assert comparison.groups[0].name == "clars"  # slower, but every run of it reaches the target
    assert comparison.differences_in("final")[0].interval.pairs == 2
    text = " ".join(verdict(comparison))
    assert "Diverged: 3 of 5 of lars." in text
    assert "lars took less where the target was reached, but did not reach it in every run: 2 of 5." in text


def test_unfinished_runs_are_in_no_mean_and_not_among_those_that_tried():
    runs = seeds("clars", 0.9, 0.6, ("finished", "failed", "running"))
    (group,) = analyse(runs, Question(target=0.75)).groups
    assert (group.tried, group.reached, group.means["final"].n) == (1, 1, 1)
    assert any("2 runs" in line for line in analyse(runs, Question()).remarks)
    assert verdict(analyse(runs[1:], Question())) == ["No run has finished: there is nothing to compare yet."]


def test_the_verdict_says_how_sure_it_is():
    far = " ".join(verdict(analyse(seeds("clars", 0.9, 0.6) + seeds("lars", 0.9, 0.2, ("finished",) * 3), Question())))
    assert "clars has the highest eval/accuracy at the end" in far
    assert "0 is outside the interval" in far
    near = [run("a", s, [0.5, 0.8 + d]) for s, d in enumerate((0.01, -0.02, 0.02))]
    near += [run("b", s, [0.5, 0.8 + d]) for s, d in enumerate((-0.02, 0.02, 0.0))]
    assert "0 is inside the interval, so these runs do not tell the two apart" in verdict(analyse(near, Question()))[1]
    single = verdict(analyse([run("a", 0, [0.5, 0.9]), run("b", 0, [0.5, 0.8])], Question()))
    assert "there is no interval" in single[1]
    steps = [run("a", s, [0.5, 0.9, 0.9]) for s in (0, 1)] + [run("b", s, [0.5, 0.6, 0.9]) for s in (0, 1)]
    assert "no more than lies between two measurements" in verdict(analyse(steps, Question(target=0.8)))[1]
    slow = [run("b", s, [0.5, 0.6, 0.6, 0.6, 0.9]) for s in range(5)]
    fast = [run("a", s, [0.5, 0.9, 0.9, 0.9, 0.9]) for s in range(5)]
    assert "0 is outside the interval" in verdict(analyse(fast + slow, Question(target=0.8)))[1]
    assert "all 2 seed pairs): too few" in verdict(analyse(fast[:2] + slow[:2], Question(target=0.8)))[1]
    alike = fast + [run("c", s, [0.5, 0.9, 0.9, 0.9, 0.9]) for s in range(5)]
    assert "a, c reach eval/accuracy ≥ 0.8 first, and alike" in verdict(analyse(alike, Question(target=0.8)))[0]


def test_lower_is_better():
    assert falls("eval/loss")
    assert falls("train/perplexity")
    assert falls("eval/word_error")
    assert not falls("eval/accuracy")
    assert not falls("eval/glossary")
    comparison = analyse(RUNS, Question("train/loss", target=0.25, lower_is_better=True))
    assert [g.name for g in comparison.groups] == ["clars", "lars", "mnag"]
    assert comparison.groups[0].means["best"].mean <= comparison.groups[0].means["final"].mean
    assert comparison.groups[-1].reached == 0
    assert "≤ 0.25" in verdict(comparison)[0]


def test_no_target_reached_ranks_by_the_last_value():
    comparison = analyse(RUNS, Question(target=0.99))
    best = ranked(comparison.groups, comparison.question, "final")
    assert [g.name for g in comparison.groups] == [g.name for g in best]
    assert any("no finished run reached eval/accuracy ≥ 0.99" in line for line in comparison.remarks)


def test_runs_without_the_metric_are_named():
    runs = [*RUNS, run("clars", 7, []), run("clars", 8, [math.nan, math.inf])]
    comparison = analyse(runs, Question())
    assert comparison.left_out == [
        "outputs/clars-7: left out, it has no eval/accuracy",
        "outputs/clars-8: left out, it has no finite value of eval/accuracy",
    ]
    with pytest.raises(UserError, match=r"--metric eval/f1: no run has it; there is eval/accuracy, train/loss"):
        the_metric(runs, "eval/f1")
    assert the_metric(runs, "eval_accuracy") == "eval/accuracy"
    with pytest.raises(UserError, match="no run has a finite value"):
        analyse([run("clars", 8, [math.nan])], Question())


def test_axes():
    bare = run("clars", 0)
    rows = [{k: v for k, v in row.items() if k != "epoch"} for row in bare.history]
    without = type(bare)(bare.name, bare.source, bare.config, rows)
    assert the_axis(RUNS, "eval/accuracy", None) == "epoch"
    assert the_axis([*RUNS, without], "eval/accuracy", None) == "step"
    assert the_axis(RUNS, "eval/accuracy", "seconds") == "seconds"
    with pytest.raises(UserError, match="--axis epoch: no run has eval/accuracy over it; there is images, sec"):
        the_axis([without], "eval/accuracy", "epoch")


def test_the_area_is_over_what_all_runs_cover():
    short = run("lars", 0, [0.5, 0.6])
    long = run("clars", 0, [0.5] * 2 + [0.9] * 6)
    comparison = analyse([short, long], Question())
    assert comparison.range == (1, 2)
    assert any("up to 2 epochs, where the shortest finished run ends" in line for line in comparison.remarks)
    single = analyse([run("lars", 0, [0.5]), long], Question())
    assert single.range is None
    assert any("share no range of epochs" in line for line in single.remarks)


@pytest.mark.parametrize("value", [1e-300, 1e30, 3e38, 1e39, 1e200, 1.7e308])
@pytest.mark.parametrize("pairing", [True, False])
def test_no_size_of_a_value_is_too_much(value, pairing):
    runs = [run("a", s, [0.5, value / (s + 1), 1 - value]) for s in (0, 1, 2)]
    runs += [run("b", s if pairing else s + 9, [0.5, -value / (s + 2), value]) for s in (0, 1, 2)]
    comparison = analyse(runs, Question(target=0.4))
    assert all(group.reached == 3 for group in comparison.groups)
    assert all(math.isfinite(d.interval.difference) for d in comparison.differences)
    assert verdict(comparison)


def test_points_out_of_order_and_twice():
    one = run("clars", 0, [0.1, 0.2, 0.3])
    rows = [one.history[2], one.history[0], one.history[1], one.history[1] | {"eval/accuracy": 0.25}]
    (group,) = analyse([type(one)(one.name, one.source, one.config, rows)], Question()).groups
    assert group.runs[0].curves["epoch"] == ([1.0, 2.0, 3.0], [0.1, 0.25, 0.3])


def test_default_groups():
    runs = [
        run(optim, seed, eta=eta, output_dir=f"o/{optim}{seed}", learning_rate=rate, model_kwargs={"power": 2})
        for optim, eta in (("clars", 1e-2), ("lars", "1e-3"))
        for rate in (32, 8.0)
        for seed in (0, 1)
    ]  # fmt: skip
    assert default_keys(runs) == ["optim", "learning_rate"]
    names = [g.name for g in group_runs(runs)]
    assert names == [
        "clars, learning_rate=32",
        "clars, learning_rate=8",
        "lars, learning_rate=32",
        "lars, learning_rate=8",
    ]
    assert [len(g.runs) for g in group_runs(runs, ["optim"])] == [4, 4]
    assert [g.name for g in group_runs(runs[:2])] == ["all runs"]
    some = [run(seed=0, warmup_epochs=1), run(seed=0), run(optim=None, seed=0)]
    assert [g.name for g in group_runs(some)] == ["clars, warmup_epochs=1", "clars", "optim=–"]
    assert "seed" in varying(runs)
    with pytest.raises(UserError, match=r"--group-by optimm: no run has that setting; those that differ are eta"):
        group_runs(runs, ["optimm"])


def test_the_same_setting_written_by_different_tools_is_the_same():
    runs = [run(seed=0, eta=1e-2, a=1, b=True, c=None), run(seed=1, eta="1e-2", a=1.0, b="true")]
    assert [g.name for g in group_runs(runs)] == ["all runs"]
    assert varying(runs) == ["seed"]
    assert len(group_runs([run(b=True), run(b=1)])) == 2  # but true is not 1


def test_accumulation_follows_from_the_batch_size_where_that_is_known():
    accumulating = [run(seed=s, gradient_accumulation_steps=4 * (s + 1), per_device_train_batch_size=8) for s in (0, 1)]
    assert len(group_runs(accumulating)) == 1
    bare = [
        type(r)(r.name, r.source, {k: v for k, v in r.config.items() if k != "total_batch_size"}, r.history)
        for r in accumulating
    ]
    assert len(group_runs(bare)) == 2


def test_remarks_about_groups():
    runs = [run(seed=0, eta=1), run(seed=0, eta=2), run(seed=1, eta=1)]
    lines = remarks(group_runs(runs, ["optim"]))
    assert "clars: runs differ in more than the seed: eta" in lines
    assert "clars: seed 0 more than once, so seeds do not pair with others'" in lines
    two = remarks(group_runs([*runs, run("lars", 5, eta=1), run("lars", 6, eta=2)], ["optim"]))
    assert "clars and 1 other groups: runs differ in more than the seed: eta" in two
    comparison = analyse([*runs, run("lars", 0), run("lars", 1)], Question(), ["optim"])
    assert comparison.differences_in("final")[0].interval.pairs is None


def test_where():
    assert [r.name for r in where(RUNS, {"optim": ["clars"], "seed": ["0", "2.0"]})] == ["clars-0", "clars-2"]
    with pytest.raises(UserError, match="--where eta: no run has that setting; those that differ are optim, seed"):
        where(RUNS, {"eta": ["1"]})
    with pytest.raises(UserError, match="--where optim=sgd: no run is left; optim is clars, lars, mnag"):
        where(RUNS, {"optim": ["sgd"]})


def test_different_distances_of_measurements_are_said():
    coarse = [run("a", s, [0.5, 0.9]) for s in (0, 1)]
    fine = [
        type(r)(r.name, r.source, r.config, [row | {"epoch": row["epoch"] / 4} for row in r.history])
        for r in (run("b", s, [0.5, 0.6, 0.7, 0.9] * 2) for s in (0, 1))
    ]
    lines = analyse(coarse + fine, Question(target=0.8)).remarks
    assert any("known to the distance of two measurements: 1 for a, 0.25 for b" in line for line in lines)


def test_what_differs_within_a_group_begins_with_what_runs_say_differently():
    one = run("clars", 0, [0.5, 0.8], eta=0.1, aaa=1, momentum=0.9)
    other = run("clars", 1, [0.5, 0.8], eta=0.2, momentum=0.8)
    (group,) = group_runs([one, other], ["optim"])
    assert group.mixed()[:3] == ["eta", "momentum", "aaa"]
