"""The benchmarks' own arithmetic, and each of them end to end at a size that a CPU can bear."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parents[1] / "recipes" / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
import memory  # noqa: E402
import norms  # noqa: E402
import norms_methods  # noqa: E402
import optimizer_step  # noqa: E402
import roofline  # noqa: E402
import scaling  # noqa: E402
import scaling_model  # noqa: E402
import timing  # noqa: E402
from roofline_account import BACKWARD, FORWARD, OPTIMIZER, OTHER, account  # noqa: E402

from hf_clars.errors import UserError  # noqa: E402

from .helpers.scripts import run_python  # noqa: E402

# --- FLOPs and bytes ------------------------------------------------------------------------------------------------


def work(model, x):
    """(FLOPs, bytes) by kind."""
    counted = account(model, lambda forward, x, y: forward(x).sum(), x, x)
    return {kind: tuple(map(sum, zip(*operators, strict=True))) for kind, operators in counted.items()}


def test_convolutions_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.Conv2d(8, 16, 1, bias=False))
    found = work(model, torch.randn(4, 3, 10, 10))
    x, y, z = 4 * 3 * 100, 4 * 8 * 25, 4 * 16 * 25  # numbers
    first, second, w, v = 2 * 4 * 8 * 3 * 9 * 25, 2 * 4 * 16 * 8 * 25, 8 * 27, 128
    assert found[FORWARD] == (first + second, 4 * (x + w + y + y + v + z))
    # Nobody asks for the derivative of the images. That of a sum is one number, expanded.
    assert found[BACKWARD] == (first + 2 * second, 4 * ((x + y + w) + (1 + y + v) + (1 + v + y)))
    assert found[OPTIMIZER] == (0, 20 * (w + v))
    assert all(p.grad is None for p in model.parameters())


def test_what_is_bound_by_memory_by_hand():
    found = work(
        nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Sigmoid(), nn.Linear(4, 1)), torch.randn(8, 4)
    )
    one = 4 * 8 * 4  # bytes of an activation
    # ReLU and sigmoid read one and write one in forward, and read two and write one in backward. The last layer's bias
    # is a sum over the derivative, one number expanded; the loss is a sum of eight numbers, its derivative one.
    assert found[OTHER][0] == 0
    assert 10 * one < found[OTHER][1] < 11 * one


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_torch_counts_the_same(name):
    timm = pytest.importorskip("timm")
    model, x = timm.create_model(name, num_classes=10), torch.randn(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    ours = sum(flops for flops, _ in work(model, x).values())
    if name == "resnet18":
        assert ours == counter.get_total_flops()
    else:  # attention on a CPU has no formula in torch
        assert ours > counter.get_total_flops()


def test_groups():
    """torch has the weight gradient `groups` times."""
    found = work(nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), torch.randn(4, 32, 6, 6))
    assert found[FORWARD][0] == found[BACKWARD][0] == 2 * 4 * 36 * 32 * 9


def test_time_at_the_roofline_is_a_sum_over_operators():
    rows = roofline.rows_of({"a": [(100, 1), (1, 100)], "b": [(0, 50)]}, peak=10, bandwidth=5)
    assert [(row["kind"], row["ms"]) for row in rows] == [("a", 30e3), ("b", 10e3), ("whole step", 40e3)]
    assert [rows[2]["gflop"], rows[2]["gb"]] == [101e-9, 151e-9]


def test_kernels_of_a_step(tmp_path):
    model, x, y = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)), torch.randn(2, 3, 8, 8), None
    steps = roofline.trainings(model, x, y, lambda model, x, y: model(x).square().sum(), compiled=False)
    found = {n: roofline.kernels(step, x.device, tmp_path / f"{n}.json.gz") for n, step in steps.items()}
    for of in found.values():
        names = [kernel["kernel"] for kernel in of]
        assert {"aten::convolution_backward", "aten::addmm"} <= {*names}
        assert [kernel["ms"] for kernel in of] == sorted((kernel["ms"] for kernel in of), reverse=True)
    assert any("CLARS" in kernel["kernel"] for kernel in found["norms"])
    assert len([*tmp_path.iterdir()]) == 2


# --- ratios ---------------------------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_ratios_are_those_within_a_round():
    order = []
    found = timing.interleaved({name: lambda name=name: order.append(name) or len(order) for name in "abc"}, 20)
    assert all({*order[i : i + 3]} == {*"abc"} for i in range(0, 60, 3))
    assert len({tuple(order[i : i + 3]) for i in range(0, 60, 3)}) > 1
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(1, 61))
    assert timing.ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_steps():
    calls = []
    seconds, launched, result = timing.waited_for(lambda: calls.append(1) or "done", torch.device("cpu"))
    assert result == "done"
    assert seconds >= launched > 0
    assert timing.in_a_row(lambda: calls.append(1), 7) > 0
    assert len(calls) >= 8


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


@pytest.mark.parametrize("method", ["per_sample", "bias_and_norm", "vmap", "loop"])
def test_methods_measure_the_same_and_leave_the_gradient(method):
    x, y = torch.randn(5, 3, 8, 8), torch.randint(3, (5,))
    exact = norms_methods.exact_norms(Small(), x, y)
    assert {name: norm.shape for name, norm in exact.items()} == {"0.weight": (5,), "3.weight": (5,)}
    torch.manual_seed(0)
    model, twin = Small(), Small()
    twin.load_state_dict(model.state_dict())
    tools = norms_methods.Tools(lambda forward, x, y: F.cross_entropy(forward(x), y), lambda function: function)
    found = norms_methods.METHODS[method](model, tools)(x, y)
    for name, parameter in twin.named_parameters():
        expected = [torch.autograd.grad(F.cross_entropy(twin(x[i : i + 1]), y[i : i + 1]) / 5, parameter)[0].norm()
                    for i in range(5)]  # fmt: skip
        if parameter.ndim > 1 or method != "per_sample":
            torch.testing.assert_close(found[name], torch.stack(expected), rtol=1e-4, atol=1e-6)
    F.cross_entropy(twin(x), y).backward()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_a_comparison_of_methods(monkeypatch):
    monkeypatch.setitem(norms.METHODS, "absent", lambda model, tools: __import__("no_such_package"))
    monkeypatch.setitem(norms.METHODS, "broken", lambda model, tools: 1 / 0)
    x, y = torch.randn(4, 3, 8, 8), torch.randint(3, (4,))
    options = Namespace(no_error=False, rounds=3, in_a_row=2, batch_size=4)
    tools = norms_methods.Tools(lambda forward, x, y: F.cross_entropy(forward(x), y), lambda function: function)
    rows, refused = norms.compare(options, ["per_sample", "absent", "broken"], Small(), x, y, tools)
    assert refused == {
        "absent": "not installed (No module named 'no_such_package')", "broken": "ZeroDivisionError: division by zero",
    }  # fmt: skip
    plain, ours = rows
    assert (plain["method"], ours["method"]) == ("plain", "per_sample")
    assert plain["time"] == plain["memory"] == plain["in_a_row"] == 1.0
    assert ours["time"] == timing.ratio(ours["seconds"], plain["seconds"])
    assert len(ours["seconds"]) == len(ours["launched_seconds"]) == len(ours["in_a_row_seconds"]) == 3
    assert (ours["weights"], plain["weights"]) == ("2/2", "0/2")
    assert ours["error"] < 1e-4
    assert ours["peak_mib"] == pytest.approx(ours["memory"] * plain["peak_mib"])
    assert plain["peak_mib"] > 0


def test_scaling():
    """The table of docs/results/scaling.md."""
    model = scaling_model.Model("resnet50", 25_557_032, 54, 53_120, 2500.0, 1.03)
    network = scaling_model.Network(8, 360e9, 40e9, scaling.PROTOCOLS)
    options = Namespace(micro_batch=256, half_saturation=16.0, memory_bandwidth=3350.0, bucket=25.0, backward=2 / 3,
                        decode_rate=None, epochs=90, stop=0.5, node=8)  # fmt: skip
    rows = [scaling_model.step(model, network, 16384, gpus, options) for gpus in (8, 64, 256, 1024)]
    assert [(row["micro_batch"], row["accumulation"]) for row in rows] == [(256, 8), (256, 1), (64, 1), (16, 1)]
    assert [round(row["gradient_mb"]) for row in rows] == [179, 201, 204, 204]
    assert [f"{row['clars_ms']:.2f}" for row in rows] == ["0.03", "0.06", "0.08", "0.10"]
    assert [f"{row['efficiency']:.0%}" for row in rows] == ["100%", "99%", "83%", "50%"]
    assert [f"{row['hours']:.2f}" for row in rows] == ["1.75", "0.22", "0.07", "0.03"]
    assert scaling_model.stops(model, network, 16384, options) == 2048
    assert scaling_model.step(model, network, 16384, 3, options) == {"gpus": 3}
    assert scaling_model.buckets(60.0 * scaling_model.MIB, 25.0 * scaling_model.MIB) == [
        size * scaling_model.MIB for size in (1, 25, 25, 9)
    ]


# --- the commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (roofline, ["--gpu", "gtx"], "--gpu: invalid choice: 'gtx'"),
        (roofline, ["--models", "alexnet"], "--models: invalid choice: 'alexnet'"),
        (roofline, ["--device", "cuda:7"], "--device: cuda:7 is not available here"),
        (roofline, ["--peak_tflops", "-1"], "--peak_tflops must be positive"),
        (roofline, ["--width", "100"], "--width 100 must be a multiple of 64"),
        (norms, ["--in_a_row", "-1"], "--in_a_row: -1 must be a whole number of at least 1"),
        (norms, ["--json", "."], "--json: . is a folder: name a file in it"),
        (norms, ["--image_size", "40"], "--image_size 40 must be a multiple of 16 for vit_small"),
        (optimizer_step, ["--models", "resnet0"], "--models: resnet0 is no timm model"),
        (memory, ["--micro_batch", "x"], "--micro_batch: x must be a whole number of at least 1"),
        (scaling, ["--measure"], "--measure compares processes: start it with torchrun"),
        (gpu, ["--only", "nothing"], "--only: invalid choice: 'nothing'"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(module, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(UserError, match=message) as error:
        module.main()
    assert "\n" not in str(error.value)
    assert [*tmp_path.iterdir()] == []


def test_what_fails_or_takes_too_long_stops_no_other(monkeypatch, tmp_path, capsys):
    runs = {"fails": (20, "-m nothing_of_this_name", ""), "hangs": (0.4, "-m timeit -n 1 'while True: pass'", ""),
            "works": (20, "-m this", "")}  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "RUNS", runs)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu.main() == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "fails        exit status 1", "hangs        took too long", "works        ok",
    ]  # fmt: skip
    assert "Beautiful is better" in (tmp_path / "works.log").read_text()


def benchmark(*command, cwd):
    return run_python(*command, cwd=cwd).stdout


@pytest.mark.slow
def test_architectures_go_on_where_they_ended(tmp_path):
    command = (BENCHMARKS / "architectures.py", "--image_size", 32, "--rounds", 1, "--names", "timm/test_resnet")

    def rows():
        return json.loads((tmp_path / "architectures.json").read_text())["architectures"]

    assert "timm/test_resnet" in benchmark(*command, "--batch_size", 2, cwd=tmp_path)
    first = rows()
    assert all(first["timm/test_resnet"][ratio] > 0 for ratio in ("time", "subset", "memory"))
    printed = benchmark(*command, "timm/test_vit", "--batch_size", 2, cwd=tmp_path)
    assert rows() == {**first, "timm/test_vit": rows()["timm/test_vit"]}
    assert "slowest first" in printed
    refused = run_python(*command, "--batch_size", 4, cwd=tmp_path, status=2)
    assert refused.stderr.splitlines()[-1] == "error: architectures.json has batch_size=2: name another with --json"


@pytest.mark.slow
def test_everything_that_is_for_a_gpu(tmp_path):
    """But for what is compiled."""
    some = ["norms", "step", "roofline", "large-step", "kernels", "fused"]
    text = benchmark(BENCHMARKS / "gpu.py", "--tiny", "--out", tmp_path, "--only", *some, cwd=tmp_path)
    assert [line.split() for line in text.splitlines()[-6:]] == [[name, "ok"] for name in some]
    of = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("norms", "step", "large-step")}
    assert all({"command", "commit", "hardware", "versions", "options"} <= result.keys() for result in of.values())
    plain, ours = of["norms"]["models"]["resnet18"]["rows"]
    assert (plain["weights"], ours["weights"], ours["batch_norm"]) == ("0/21", "21/21", "train")
    rows = {row["optimizer"]: row for row in of["step"]["tables"][0]["rows"]}
    assert rows["torch SGD foreach"]["to_foreach"] == rows["torch SGD fused"]["to_fused"] == 1.0
    clars, sgd = rows["hf_clars CLARS"]["seconds"], rows["torch SGD foreach"]["seconds"]
    assert rows["hf_clars CLARS"]["to_foreach"] == timing.ratio(clars, sgd)
    for row, optim in zip(of["large-step"]["rows"], ("mnag", "clars"), strict=True):
        assert (row["optim"], row["accumulation"], row["total_batch_size"]) == (optim, 2, 8)
        assert len(row["seconds"]) == 3
        assert row["images_per_second"] == pytest.approx(8 / row["seconds_a_step"])
        assert row["host_peak_mib"] > 100
    found = json.loads((tmp_path / "roofline" / "roofline.json").read_text())["models"]["resnet18"]
    assert found["account"][-1]["kind"] == "whole step"
    assert {name for name in found["measured"] if found["measured"][name]} == {"plain", "norms"}


@pytest.mark.slow
def test_the_input(tmp_path):
    benchmark(BENCHMARKS / "input.py", "--images", 250, "--rounds", 1, "--seconds", 0.5, "--workers", 1, cwd=tmp_path)
    found = json.loads((tmp_path / "input.json").read_text())
    (row,) = found["pipeline"]
    assert row["ratio"] == row["pipeline"] / row["bare"] > 0
    assert {"Pillow", "Pillow, cropped by Pillow", "torchvision.io"} <= found["decoders"].keys()


@pytest.mark.slow
def test_all_reduces_of_two_processes(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    benchmark(*launch, BENCHMARKS / "scaling.py", "--measure", "--models", "resnet50", cwd=tmp_path)
    found = json.loads((tmp_path / "scaling.json").read_text())
    rows = {row["message"]: row for row in found["rows"]}
    assert {"resnet50: CLARS's vector", "64 bytes", "67,108,864 bytes"} <= rows.keys()
    for fitted in ("64 bytes", "67,108,864 bytes"):
        assert rows[fitted]["model_ms"] == pytest.approx(rows[fitted]["measured_ms"], rel=0.1)
