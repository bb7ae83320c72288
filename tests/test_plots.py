"""curves.png and layers.png: what stands in them for runs of any length, networks of any depth, any split."""

import json
import math

import pytest
from matplotlib import pyplot as plt

from hf_clars.cli import main
from hf_clars.image_classification.panels import MOST_NAMES, colours
from hf_clars.image_classification.plots import curves_figure, layers_figure, plot_run
from hf_clars.image_classification.recipe import run as train

from .helpers.recipe import config, write_splits


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def records(layers: int, steps, *statistics: str) -> list[dict]:
    names = [f"timm_model.blocks.{k}.conv.weight" for k in range(layers)]
    shown = statistics or ("gamma",)
    return [
        {"step": s, "layers": {name: dict.fromkeys(shown, 1.0 + s + k) for k, name in enumerate(names)}} for s in steps
    ]


def evaluation(step: int, top1: float, top5: float | None = None) -> dict[str, float]:
    five = {} if top5 is None else {"eval_top5_accuracy": top5}
    return {"step": step, "eval_loss": 1.0, "eval_accuracy": top1, **five}


def texts_in(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def numbers_at(axis, which: str = "x") -> list[str]:
    """Of the ticks that are in sight."""
    axis.figure.canvas.draw()
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    ticks = (axis.xaxis if which == "x" else axis.yaxis).get_major_ticks()
    return [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]


@pytest.mark.parametrize("layers", [3, MOST_NAMES])
def test_few_layers_have_a_legend(layers):
    figure = layers_figure(records(layers, range(50), "gamma", "variance_factor"), "a")
    gamma, variance = figure.axes  # and no colour bar
    assert gamma.get_legend() is None
    names = [text.get_text() for text in variance.get_legend().get_texts()]
    assert names == [f"blocks.{k}.conv" for k in range(layers)]
    assert {axis.get_yscale() for axis in figure.axes} == {"log"}


def test_many_layers_have_a_colour_bar_by_depth():
    figure = layers_figure(records(120, range(50), "gamma", "variance_factor"), "a")
    gamma, variance, bar = figure.axes
    assert gamma.get_legend() is None is variance.get_legend()
    assert len(gamma.lines) == 120
    assert bar.get_ylabel() == "120 layers, input → output"
    names = [label.get_text() for label in bar.get_yticklabels()]
    assert (names[0], names[-1]) == ("1  blocks.0.conv", "120  blocks.119.conv")
    assert len(names) < 10
    assert bar.get_ylim() == (120, 1)  # the input at the top
    height = figure.get_size_inches()[1]
    assert height < 5


@pytest.mark.parametrize(("steps", "expected"), [([7], ["7"]), ([1, 2, 3], ["1", "2", "3"])])
def test_few_steps_are_marked_and_whole(steps, expected):
    (axis,) = layers_figure(records(2, steps), "a").axes
    assert {line.get_marker() for line in axis.lines} == {"."}
    assert numbers_at(axis) == expected
    curves = curves_figure([evaluation(step, 0.5) for step in steps], "a", "test")
    assert {line.get_marker() for axis in curves.axes for line in axis.lines} == {"."}
    assert numbers_at(curves.axes[1]) == expected


def test_many_steps_have_no_markers_and_thousands_apart():
    (axis,) = layers_figure(records(2, range(0, 12_000, 100)), "a").axes
    assert {line.get_marker() for line in axis.lines} == {"None"}
    assert "10,000" in numbers_at(axis)


def test_numbers_between_powers_of_ten_are_plain():
    (axis,) = layers_figure([{"step": s, "layers": {"a": {"gamma": 0.2 + s / 10}}} for s in range(4)], "a").axes
    axis.figure.canvas.draw()
    minor = [tick.label1.get_text() for tick in axis.yaxis.get_minor_ticks()]
    assert {"0.2", "0.3", "0.4"} <= set(minor)


def test_a_layer_that_was_frozen_at_first_or_in_the_end_is_drawn():
    both = {"a": {"gamma": 1.0}, "b": {"gamma": 2.0}}
    found = [{"step": s, "layers": both if s == 2 else {"a": both["a"]}} for s in (1, 2, 3)]
    (axis,) = layers_figure(found, "a").axes
    assert [line.get_label() for line in axis.lines] == ["a", "b"]


def test_a_layer_without_a_gradient_is_named():
    names = "abcde"
    for dead, said in [("c", "c"), ("bcde", "b, c, d, 1 more")]:
        layers = {
            n: {"gamma": 0.0 if n in dead else 1.0} | ({} if n in dead else {"variance_factor": 3.0}) for n in names
        }
        whole = {n: {"gamma": 1.0, "variance_factor": 3.0} for n in names}
        figure = layers_figure([{"step": 1, "layers": layers}, {"step": 2, "layers": whole}], "a")
        expected = [f"not drawn where 0 or not finite: {said}"]
        assert [texts_in(axis) for axis in figure.axes] == [expected, expected]
    (axis, *_) = layers_figure([{"step": 1, "layers": whole}, {"step": 2, "layers": {"a": {"gamma": 1.0}}}], "a").axes
    assert texts_in(axis) == []  # frozen is not dead


def test_top_1_has_a_scale_of_its_own_in_percent():
    log = [evaluation(10, 0.1, 0.9), evaluation(20, 0.12, 0.95)]
    loss, top1, top5, rate = curves_figure([*log, {"step": 5, "loss": 2.0, "learning_rate": 1.0}], "a", "test").axes
    assert top1.get_title() == "test accuracy"
    assert top5.get_title() == "test accuracy, top 5"
    assert top1.get_ylim()[1] < 0.15
    assert all(text.endswith(" %") for axis in (top1, top5) for text in numbers_at(axis, "y"))
    assert "11.00 %" in numbers_at(top1, "y")
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "test"]
    assert rate.get_title() == "γ_scale (learning rate)"
    assert len({axis.get_xlim() for axis in (loss, top1, top5, rate)}) == 1
    assert {axis.get_xlabel() for axis in (loss, top1, top5, rate)} == {"optimizer step"}


