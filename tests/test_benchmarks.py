"""The benchmarks' own arithmetic, and each of them as a real process at a size that a CPU can bear."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "recipes" / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_report  # noqa: E402
import roofline  # noqa: E402
import roofline_account as accounts  # noqa: E402
import roofline_profile as profiles  # noqa: E402
from gpu_goals import findings, markdown  # noqa: E402
from gpu_runs import FAILED, NO_TIME, OK, TIMEOUT, Ended, Run, run_all  # noqa: E402
from roofline_stages import FORWARD, INPUT, OPTIMIZER, OTHER, REST, WEIGHT, Stages, kind_of  # noqa: E402

from hf_clars.errors import UserError  # noqa: E402


def account(model, x, y=None, batch=None):
    """Work by (stage, kind), of the plain step and of what norms add."""

    def step(model, x, y):
        model(x).sum().backward()

    _, counted = accounts.account(model, x, x if y is None else y, batch or len(x), step)
    totals = ({cell: sum(work, accounts.Work()) for cell, work in of.items()} for of in (counted.plain, counted.norms))
    return tuple(totals)


def convolutional():
    first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False))
    return nn.ModuleDict({"first": first, "second": nn.Sequential(nn.Conv2d(8, 16, 1, bias=False))})


class Chain(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


# --- the account --------------------------------------------------------------------------------------------------


def test_a_convolution_by_hand():
    model = Chain(**convolutional())
    plain, _ = account(model, torch.randn(1, 3, 10, 10), batch=4)
    x, y, z = 4 * 3 * 100, 4 * 8 * 25, 4 * 16 * 25  # numbers
    first, second = 2 * 4 * 8 * 3 * 9 * 25, 2 * 4 * 16 * 8 * 25
    assert plain["first", FORWARD] == accounts.Work(first, 4 * (x + 8 * 27 + y))
    assert plain["first", WEIGHT] == accounts.Work(first, 4 * (x + y + 8 * 27))
    assert ("first", INPUT) not in plain  # nobody asks for the derivative of the images
    assert plain["second", FORWARD] == accounts.Work(second, 4 * (y + 128 + z))
    # The derivative of a sum is one number, expanded.
    assert plain["second", INPUT] == accounts.Work(second, 4 * (1 + 128 + y))
    assert plain["second", WEIGHT] == accounts.Work(second, 4 * (1 + y + 128))
    weights = 8 * 27 + 128
    assert plain[OPTIMIZER, OTHER].bytes == 20 * weights


def test_what_is_bound_by_memory_by_hand():
    model = Chain(
        a=nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Sigmoid()), b=nn.Sequential(nn.Linear(4, 1))
    )
    plain, _ = account(model, torch.randn(2, 4), batch=8)
    one = 4 * 8 * 4  # bytes of an activation
    # Both read one and write one in forward; in backward both read two and write one.
    assert plain["a", OTHER] == accounts.Work(0, 10 * one)


def test_a_linear_layer_over_positions_by_hand():
    model = Chain(a=nn.Sequential(nn.Linear(6, 10, bias=False)), b=nn.Sequential(nn.Linear(10, 3, bias=False)))
    plain, norms = account(model, torch.randn(1, 5, 6), batch=4)
    assert plain["a", FORWARD].flops == plain["a", WEIGHT].flops == 2 * 20 * 60
    assert plain["b", INPUT].flops == plain["b", WEIGHT].flops == 2 * 20 * 30
    assert plain["a", WEIGHT].bytes == 4 * (20 * 10 + 20 * 6 + 60)
    # Five positions are too few for tiles: Gram matrices of 16 × 16 with what is padded.
    assert norms["a", WEIGHT].flops == 2 * 4 * 16 * 16 * (6 + 10)
    assert norms["a", WEIGHT].bytes == plain["a", WEIGHT].bytes - 4 * 60 + 4 * 4


def test_torch_counts_the_same():
    timm = pytest.importorskip("timm")
    model, x = timm.create_model("resnet18", num_classes=10), torch.randn(2, 3, 64, 64)
    plain, _ = account(model, x)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert sum(work.flops for work in plain.values()) == counter.get_total_flops()


def test_groups():
    convolution = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
    plain, _ = account(Chain(a=nn.Sequential(convolution)), torch.randn(2, 32, 6, 6), batch=4)
    assert plain["a", WEIGHT].flops == plain["a", FORWARD].flops == 2 * 4 * 36 * 32 * 9  # torch: 32 times as many
    x, d = (torch.randn(4, 32, 6, 6).contiguous(memory_format=torch.channels_last) for _ in range(2))
    added = accounts.added_by_norms((32, 1, 3, 3), x, d, 4, ((1, 1), (1, 1), (1, 1), 32))
    assert added == accounts.Work(0, 2 * 4 * 4 * 9 * 32)  # every sample's gradient, written and read
    copied = accounts.added_by_norms((32, 1, 3, 3), x.contiguous(), d, 4, ((1, 1), (1, 1), (1, 1), 32))
    assert copied.bytes - added.bytes == 2 * 4 * x.numel()


def test_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(8, 8, bias=False)

        def forward(self, x):
            return F.scaled_dot_product_attention(*[self.project(x).view(len(x), 2, 5, 4)] * 3)

    plain, _ = account(Chain(a=Attention(), b=nn.Identity()), torch.randn(2, 5, 8))
    projection, attention = 2 * 2 * 5 * 8 * 8, 2 * 2 * (2 * 2 * 5 * 5 * 4)
    assert sum(w.flops for (_, kind), w in plain.items() if kind == FORWARD) == projection + attention
    assert sum(w.flops for (_, kind), w in plain.items() if kind == WEIGHT) == projection


def test_an_embedding():
    model = Chain(a=nn.Sequential(nn.Embedding(50, 6)), b=nn.Sequential(nn.Linear(6, 6)))
    plain, norms = account(model, torch.zeros(1, 7, dtype=torch.long), batch=3)
    assert plain["a", WEIGHT].flops == 0 < plain["a", WEIGHT].bytes
    assert norms["a", WEIGHT].bytes == 6 * 4 * 3 * 7 * 6  # as many numbers as the derivative has, six times over


@pytest.mark.parametrize(
    ("shape", "groups", "kernel"),
    [((64, 64, 1, 1), 1, "tiles"), ((40, 24, 3, 3), 1, "tiles"), ((24, 1, 3, 3), 24, "depthwise")],
)
@pytest.mark.usefixtures("interpreter")
def test_scratch_is_what_kernels_are_given(shape, groups, kernel):
    """The kernels themselves, with their arguments looked at."""
    pytest.importorskip("triton")
    from hf_clars.norms import kernels
    from hf_clars.norms.kernels.launch import Launch

    launch, given = Launch.__call__, {}

    def look(self, device, *arguments):
        tensors = [getattr(argument, "base", argument) for argument in arguments]  # of a descriptor
        given.update({t.data_ptr(): t for t in tensors})
        return launch(self, device, *arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(3, shape[1] * groups, 6, 6, device=device).contiguous(memory_format=torch.channels_last)
    d = torch.randn(3, shape[0], 6, 6, device=device).contiguous(memory_format=torch.channels_last)
    padding = (shape[2] // 2, shape[3] // 2)
    added = accounts.added_by_norms(shape, x, d, 3, ((1, 1), padding, (1, 1), groups))
    with mock.patch.object(Launch, "__call__", look):
        convolution = kernels.Convolution(x, d, shape, (1, 1), padding, (1, 1), groups, kernel)
        results = kernels.squares_and_sum(convolution, 3, torch.float32)
    for known in (x, d, *results):
        given.pop(known.data_ptr())
    assert given
    assert added == accounts.Work(0, 2 * sum(t.numel() * t.element_size() for t in given.values()))


def test_tiles_by_hand():
    x, d = (torch.randn(1, 64, 4, 4).contiguous(memory_format=torch.channels_last) for _ in range(2))
    added = accounts.added_by_norms((64, 64, 1, 1), x, d, 1)
    # Tiles that cover 64 × 64 once, in one run: their totals, and a square of each.
    squares = added.bytes / (2 * 4) - 64 * 64
    assert squares in (1, 2, 4, 8)


def test_images_are_padded():
    """Few channels fold into a tile, of a copy with zeros around: read once more, and written."""
    x, d = torch.randn(2, 3, 8, 8), torch.randn(2, 16, 8, 8)
    x, d = (t.contiguous(memory_format=torch.channels_last) for t in (x, d))
    added = accounts.added_by_norms((16, 3, 3, 3), x, d, 2, ((1, 1), (1, 1), (1, 1), 1))
    assert added.bytes > 4 * (2 * 3 * 64 + 2 * 4 * 100)


def test_without_stages():
    x = torch.randn(2, 3, 8, 8)
    _, counted = accounts.account(Chain(**convolutional()), x, x, 4, lambda model, x, y: model(x).sum().backward())
    flops = sum(work.flops for of in counted.plain.values() for work in of)
    counted.without_stages()
    assert {stage for stage, _ in [*counted.plain, *counted.norms]} == {REST, OPTIMIZER}
    assert sum(work.flops for of in counted.plain.values() for work in of) == flops


def test_the_account_leaves_the_model_alone():
    model = Chain(**convolutional())
    before = {name: p.clone() for name, p in model.named_parameters()}
    account(model, torch.randn(2, 3, 8, 8), batch=1000)
    for name, p in model.named_parameters():
        assert p.grad is None
        assert torch.equal(p, before[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- stages and kinds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["stem", "layer1", "layer2", "layer3", "layer4", "head"]),
        ("vit_tiny_patch16_224", ["patch_embed", "blocks", "head"]),
        ("mobilenetv2_050", ["stem", *(f"blocks.{i}" for i in range(7)), "head"]),
    ],
)
def test_stages(name, stages):
    timm = pytest.importorskip("timm")
    found = Stages(timm.create_model(name))
    assert found.names == [*stages, REST, OPTIMIZER]
    assert found.of("") == found.of("no.such.module") == REST
    if name == "resnet18":
        assert found.of("layer2.0.conv1") == "layer2"
        assert found.of("bn1") == "stem"
        assert found.of("fc") == "head"


def test_kinds():
    weights = [(10, 6)]
    assert kind_of(["aten::mm"], True, weights, (6, 10)) == WEIGHT
    assert kind_of(["aten::mm"], True, weights, (20, 6)) == INPUT
    assert kind_of(["aten::mkldnn_convolution", "aten::convolution"], False, weights) == FORWARD
    assert kind_of(["aten::native_batch_norm"], False, weights) == OTHER
    assert kind_of(["aten::embedding_dense_backward"], True, weights) == WEIGHT


# --- what was measured --------------------------------------------------------------------------------------------


def profiled_on_cpu(measured):
    model = Chain(**convolutional(), head=nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 3)))

    def step(model, x, y):
        F.cross_entropy(model(x), y).backward()

    both = profiles.trials(model, torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), step, compiled=False)
    trial = both["norms" if measured else "plain"]
    trial.step()
    return profiles.profiled(trial, torch.device("cpu"), compiled=False)


@pytest.mark.parametrize("measured", [False, True])
def test_a_profile_on_a_cpu(measured):
    cells = profiled_on_cpu(measured)
    stages = {stage for stage, _ in cells}
    assert stages == {"first", "second", "head", REST, OPTIMIZER}
    assert all(seconds >= 0 for seconds in cells.values())
    for stage in ("first", "second", "head"):
        assert cells[stage, FORWARD] > 0
    assert cells[OPTIMIZER, OTHER] > 0
    assert cells["head", WEIGHT] > 0
    assert cells["head", INPUT] > 0
    # A convolution's two gradients come from one call, which norms ask for the input's alone.
    assert (("first", WEIGHT) in cells) == measured
    assert cells["second", profiles.GRADIENTS] > 0


def call(name, start, end, sequence_nr=-1, id=0, shapes=None):
    times = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(
        name=name, time_range=times, sequence_nr=sequence_nr, id=id, device_type=DeviceType.CPU, input_shapes=shapes
    )


def kernel(name, id, microseconds):
    event = call(name, 1e6, 1e6 + microseconds, id=id)
    event.device_type = DeviceType.CUDA
    return event


def test_a_profile_on_a_gpu():
    """Its events, made up: kernels are found by their launches, whichever thread made them, and count once."""
    model = Chain(**convolutional())
    stages = Stages(model)
    with stages.watching():
        first = torch.autograd._get_sequence_nr()
        hidden = model.first(torch.randn(1, 3, 8, 8))
        second = torch.autograd._get_sequence_nr()
        loss = model.second(hidden)
        outside = torch.autograd._get_sequence_nr()
        loss.sum()
    engine = "autograd::engine::evaluate_function: "
    events = [
        call("aten::conv2d", 0, 9, first, id=1),  # ids of operators are others than those of launches
        call("aten::cudnn_convolution", 1, 8, -1, id=2),
        call("cudaLaunchKernel", 2, 3, id=1),
        call("aten::relu", 10, 12, second),
        call("cuLaunchKernelEx", 11, 12, id=2),
        call(engine + "ConvolutionBackward0", 20, 40, second),
        call("aten::convolution_backward", 21, 39),
        *(call("cudaLaunchKernelExC", 22 + i, 22.5 + i, id=3 + i) for i in range(4)),
        call(engine + "TapBackward", 50, 60, first),
        call("cuLaunchKernelEx", 51, 52, id=7),
        call(engine + "torch::autograd::AccumulateGrad", 61, 63),
        call("cudaMemcpyAsync", 62, 63, id=8),
        call(engine + "SumBackward0", 64, 66, outside),
        call("cudaLaunchKernel", 65, 66, id=9),
        call("Optimizer.step#CLARS.step", 70, 80),
        call("cuLaunchKernel", 71, 72, id=10),
        kernel("implicit_gemm", 1, 1),
        kernel("relu_kernel", 2, 2),
        kernel("nchwToNhwc", 3, 4),
        kernel("sm90_xmma_dgrad_implicit_gemm", 4, 8),
        kernel("nchwToNhwc", 5, 16),
        kernel("sm90_xmma_wgrad_implicit_gemm", 6, 32),
        kernel("_weight_gradient", 7, 64),
        kernel("Memcpy DtoD", 8, 128),
        kernel("fill", 9, 256),
        kernel("_clars", 10, 512),
        kernel("of nobody", 99, 1024),
        kernel("Optimizer.step#CLARS.step", 0, 4096),
    ]
    cells = {cell: round(seconds * 1e6) for cell, seconds in profiles.by_cell(events, stages, cuda=True).items()}
    assert cells == {
        ("first", FORWARD): 1,
        ("second", OTHER): 2,
        ("second", INPUT): 4 + 8,
        ("second", WEIGHT): 16 + 32,
        ("first", WEIGHT): 64,
        ("first", OTHER): 128,
        (REST, OTHER): 256 + 1024,
        (OPTIMIZER, OTHER): 512,
    }


def test_kernels_of_convolutions_that_do_not_say_what_they_form():
    stages = Stages(Chain(**convolutional()))
    events = [
        call("autograd::engine::evaluate_function: ConvolutionBackward0", 0, 9, 0),
        call("aten::convolution_backward", 1, 8),
        call("cudaLaunchKernel", 2, 3, id=1),
        kernel("nvjet_hsh_256x128", 1, 5),
    ]
    assert list(profiles.by_cell(events, stages, cuda=True)) == [(REST, profiles.GRADIENTS)]


# --- many commands within a time budget ---------------------------------------------------------------------------


def python(name, code, seconds=20.0):
    return Run(name, [sys.executable, "-c", code], seconds)


def run(runs, out, seconds=60.0, commit="abc"):
    return {end.name: end for end in run_all(runs, out, seconds=seconds, commit=commit, cwd=out)}


def test_what_fails_stops_nobody(tmp_path):
    ended = run(
        [
            python("fails", "import sys; print('some'); print('error: no such thing', file=sys.stderr); sys.exit(2)"),
            python("works", "print('fine')"),
        ],
        tmp_path,
    )
    assert (ended["fails"].status, ended["fails"].reason) == (FAILED, "error: no such thing")
    assert (ended["works"].status, ended["works"].ran) == (OK, True)
    assert (tmp_path / "works.log").read_text() == "fine\n"
    assert "no such thing" in (tmp_path / "fails.log").read_text()
    assert ended["works"].command == "python -c print('fine')"  # whose interpreter that was is nobody's business


def test_what_takes_too_long_is_killed_with_all_it_started(tmp_path):
    stubborn = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "open('pid', 'w').write(str(child.pid)); print('waiting', flush=True); time.sleep(600)"
    )
    ended = run([python("hangs", stubborn, seconds=2.0), python("works", "print(1)")], tmp_path)
    assert ended["hangs"].status == TIMEOUT
    assert ended["works"].ran
    assert not alive(int((tmp_path / "pid").read_text()))


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_results_are_kept(tmp_path):
    (tmp_path / "count").write_text("")
    runs = [python("counts", "open('count', 'a').write('x')"), python("fails", "open('count', 'a').write('y'); 1 / 0")]
    run(runs, tmp_path)
    again = run(runs, tmp_path)
    assert again["counts"].ran
    assert (tmp_path / "count").read_text() == "xyy"  # what failed is tried again
    run(runs, tmp_path, commit="another")
    assert (tmp_path / "count").read_text() == "xyyxy"
    (tmp_path / "counts.status.json").write_text("{")  # cut off while it was written
    run(runs[:1], tmp_path, commit="another")
    assert (tmp_path / "count").read_text() == "xyyxyx"
    run([python("counts", "open('count', 'a').write('z')")], tmp_path, commit="another")  # such as without --tiny
    assert (tmp_path / "count").read_text() == "xyyxyxz"


def test_the_budget(tmp_path):
    begin = time.monotonic()
    runs = [python("long", "import time; time.sleep(600)", 600.0), python("more", "print(1)", 600.0)]
    ended = run(runs, tmp_path, seconds=4.0)
    assert {end.status for end in ended.values()} == {NO_TIME}
    ended = run([python("long", "import time; time.sleep(600)", 4.0), *runs[1:]], tmp_path, seconds=5.0)
    assert (ended["long"].status, ended["more"].status) == (TIMEOUT, NO_TIME)
    assert time.monotonic() - begin < 60
    ended = run(runs, tmp_path, seconds=1.0)
    assert (ended["long"].status, ended["more"].status) == (TIMEOUT, NO_TIME)  # what is known is not forgotten


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_who_is_asked_to_end_leaves_nothing_running(tmp_path, number):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("another system cannot")
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from pathlib import Path\nfrom gpu_runs import *\nend_with_us()\n"
        "child = \"import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)\"\n"
        "run_all([Run('a', [sys.executable, '-c', child], 600)], Path('.'), seconds=600, commit='', cwd=Path('.'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL)
    pid = tmp_path / "pid"
    end = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) == (128 + number if number == signal.SIGTERM else -number)
    while alive(int(pid.read_text())):  # the kernel's signal takes its time
        assert time.monotonic() < end
        time.sleep(0.01)


# --- goals --------------------------------------------------------------------------------------------------------


def ended(name, status=OK):
    return Ended(name, status, 3.0, "python", "abc", "" if status == OK else "error: | is no pipe")


def test_goals(tmp_path):
    row = {"label": "plain", "method": "plain", "batch_norm": "train", "in_a_row_seconds": [0.0625], "memory": 1.0}
    ours = {
        "label": "ours",
        "method": "per_sample",
        "batch_norm": "train",
        "time": 1.2,
        "in_a_row": 1.06,
        "memory": 1.0,
    }
    norms = {
        "options": {"compile": False},
        "models": {
            "resnet50": {"rows": [row | {"samples_per_second": 4096.0}, ours], "notes": {"vmap": "not installed"}}
        },
    }
    (tmp_path / "norms-resnet50.json").write_text(json.dumps(norms))
    (tmp_path / "norms-gpt2.json").write_text('{"options": {"comp')  # cut off
    (tmp_path / "tests-kernels.log").write_text("....F\n2 failed, 31 passed, 1 skipped in 3 s\n")
    runs = [
        ended("norms-resnet50", TIMEOUT),
        ended("norms-gpt2"),
        ended("tests-kernels", FAILED),
        ended("step", NO_TIME),
    ]
    found = findings(runs, tmp_path)
    verdicts = [(finding.measured, finding.verdict) for finding in found]
    assert verdicts == [
        ("62.50 ms, 4096 samples/s", ""),
        ("1.060 ×", "ok"),
        ("1.200 ×", "missed"),
        ("1.000 ×", "ok"),
        ("did not run: not installed", ""),
        ("2 failed, 31 passed, 1 skipped", "missed"),
    ]
    for stale in ({"commit": "before"}, {"command": "python with --tiny"}):
        (tmp_path / "norms-resnet50.json").write_text(json.dumps(norms | stale))
        assert [finding.run for finding in findings(runs, tmp_path)] == ["tests-kernels"]
    assert not findings([ended("tests-kernels", NO_TIME)], tmp_path)
    about = {"command": "python x", "commit": "abc", "hardware": {"device": "a GPU", "torch": "2"}}
    text = markdown(runs, found, about)
    assert "1 of 4 ran; 2 goals missed." in text
    assert "| ≤ 1.10 × | 1.060 × | ok |" in text
    assert "error: \\| is no pipe" in text


@pytest.mark.parametrize(
    ("name", "lacking"), [("tests-kernels", "pytest"), ("roofline", "matplotlib"), ("step", "triton")]
)
def test_what_is_needed_depends_on_what_is_measured(name, lacking, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--tiny", "--out", str(tmp_path), "--only", name])
    monkeypatch.setattr(
        gpu_report.importlib.util, "find_spec", lambda name: None if name in ("pytest", "matplotlib", lacking) else name
    )
    with pytest.raises(UserError, match=f"^{lacking} not installed"):
        gpu_report.main()


# --- the commands -------------------------------------------------------------------------------------------------


def benchmark(script, *arguments, cwd=ROOT, status=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("roofline.py", ["--gpu", "gtx"], "--gpu gtx is unknown: choose from h200"),
        ("gpu_report.py", ["--tiny", "--only", "nothing"], "--only nothing is unknown: choose from norms-resnet50"),
    ],
)
def test_mistakes_are_one_line(script, arguments, message, tmp_path):
    lines = benchmark(script, *arguments, status=2, cwd=tmp_path).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {message}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("roofline.py", ["--models", "alexnet"], "--models alexnet is unknown"),
        ("roofline.py", ["--device", "cuda:7"], "--device cuda:7 is not available here"),
        ("roofline.py", ["--peak_tflops", "-1"], "--peak_tflops must be positive"),
        ("roofline.py", ["--batch_size", "0"], "--batch_size 0 must be at least 1"),
        ("norms.py", ["--in_a_row", "-1"], "--in_a_row -1 must be at least 1"),
        ("large_step.py", ["--micro_batch", "1000"], "total_batch_size=16384 is no multiple"),
        ("large_step.py", ["--model_name", "resnet0"], "--model_name resnet0 is no timm model"),
        ("large_step.py", ["--json", "no/such/folder.json"], "--json no/such/folder.json is in a folder"),
        ("no_wait.py", ["--model_name", "resnet0"], "--model_name resnet0 is no timm model"),
        ("gpu_report.py", ["--minutes", "0"], "--minutes must be positive"),
        ("norms.py", ["--image_size", "0"], "--image_size 0 must be at least 1"),
        ("norms.py", ["--width", "0"], "--width 0 must be at least 1"),
        ("norms.py", ["--json", "."], "--json . is a folder: name a file in it"),
        ("no_wait.py", ["--json", "."], "--json . is a folder: name a file in it"),
        ("large_step.py", ["--device", "cpu", "--json", "."], "--json . is a folder: name a file in it"),
        ("optimizer_step.py", ["--json", "."], "--json . is a folder: name a file in it"),
    ],
)
def test_more_mistakes_are_one_line(script, arguments, message, tmp_path):
    test_mistakes_are_one_line(script, arguments, message, tmp_path)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB SXM"),
        ("NVIDIA A100-PCIE-40GB", "A100 40 GB"),
        ("NVIDIA GH200 480GB", None),
        ("Tesla T4", None),
    ],
)
def test_whose_roofline(name, gpu, monkeypatch):
    options = SimpleNamespace(gpu=None, device="cuda", dtype="bfloat16", peak_tflops=None, bandwidth_tbs=None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    if gpu is not None:
        assert roofline.roofline(options)["gpu"] == gpu
        return
    with pytest.raises(UserError, match="is not in the table of peaks: give --peak_tflops and --bandwidth_tbs"):
        roofline.roofline(options)
    options.peak_tflops, options.bandwidth_tbs = 65.0, 0.3
    assert roofline.roofline(options) == {"gpu": "as given", "peak": 65e12, "bandwidth": 0.3e12}


def test_roofline(tmp_path):
    text = benchmark("roofline.py", "--device", "none", "--out", tmp_path)
    result = json.loads((tmp_path / "roofline.json").read_text())
    assert "account only, nothing measured" in text
    assert result["measured"] is False
    total = result["models"]["resnet50"]["total"]["plain"]
    # Three products of 4.09 G multiply-adds an image each, but for the derivative of the images.
    assert total["flops"] == pytest.approx(256 * 2 * (3 * 4.0872e9 - 0.118e9), rel=2e-3)
    assert 0.020 < total["roofline_seconds"] < 0.0625  # which an H100 took
    assert total["measured_seconds"] is None
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_roofline_measures(tmp_path):
    sizes = ["--batch_size", "2", "--image_size", "32", "--steps", "1", "--rounds", "1"]
    text = benchmark("roofline.py", "--device", "cpu", "--models", "resnet18", *sizes, "--out", tmp_path)
    model = json.loads((tmp_path / "roofline.json").read_text())["models"]["resnet18"]
    assert "norms / plain:" in text
    for which in ("plain", "norms"):
        measured = [row[which]["measured_seconds"] or 0.0 for row in model["rows"]]
        assert sum(measured) == pytest.approx(model["whole"][which]["profiled_seconds"])
        assert model["whole"][which]["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_norms(several, tmp_path):
    sizes = [
        "--models",
        "resnet18",
        "--methods",
        "per_sample",
        "--batch_size",
        "2",
        "--image_size",
        "32",
        "--rounds",
        "2",
    ]
    more = ["--in_a_row", "2"] if several else []
    text = benchmark("norms.py", *sizes, *more, "--json", tmp_path / "norms.json")
    plain, ours = json.loads((tmp_path / "norms.json").read_text())["models"]["resnet18"]["rows"]
    assert ours["measured"] == ours["weights"] == 21
    assert ours["error"] < 0.02
    assert len(plain["seconds"]) == len(plain["launched_seconds"]) == 2
    assert ("in a row" in text) == ("in_a_row" in ours) == several
    assert plain.get("in_a_row", 1.0) == 1.0


@pytest.mark.slow
def test_large_step(tmp_path):
    sizes = ["--total_batch_size", "8", "--micro_batch", "2", "--image_size", "32", "--rounds", "2"]
    benchmark("large_step.py", "--model_name", "resnet18", *sizes, "--json", tmp_path / "step.json")
    plain, ours = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert (plain["optim"], ours["optim"]) == ("mnag", "clars")
    assert len(plain["seconds"]) == len(ours["seconds"]) == 2
    assert plain["ratio"] == 1.0
    assert ours["images_per_second"] == pytest.approx(8 / ours["median_seconds"])


@pytest.mark.slow
def test_no_wait(tmp_path):
    text = benchmark("no_wait.py", "--model_name", "resnet18", "--batch_size", "2", "--json", tmp_path / "no.json")
    assert json.loads((tmp_path / "no.json").read_text())["graph"] == "ok"
    if not torch.cuda.is_available():
        assert text.count("ok (on a CPU, which shows nothing)") == 2


@pytest.mark.slow
def test_the_report(tmp_path):
    some = ["--only", "norms-resnet50", "tests-kernels", "step", "no-wait", "roofline", "large-step"]
    text = benchmark("gpu_report.py", "--tiny", "--out", tmp_path, *some)
    assert "6 of 6 ran; 0 goals missed." in text
    again = benchmark("gpu_report.py", "--tiny", "--out", tmp_path, *some)
    assert again.count("there already") == 6
    report = json.loads((tmp_path / "report.json").read_text())
    assert {run["status"] for run in report["runs"]} == {"ok"}
    assert "hf_clars per_sample: resnet50, memory" in (tmp_path / "report.md").read_text()
