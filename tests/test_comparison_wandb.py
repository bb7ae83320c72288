"""Runs that the real W&B client wrote on this machine, whole, resumed, killed and damaged."""

import json
import math
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from hf_clars import UserError
from hf_clars.comparison.runs import AXES
from hf_clars.comparison.sources import read_sources
from hf_clars.comparison.sources.rows import Unreadable
from hf_clars.comparison.sources.wandb_offline import read_log

from .helpers.comparison import points
from .helpers.processes import run_script

WHOLE = """
import math, wandb
run = wandb.init(project="p", name="the name", config={"optim": "clars", "seed": 3, "total_batch_size": 64,
                 "lr_scheduler_kwargs": {"power": 1.0}, "id2label": {"0": "cat"}, "names": ["a", "b"], "none": None})
run.define_metric("train/global_step")
run.define_metric("*", step_metric="train/global_step", step_sync=True)
run.log({"test/early": 7.0})
for s in (2, 4):
    run.log({"train/loss": 1 / s, "train/epoch": s / 2, "train/global_step": s, "text": "words", "a": {"b": {"c": s}}})
    run.log({"layers/gamma/head.weight": s / 10, "layers/gamma/conv.weight": math.nan, "train/global_step": s})
    run.log({"eval/accuracy": s / 8, "train/epoch": s / 2, "train/global_step": s})
run.log({"train/loss": math.nan, "eval/loss": -math.inf, "some": math.inf, "train/global_step": 6})
run.log({"train/loss": 0.125, "eval/loss": 0.5, "train/global_step": 8, "images": wandb.Histogram([1, 2, 3]),
         "table": wandb.Table(columns=["x"], data=[[1]])})
run.log({"test/accuracy": 0.75})
run.config.update({"late": True})
run.finish()
"""

PART = """
import os, signal, sys, time, wandb
from pathlib import Path
from tests.test_comparison_wandb import rows_in
run_id, first, last, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.setpgid(0, 0)
run = wandb.init(project="p", id=run_id, resume="allow", config={"seed": 0})
for s in range(first, last + 1):
    run.log({"train/loss": 100 * first + s, "train/global_step": s, "layers/gamma/head.weight": float(s)})
if end == "killed":  # with W&B's own processes, once all rows are on disk
    for _ in range(30):  # W&B writes what fills a block of 32 KiB, and the rest only every few seconds
        run.log({"text": "words " * 1000, "train/global_step": last})
    while max(map(rows_in, Path().glob(f"wandb/*{run_id}/*.wandb")), default=0) < last - first + 1:
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)
run.summary["diverged"] = end == "diverged"
run.finish(exit_code=1 if end == "failed" else 0)
"""


def rows_in(log: Path) -> int:
    try:
        return sum(record.WhichOneof("record_type") == "history" for record in read_log(log))
    except Unreadable:
        return 0


