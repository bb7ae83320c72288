"""Runs that the real W&B client wrote on this machine, whole, resumed, killed and damaged."""

import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from hf_clars import UserError
from hf_clars.comparison.runs import AXES
from hf_clars.comparison.sources import read_sources
from hf_clars.comparison.sources.rows import Unreadable
from hf_clars.comparison.sources.wandb_offline import read_log

from .helpers.comparison import environment, points

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
import sys, time, wandb
run_id, first, last, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
run = wandb.init(project="p", id=run_id, resume="allow", config={"seed": 0})
for s in range(first, last + 1):
    run.log({"train/loss": 100 * first + s, "train/global_step": s, "layers/gamma/head.weight": float(s)})
if end == "diverged":
    run.summary["diverged"] = True
if end == "wait":
    for _ in range(30):  # W&B writes what fills a block of 32 KiB, and the rest only every few seconds
        run.log({"text": "words " * 1000, "train/global_step": last})
    print("logged", flush=True)
    time.sleep(600)
if end == "raise":
    raise RuntimeError("trouble")
run.finish(exit_code=0)
"""


def write(folder: Path, script: str, *arguments: str, status: int = 0) -> None:
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, env=environment(folder), capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stderr[-3000:]


def write_and_kill(folder: Path, *arguments: str) -> None:
    """A run whose processes, W&B's own included, are killed when all its rows are on disk."""
    process = subprocess.Popen(
        [sys.executable, "-c", PART, *arguments, "wait"], cwd=folder, env=environment(folder), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "logged\n"
    wanted = int(arguments[2]) - int(arguments[1]) + 1
    end = time.monotonic() + 60
    while max((rows_in(log) for log in folder.glob(f"wandb/*{arguments[0]}/*.wandb")), default=0) < wanted:
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def rows_in(log: Path) -> int:
    try:
        return sum(record.WhichOneof("record_type") == "history" for record in read_log(log))
    except Unreadable:
        return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A `wandb/` folder with one whole run, one that was killed, one that was killed and resumed, and others."""
    place = tmp_path_factory.mktemp("wandb runs")
    write(place, WHOLE)
    write_and_kill(place, "killed", "1", "5")
    write_and_kill(place, "resumed", "1", "6")
    write(place, PART, "bad", "1", "2", "diverged")
    write(place, PART, "wrong", "1", "2", "raise", status=1)
    write(place, PART, "resumed", "5", "7", "end")
    return place


@pytest.fixture(scope="module")
def runs(folder):
    found, unreadable = read_sources([str(folder / "wandb")])
    assert unreadable == []
    return {run.source.rpartition("-")[2] if run.name != "the name" else "whole": run for run in found}


def test_a_whole_run(runs, folder):
    run = runs["whole"]
    assert run.name == "the name"
    assert Path(run.source).parent == folder / "wandb"
    assert run.config == {
        "optim": "clars", "seed": 3, "total_batch_size": 64, "lr_scheduler_kwargs.power": 1.0, "names": ["a", "b"],
        "none": None, "late": True,
    }  # fmt: skip
    assert list(run.history["step"]) == [0, 2, 4, 6, 8]
    assert points(run, "train/loss") == ([2, 4, 8], [0.5, 0.25, 0.125])
    assert points(run, "eval/accuracy", "epoch") == ([1.0, 2.0], [0.25, 0.5])
    assert points(run, "eval/accuracy", "images") == ([128, 256], [0.25, 0.5])
    assert points(run, "test/accuracy") == ([8], [0.75])  # it says no step: that of the row before
    assert points(run, "test/early") == ([0], [7.0])
    assert sorted(set(run.history) - set(AXES)) == [
        "a.b.c", "eval/accuracy", "eval/loss", "some", "test/accuracy", "test/early", "train/loss",
    ]  # fmt: skip
    assert math.isnan(run.history["train/loss"][3])
    assert run.history["eval/loss"][3] == -math.inf
    assert run.history["some"][3] == math.inf
    seconds, _ = points(run, "train/loss", "seconds")
    assert len(seconds) == 3
    assert 0 < seconds[0] <= seconds[-1] < 60
    assert {name: frame.to_dict() for name, frame in run.layers.items()} == {"gamma": {"head.weight": {2: 0.2, 4: 0.4}}}
    assert run.state == "finished"


def test_how_runs_ended(runs):
    assert {name: run.state for name, run in runs.items()} == {
        "whole": "finished", "killed": "running", "resumed": "finished", "bad": "diverged", "wrong": "failed",
    }  # fmt: skip


def test_a_killed_run_has_all_that_was_logged(runs):
    assert points(runs["killed"], "train/loss") == ([1, 2, 3, 4, 5], [101, 102, 103, 104, 105])


def test_a_resumed_run_is_one_and_its_later_part_wins(runs):
    run = runs["resumed"]
    assert points(run, "train/loss") == ([1, 2, 3, 4, 5, 6, 7], [101, 102, 103, 104, 505, 506, 507])
    assert list(run.layers["gamma"].index) == [1, 2, 3, 4, 5, 6, 7]
    assert run.history["seconds"].is_monotonic_increasing


def test_a_run_that_was_resumed_from_an_earlier_step_has_nothing_of_the_lost_ones(tmp_path, folder):
    """Steps 5 and 6 of the part that was killed are not in a part that ends at 5."""
    shutil.copytree(folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(max((tmp_path / "wandb").glob("*-resumed")))
    write(tmp_path, PART, "resumed", "5", "5", "end")
    found, unreadable = read_sources([str(tmp_path / "wandb")])
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
    for log in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))[:2]:  # a whole run, and one that was killed
        printed = subprocess.run(
            [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(log)],
            env=environment(folder), capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        theirs = [json.loads(line) for line in printed]
        ours = list(read_log(log))
        assert [record.WhichOneof("record_type") for record in ours] == [record["type"] for record in theirs]
        for mine, its in zip(ours, theirs, strict=True):
            if its["type"] == "history":
                values = {".".join(i.nested_key) or i.key: i.value_json for i in mine.history.item}
                assert {k: _comparable(json.loads(v)) for k, v in values.items()} == {
                    k: _comparable(v) for k, v in its["history"]["item"].items()
                }


def _comparable(value):
    return str(value).replace("nan", "NaN").replace("inf", "Infinity") if isinstance(value, str | float) else value


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path, folder) -> Path:
    """Of a run of three rows, from 5 to 7, whole."""
    return Path(shutil.copy(max((folder / "wandb").glob("*-resumed/*.wandb")), tmp_path / "run-resumed.wandb"))


def test_a_log_that_ends_anywhere_is_the_run_until_there(log):
    content = log.read_bytes()
    counts = []
    for length in range(7, len(content) + 1, 3):
        log.write_bytes(content[:length])
        counts.append(rows_in(log))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert 3 in counts
    for tail in (b"", bytes(4096)):  # the machine stopped; the file system had set room aside
        log.write_bytes(content[:-2] + tail)
        (run,), unreadable = read_sources([str(log)])
        assert points(run, "train/loss") == ([5, 6, 7], [505, 506, 507])
        assert run.state == "running"
        assert unreadable == []


def test_a_flipped_bit_is_noticed_wherever_it_is(log):
    content = log.read_bytes()
    whole = [record.SerializeToString(deterministic=True) for record in read_log(log)]
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 4
        log.write_bytes(damaged)
        try:
            records = [record.SerializeToString(deterministic=True) for record in read_log(log)]
        except Unreadable:
            pass
        else:
            assert records == whole[: len(records)]
            assert len(records) < len(whole) or position == 6  # the byte of the format's version, which says nothing


@pytest.fixture
def copy(tmp_path, folder) -> Path:
    return Path(shutil.copytree(folder / "wandb", tmp_path / "wandb", symlinks=True))


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


@pytest.mark.parametrize("value", ["{", "[" * 20_000, "1" * 5000])
def test_values_that_are_no_json_are_named(tmp_path, value):
    """In a log whose checksums are right."""
    from wandb.proto.wandb_internal_pb2 import HistoryItem, HistoryRecord, Record, RunRecord

    content = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
    history = HistoryRecord(item=[HistoryItem(key="loss", value_json=value)])
    for record in (Record(run=RunRecord(run_id="x")), Record(history=history)):
        data = record.SerializeToString()
        content += struct.pack("<IHB", zlib.crc32(data, zlib.crc32(b"\x01")), len(data), 1) + data
    (tmp_path / "run-x.wandb").write_bytes(content)
    with pytest.raises(UserError, match=r"no run in .*run-x\.wandb is damaged, or something else"):
        read_sources([str(tmp_path / "run-x.wandb")])


def test_only_damaged_runs_are_no_runs(log):
    log.write_bytes(b"")
    with pytest.raises(UserError, match=r"no run in .*1 could not be read: .*the file is empty"):
        read_sources([str(log)])
