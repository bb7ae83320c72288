"""`recipes/studies/why.py`: the share of the rate is what the run's own γ_k had; what cannot be drawn is refused."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .helpers.scripts import module_of

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SCRIPT = RECIPES / "studies" / "why.py"
RESULTS = RECIPES / "results" / "tuning-sigmoid"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="results are in a checkout alone, not in the sdist")


def of(method: str) -> Path:
    (path,) = RESULTS.glob(f"B=4096_fcn5_sigmoid_{method}_seed=1-*.json")
    return path


@pytest.fixture
def why() -> ModuleType:
    return module_of(SCRIPT)


@pytest.mark.parametrize("method", ["lars", "clars"])
def test_gamma_is_the_share_times_the_rate_of_lars(why: ModuleType, method: str) -> None:
    result = why.read(of(method))
    rate = result.settings["learning_rate"] * float(result.settings["eta"])  # constant until epoch 21, no warmup
    early = [record for record in why.with_shares(result) if record["epoch"] < 20]
    assert len(early) > 5
    for layer in (layer for record in early for layer in record["layers"].values()):
        expected = layer["share"] * rate * layer["weight_norm"] / layer["gradient_norm"]
        assert layer["gamma"] == pytest.approx(expected, rel=1e-3)


def test_a_picture_is_drawn_of_two_results(why: ModuleType, tmp_path: Path) -> None:
    figure = why.draw([why.read(of("lars")), why.read(of("clars"))])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == ["lars: M_k", "lars: share of γ_scale η", "lars: γ_k"]
    assert titles[4] == "clars: ρ_k, the share of γ_scale η"
    assert all(len(axis.lines) == 5 for axis in figure.axes)
    above, below = figure.axes[:3], figure.axes[3:6]
    assert [axis.get_ylim() for axis in above] == [axis.get_ylim() for axis in below]
    assert why.save(figure, tmp_path / "why.svg").exists()


def test_what_cannot_be_drawn_is_refused_in_a_line(
    why: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = tmp_path / "lacking.json"
    lacking.write_text(json.dumps({**json.loads(of("clars").read_text()), "layers": []}))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    steps = "layer_statistics_steps"
    for path, said in [(lacking, steps), (of("mnag"), steps), (broken, "cannot be read"), (tmp_path / "no", "no")]:
        monkeypatch.setattr(sys, "argv", ["why.py", str(path), "--out", str(tmp_path / "why.png")])
        with pytest.raises(SystemExit, match="2"):
            why.main()
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "why.png").exists()


def test_a_share_that_is_not_known_is_left_out(why: ModuleType, tmp_path: Path) -> None:
    whole = json.loads(of("clars").read_text(encoding="utf-8"))
    first, second, *_ = whole["layers"][0]["layers"].values()
    first["denominator"] = 0.0
    del second["denominator"]
    path = tmp_path / "dead.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    shares = ["share" in layer for layer in why.with_shares(why.read(path))[0]["layers"].values()]
    assert shares == [False, False, True, True, True]
    lars = json.loads(of("lars").read_text(encoding="utf-8"))
    lars["settings"]["decay_in_denominator"] = False
    path.write_text(json.dumps(lars), encoding="utf-8")
    assert {layer["share"] for layer in why.with_shares(why.read(path))[0]["layers"].values()} == {1.0}