def test_an_empty_panel_says_why():
    _, accuracy, rate = curves_figure([{"step": 1, "loss": 2.0}], "a", "test").axes
    assert texts_in(accuracy) == ["no evaluation was logged"]
    assert texts_in(rate) == ["no learning rate was logged"]
    loss, accuracy, _ = curves_figure([{"step": 1, "loss": math.nan, "eval_loss": 1.0}], "a", "test").axes
    assert texts_in(accuracy) == ["no evaluation logged an accuracy"]
    assert texts_in(loss) == []
    loss, accuracy, _ = curves_figure([{"step": 1, "loss": math.inf, "eval_accuracy": math.nan}], "a", "test").axes
    assert texts_in(loss) == texts_in(accuracy) == ["no finite value was logged"]


def test_a_loss_that_grows_without_bound_leaves_the_rest_to_be_seen():
    log = [{"step": s, "loss": loss} for s, loss in ((1, 2.3), (2, 1e9), (3, math.inf))]
    loss = curves_figure(log, "a", "test").axes[0]
    assert loss.get_yscale() == "log"
    names = [text.get_text() for text in loss.get_legend().get_texts()]
    assert names == ["training", "training: not finite afterwards"]
    assert (list(loss.lines[1].get_xdata()), loss.lines[1].get_marker()) == ([2], "x")
    assert curves_figure([{"step": s, "loss": 2.0 - s / 10} for s in (1, 2)], "a", "x").axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("record", "title", "split"),
    [
        (None, "folder", "evaluation"),
        ({"config": {}}, "folder", "evaluation"),
        ({"name": "clars a B=8 seed=0", "config": {"eval_split": "test"}}, "folder: clars a B=8 seed=0", "test"),
        ({"name": "x", "config": {"eval_split": "train[8:]", "run_name": "mine"}}, "mine: x", "train[8:]"),
        ({"name": "$\\frac{", "config": {"eval_split": "$_{"}}, "folder: $\\frac{", "$_{"),
    ],
)
def test_the_run_and_its_split_are_named(tmp_path, monkeypatch, record, title, split):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(
        json.dumps({"log_history": [evaluation(1, 0.5), {"step": 1, "loss": 1}]})
    )
    (folder / "layer_statistics.jsonl").write_text(
        "".join(json.dumps({"epoch": 1.0, **r}) + "\n" for r in records(2, [1]))
    )
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record))
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    assert [path.name for path in plot_run(folder)] == ["curves.png", "layers.png"]
    monkeypatch.undo()
    assert [figure.get_suptitle() for figure in figures] == [title, title]
    assert figures[0].axes[1].get_title() == f"{split} accuracy"
    assert figures[0].axes[0].get_legend().get_texts()[1].get_text() == split


def test_a_folder_without_records_of_layers_says_how_to_get_them(tmp_path, capsys):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [evaluation(1, 0.5)]}))
    assert main(["plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "curves.png"),
        "no layers.png: γ_k and M_k of each layer are recorded with layer_statistics_steps",
    ]


def test_a_damaged_record_is_one_line(tmp_path, capsys):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": []}))
    (tmp_path / "run.json").write_text('{"config": {"eval_split": 3}}')
    assert main(["plot", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'run.json'} is damaged: config.eval_split is no record of a run")
    assert told.count("\n") == 1


def test_the_split_is_the_one_that_was_found(tmp_path, capsys):
    """`validation`, which is the default, finds `test` where there is no other."""
    data = write_splits(tmp_path / "data", {"train": 32, "test": 8})
    train(config(tmp_path, data, max_steps=1, eval_split="validation[:8]", optim="mnag"))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["eval_split"] == "test[:8]"
    assert "on test[:8] after" in capsys.readouterr().out
    card = (tmp_path / "run" / "README.md").read_text()
    measured = json.loads((tmp_path / "run" / "all_results.json").read_text())["eval_accuracy"]
    assert f"| accuracy on test\\[:8\\], % | {100 * measured:g} |" in card


def test_colours_are_distinct():
    for count in (1, 7, 8, 20):
        assert len({str(colour) for colour in colours(count)}) == count
