"""The examples run: a few steps of each here, each as it stands among the slow tests."""

import functools
import json
import re
from pathlib import Path

import pytest
import transformers

import hf_clars

from .helpers.scripts import module_of, run_python

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))
NOTEBOOK = FOLDER / "layers.ipynb"
NEEDS = {"peft_lora.py": "peft"}

# The last line of each, and what its number must be at least (or at most, where less is better).
RESULTS = {
    "accelerate_loop.py": (r"accuracy on the test images: ([\d.]+)%", 60, 100),
    "language_model.py": (r"bits a byte on held-out text: ([\d.]+)", 0, 4.5),
    "noise_statistics.py": (r"\n +\d+ +([\d,]+) +[\d,]+ \(vit", 1, 100_000),
    "own_sampler.py": (r"5 parameters: (\d) right, 0 wrong", 5, 5),
    "peft_lora.py": (r"before, ([\d.]+) after", 0, 4.5),
    "vit.py": (r"accuracy on the test images: ([\d.]+)%", 50, 100),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.usefixtures("new_accelerator")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_few_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    module = module_of(FOLDER / name)
    fewer = {
        "TrainingArguments": functools.partial(transformers.TrainingArguments, max_steps=2),
        "GradientStatisticsCallback": lambda every: hf_clars.GradientStatisticsCallback(every=2),
        "EPOCHS": 1,
    }
    for attribute, value in fewer.items():
        if hasattr(module, attribute):
            monkeypatch.setattr(module, attribute, value)
    module.main()
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_as_it_stands(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    printed = run_python(FOLDER / name, cwd=tmp_path).stdout
    pattern, least, most = RESULTS[name]
    found = re.findall(pattern, printed)
    assert found, printed[-2000:]
    assert least <= float(found[-1].replace(",", "")) <= most


@pytest.mark.slow
def test_the_notebook(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    script = tmp_path / "layers.py"
    script.write_text(
        f"import os\nimport matplotlib\nmatplotlib.use('agg')\nos.chdir({str(FOLDER)!r})\n"
        + text.replace('"outputs/examples/layers"', repr(str(tmp_path / "outputs")))
        + "\nprint(ratio.groupby(records['step']).median().iloc[[0, -1]].to_list())\n"
    )
    first, last = json.loads(run_python(script, cwd=tmp_path).stdout.strip().splitlines()[-1])
    assert 0 < last < first <= 1  # what the notebook says of ρ_k


def test_every_example_is_in_the_table() -> None:
    listed = set(re.findall(r"\]\(([\w.]+)\)", (FOLDER / "README.md").read_text()))
    assert listed == {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")}
