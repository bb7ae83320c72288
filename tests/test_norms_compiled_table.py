"""What is measured and named under torch.compile is what is measured and named in eager torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from hf_clars.norms import PerSampleNorms

from .helpers.compiled_table import TABLE, Model
from .helpers.function_table import FUNCTIONS, Function
from .helpers.slow import slow_but

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning",
    "ignore:PerSampleNorms cannot measure:UserWarning",
    # Torch has no batched derivative of _weight_norm, and says that it takes samples one by one.
    "ignore:There is a performance drop:UserWarning",
    "ignore:This overload of addmm is deprecated:UserWarning",
    "ignore:Using a target size:UserWarning",
    "ignore:Using padding='same' with even kernel:UserWarning",
)

# Of these the compiler's view is named: what they change in place has another name in memory.
NAMED = {"a view of a copy is doubled", "a copy seen through a view, doubled"}
NAMED_FUNCTIONS = {
    "setitem of all", "written into a part of zeros", "set in a part of a part",
    "mul_ of a part of an embedding",
}  # fmt: skip
OTHERWISE = {
    "conv1d, NumPy's stride",  # dynamo makes a tensor of the number, which nobody can look at: the graph breaks
    "einsum, numbers for dimensions",  # named: dynamo takes them apart before a mode sees them
}
# Chosen to be quick and of all kinds; all of them, in two sizes, are slow tests.
QUICK = (
    "iteration", "F.pad in front", "old weight_norm", "mul_ of a copy", "a view of a copy is doubled",
    "tied embedding, transposed", "attention, three inputs, positions first, with weights", "rsub of samples",
    "floordiv of a weight", "gru cell",
)  # fmt: skip


class Seen:
    """What became of one model: norms, names, gradients."""

    def __init__(self, model: nn.Module, call: nn.Module, xs: list[Tensor], mode: str = "per_sample") -> None:
        model.zero_grad()
        with PerSampleNorms(model, mode, norm_samples=2) as norms:
            for x in xs:
                call(x).square().sum().backward()
            of = norms.denominators()
            self.denominators = {n: of[p] for n, p in model.named_parameters() if p in of}
            self.norms, self.untracked = norms.per_sample(), dict(norms.untracked)
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def compare(eager: Seen, compiled: Seen, named: bool = False) -> None:
    torch.testing.assert_close(compiled.gradients, eager.gradients, rtol=1e-9, atol=1e-9)
    less = {n: compiled.untracked.get(n) for n in eager.denominators.keys() - compiled.denominators.keys()}
    if named:
        assert less, "it is measured: no need to expect that it is named"
        assert all("torch.compile" in (reason or "") for reason in less.values()), less
    else:
        assert not less
    assert eager.untracked.keys() <= compiled.untracked.keys() | compiled.denominators.keys()
    for n in eager.denominators.keys() & compiled.denominators.keys():
        torch.testing.assert_close(compiled.denominators[n], eager.denominators[n], rtol=1e-9, atol=1e-9, msg=n)
        torch.testing.assert_close(compiled.norms[n], eager.norms[n], rtol=1e-9, atol=1e-9, msg=n)


def as_double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def judge(
    model: nn.Module, x: Tensor, named: bool = False, mode: str = "per_sample", sizes: int = 2, **options: object
) -> None:
    """With two sizes there are two micro-batches, of which the second is smaller."""
    torch.compiler.reset()
    model, x = model.double(), as_double(x)
    xs = [x, x.flip(0)[:3]][: sizes if mode == "per_sample" else 1]
    eager = Seen(model, model, xs, mode)
    options = {"backend": "aot_eager", "fullgraph": True} | options
    compare(eager, Seen(model, torch.compile(model, **options), xs, mode), named)


@pytest.mark.parametrize(
    ("name", "sizes"), slow_but(lambda case: case[1] == 1, [*[(n, 1) for n in QUICK], *[(n, 2) for n in TABLE]])
)
def test_measured_as_in_eager(name, sizes):
    judge(*TABLE[name](), named=name in NAMED, sizes=sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight.T", "F.normalize", "chunked qkv", "batch norm", "cdist", "windows"])
@pytest.mark.parametrize(
    "options", [{"mode": "subset"}, {"dynamic": True}, {"backend": "inductor"}, {"fullgraph": False}], ids=str
)
def test_measured_as_in_eager_in_other_ways(name, options):
    judge(*TABLE[name](), **options)


@pytest.mark.parametrize(
    "name", slow_but(["setitem", "linear, a vector itself"], [name for name in FUNCTIONS if name not in OTHERWISE])
)
def test_functions_are_measured_as_in_eager(name):
    torch.manual_seed(0)
    model, x = Function(name, beside=True), torch.randn(3, *FUNCTIONS[name][1], dtype=torch.float64)
    torch.compiler.reset()
    eager = Seen(model.double(), model, [x])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compare(eager, Seen(model, compiled, [x]), name in NAMED_FUNCTIONS)


def positions_first(m: nn.Module, x: Tensor) -> Tensor:
    x = x + m.table(torch.arange(x.shape[1])) + m.table.weight[: x.shape[1]].tanh()
    return m.out(m.norm(x.transpose(0, 1))).transpose(0, 1)


@pytest.mark.parametrize(("dynamic", "passes"), slow_but([(None, 2)], [(None, 2), (None, 4), (True, 4)]))
def test_sizes_may_change(dynamic, passes):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Model(positions_first, table=nn.Embedding(12, 6), norm=nn.LayerNorm(6), out=nn.Linear(6, 5)).double()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for batch, length in ((4, 5), (3, 7), (6, 8), (4, 5))[:passes]:
        x = torch.randn(batch, length, 6, dtype=torch.float64)
        compare(Seen(model, model, [x]), Seen(model, compiled, [x]))


def broken(m: nn.Module, x: Tensor) -> Tensor:
    x = m.first(x)
    if x.sum().item() > 1e9:
        return x
    return m.second(x.transpose(0, 1)).transpose(0, 1) @ m.first.weight.T


@pytest.mark.slow
def test_a_graph_may_break():
    torch.manual_seed(0)
    judge(Model(broken, first=nn.Linear(6, 6), second=nn.Linear(6, 6)), torch.randn(4, 3, 6), fullgraph=False)


PARTS = ["attention, three inputs, positions first, with weights", "chunked qkv"]


@pytest.mark.parametrize("name", slow_but(PARTS[:1], PARTS))
def test_a_part_may_be_compiled(name):
    model, x = TABLE[name]()
    model = nn.Sequential(nn.Linear(6, 6), model, nn.Linear(6, 4)).double()
    torch.compiler.reset()
    eager = Seen(model, model, [x.double()])
    model[1].compile(backend="aot_eager", fullgraph=True)
    compare(eager, Seen(model, model, [x.double()]))


@pytest.mark.parametrize("outside", slow_but([True], [True, False]))
def test_a_use_outside_of_what_is_compiled_is_noticed(outside):
    """And looking for it neither breaks the graph nor compiles it anew."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Model(lambda m, ids: m.out(m.table(ids)).relu(), table=nn.Embedding(9, 6), out=nn.Linear(6, 6)).double()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    counted = []
    with PerSampleNorms(model) as norms:
        for _ in range(4):
            model.zero_grad()
            h = compiled(torch.randint(0, 9, (4, 5)))
            (F.linear(h, model.table.weight) if outside else h).square().sum().backward()
            of = norms.denominators()
            assert {n for n, p in model.named_parameters() if p in of} >= {"out.weight", "out.bias"}
            assert (model.table.weight not in of) == outside == ("table.weight" in norms.untracked)
            counted.append(counters["stats"]["unique_graphs"])
    assert counted[1] == counted[-1]


class Table(nn.Module):
    """Takes samples, and a table of positions or of other samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.a(x) + self.b(table)


@pytest.mark.parametrize("dynamic", slow_but([None], [None, True]))
@pytest.mark.parametrize("length", slow_but([4], [None, 3, 4]))
def test_a_second_argument_is_taken_for_samples_if_it_meets_them_as_such(dynamic, length):
    torch.compiler.reset()
    torch.manual_seed(0)
    model, batch = Table().double(), 4
    x = torch.randn(batch, *([] if length is None else [length]), 6, dtype=torch.float64)
    table = torch.randn(*x.shape[-2:], dtype=torch.float64)
    seen = []
    for call in (model, torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)):
        seen.append(Seen(model, lambda x, call=call: call(x, table), [x, x]))
    compare(*seen)
    assert seen[1].norms.keys() == seen[0].norms.keys()
    assert seen[1].untracked.keys() == ({"b.weight", "b.bias"} if length == batch else set())