def write(folder: Path, script: str, *words: str) -> None:
    status = -9 if "killed" in words[3:] else 0
    run_script(script, folder, *words, environment={"WANDB_MODE": "offline"}, status=status)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A `wandb/` folder with one whole run, one that was killed, one that was killed and resumed, and others."""
    place = tmp_path_factory.mktemp("wandb runs")
    write(place, WHOLE)
    write(place, PART, "killed", "1", "5", "killed")
    write(place, PART, "resumed", "1", "6", "killed")
    write(place, PART, "bad", "1", "2", "diverged")
    write(place, PART, "wrong", "1", "2", "failed")
    write(place, PART, "resumed", "5", "7", "")
    return place


@pytest.fixture
def copy(tmp_path, folder) -> Path:
    return Path(shutil.copytree(folder / "wandb", tmp_path / "wandb", symlinks=True))


@pytest.fixture
def log(tmp_path, folder) -> Path:
    """Of a run of three rows, from 5 to 7, whole."""
    return Path(shutil.copy(max((folder / "wandb").glob("*-resumed/*.wandb")), tmp_path / "run-resumed.wandb"))


@pytest.fixture(scope="module")
def runs(folder):
    found, unreadable = read_sources([str(folder / "wandb")])
    assert unreadable == []
    return {run.source.rpartition("-")[2] if run.name != "the name" else "whole": run for run in found}


def test_a_whole_run(runs, folder):
    run = runs["whole"]
    assert (run.name, Path(run.source).parent) == ("the name", folder / "wandb")
    assert run.config == {
        "optim": "clars", "seed": 3, "total_batch_size": 64, "lr_scheduler_kwargs.power": 1.0, "names": ["a", "b"],
        "none": None, "late": True,
    }  # fmt: skip
    assert list(run.history["step"]) == [0, 2, 4, 6, 8]
    for metric, axis, xs, ys in (
        ("train/loss", "step", [2, 4, 8], [0.5, 0.25, 0.125]),
        ("eval/accuracy", "epoch", [1.0, 2.0], [0.25, 0.5]),
        ("eval/accuracy", "images", [128, 256], [0.25, 0.5]),
        ("test/accuracy", "step", [8], [0.75]),  # it says no step: that of the row before
        ("test/early", "step", [0], [7.0]),
    ):
        assert points(run, metric, axis) == (xs, ys)
    metrics = {"a.b.c", "eval/accuracy", "eval/loss", "some", "test/accuracy", "test/early", "train/loss"}
    assert set(run.history) - set(AXES) == metrics
    assert math.isnan(run.history["train/loss"][3])
    assert (run.history["eval/loss"][3], run.history["some"][3]) == (-math.inf, math.inf)
    seconds, _ = points(run, "train/loss", "seconds")
    assert 0 < seconds[0] <= seconds[1] <= seconds[2]
    assert {name: frame.to_dict() for name, frame in run.layers.items()} == {"gamma": {"head.weight": {2: 0.2, 4: 0.4}}}


def test_how_runs_ended_and_what_of_them_counts(runs):
    """A killed run has all that was logged; of a resumed one the later part wins."""
    assert {name: run.state for name, run in runs.items()} == {
        "whole": "finished", "killed": "running", "resumed": "finished", "bad": "diverged", "wrong": "failed",
    }  # fmt: skip
    assert points(runs["killed"], "train/loss") == ([1, 2, 3, 4, 5], [101, 102, 103, 104, 105])
    run = runs["resumed"]
    assert points(run, "train/loss") == ([1, 2, 3, 4, 5, 6, 7], [101, 102, 103, 104, 505, 506, 507])
    assert list(run.layers["gamma"].index) == [1, 2, 3, 4, 5, 6, 7]
    assert run.history["seconds"].is_monotonic_increasing


def test_a_run_that_was_resumed_from_an_earlier_step_has_nothing_of_the_lost_ones(copy, tmp_path):
    """Steps 5 and 6 of the part that was killed are not in a part that ends at 5."""
    shutil.rmtree(max(copy.glob("*-resumed")))
    write(tmp_path, PART, "resumed", "5", "5", "")
    found, unreadable = read_sources([str(copy)])
    assert unreadable == []
    (run,) = [run for run in found if run.source.endswith("-resumed")]
    assert points(run, "train/loss") == ([1, 2, 3, 4, 5], [101, 102, 103, 104, 505])


@pytest.mark.parametrize(
    "places", [["."], ["wandb"], ["wandb/*-killed"], ["wandb/*-killed/*.wandb"], ["wandb", "*/*-killed"]]
)
def test_places_that_hold_runs(folder, monkeypatch, places):
    monkeypatch.chdir(folder)
    found, _ = read_sources([str(next(Path().glob(place))) if "*" in place else place for place in places])
    assert len(found) == (1 if "killed" in places[0] else 5)


def test_records_are_those_of_wandbs_own_reader(folder):
    """`wandb leet inspect --json` is W&B's; this fails where the log's format, or the messages in it, change."""

    def plain(value):
        return str(value).replace("nan", "NaN").replace("inf", "Infinity") if isinstance(value, str | float) else value

    for log in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))[:2]:  # a whole run, and one that was killed
        command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(log)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        theirs, ours = [json.loads(line) for line in printed.splitlines()], list(read_log(log))
        assert [record.WhichOneof("record_type") for record in ours] == [record["type"] for record in theirs]
        for mine, its in zip(ours, theirs, strict=True):
            if its["type"] == "history":
                values = {".".join(i.nested_key) or i.key: plain(json.loads(i.value_json)) for i in mine.history.item}
                assert values == {k: plain(v) for k, v in its["history"]["item"].items()}


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_log_that_ends_anywhere_is_the_run_until_there(log):
    content = log.read_bytes()
    counts = []
    for length in range(7, len(content) + 1, 3):
        log.write_bytes(content[:length])
        counts.append(rows_in(log))
    assert counts == sorted(counts)
    assert (counts[0], max(counts)) == (0, 3)
    for tail in (b"", bytes(4096)):  # the machine stopped; the file system had set room aside
        log.write_bytes(content[:-2] + tail)
        (run,), unreadable = read_sources([str(log)])
        assert points(run, "train/loss") == ([5, 6, 7], [505, 506, 507])
        assert (run.state, unreadable) == ("running", [])


def test_a_flipped_bit_is_noticed_wherever_it_is(log):
    content = log.read_bytes()
    whole = [record.SerializeToString(deterministic=True) for record in read_log(log)]
    for position in [*range(64), *range(64, len(content), 3)]:
        damaged = bytearray(content)
        damaged[position] ^= 4
        log.write_bytes(damaged)
        try:
            records = [record.SerializeToString(deterministic=True) for record in read_log(log)]
        except Unreadable:
            continue
        assert records == whole[: len(records)]
        assert len(records) < len(whole) or position == 6  # the byte of the format's version, which says nothing


def test_a_damaged_run_is_named_and_the_others_are_read(copy):
    """A run of which a part is damaged is not compared, either."""
    for name, spoil in {
        "killed": lambda content: content[:300] + bytes([content[300] ^ 1]) + content[301:],
        "bad": lambda content: b"",
        "wrong": lambda content: b"something else",
        "resumed": lambda content: content[:9] + b"??" + content[11:],
    }.items():
        file = min(copy.glob(f"*-{name}/*.wandb"))
        file.write_bytes(spoil(file.read_bytes()))
    found, unreadable = read_sources([str(copy)])
    assert [run.name for run in found] == ["the name"]
    told = "\n".join(unreadable)
    assert len(unreadable) == 5
    for line in (
        "run-killed.wandb: damaged at byte", "run-bad.wandb: the file is empty", "run-wrong.wandb: not a W&B log",
        "run-resumed.wandb: damaged at byte", "run-resumed.wandb: not compared without the part that cannot be read",
    ):  # fmt: skip
        assert line in told


@pytest.mark.parametrize("length", [0, 3, 7, 40])
def test_a_part_that_was_killed_before_it_logged_anything_is_no_loss(copy, length):
    (log,) = copy.glob("*-killed/*.wandb")
    part = copy / "offline-run-20991231_000000-killed"
    part.mkdir()
    (part / log.name).write_bytes(log.read_bytes()[:length])
    found, unreadable = read_sources([str(copy)])
    assert (len(found), unreadable) == (5, [])
    assert points(next(run for run in found if run.name == "killed"), "train/loss")[0] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("value", ["{", "[" * 20_000, "1" * 5000, None])
def test_only_damaged_runs_are_no_runs(tmp_path, value):
    """An empty log, and values that are no JSON in one whose checksums are right."""
    from wandb.proto.wandb_internal_pb2 import HistoryItem, HistoryRecord, Record, RunRecord

    content = b""
    if value is not None:
        content = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
        history = HistoryRecord(item=[HistoryItem(key="loss", value_json=value)])
        for record in (Record(run=RunRecord(run_id="x")), Record(history=history)):
            data = record.SerializeToString()
            content += struct.pack("<IHB", zlib.crc32(data, zlib.crc32(b"\x01")), len(data), 1) + data
    (tmp_path / "run-x.wandb").write_bytes(content)
    why = "the file is empty" if value is None else r"run-x\.wandb is damaged, or something else"
    with pytest.raises(UserError, match=f"no run in .*{why}"):
        read_sources([str(tmp_path / "run-x.wandb")])
