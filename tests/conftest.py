import gc
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ.setdefault("WANDB_MODE", "disabled")  # a test that wants W&B says so
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: its kernels run on a CPU, slowly


torch.set_num_threads(1)  # these tensors are tiny; threads that wait for each other are slower than one

# Of Hypothesis' examples, the same each time: few in the fast suite, the rest where slow tests run.
settings.register_profile(
    "few", max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("many", settings.get_profile("few"), max_examples=100)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("few" if config.getoption("markexpr") == "not slow" else "many")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """What is imported stays: collecting garbage, as trainings do, need not look at all of it again and again."""
    gc.freeze()


@pytest.fixture
def new_accelerator() -> Iterator[None]:
    """An Accelerator may be made here with a precision of its own: a process has one state of all of them."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[None]:
    """Triton's interpreter, if there is no GPU, with any NumPy.

    In Triton 3.6 it makes an int of an array of one element, which NumPy deprecates, and refuses from 2.4 on.
    """
    if "TRITON_INTERPRET" not in os.environ:
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with mock.patch.object(interpreter, "_patch_lang_tensor", patch_tensor):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the checkout, where a developer has them."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real data sets are not on this machine")
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A data set of three classes in Parquet: 72 images to train on, 30 to evaluate on."""
    from .helpers.recipe import write_splits

    return write_splits(tmp_path_factory.mktemp("images"), {"train": 72, "validation": 30})


@pytest.fixture(params=["torchcodec", "Pillow"])
def decoder(request, monkeypatch) -> None:
    """With the optional decoder of JPEGs and without it."""
    from hf_clars.data import transforms

    if request.param == "torchcodec":
        pytest.importorskip("torchcodec")
    else:
        monkeypatch.setattr(transforms, "torchcodec", lambda: None)


@pytest.fixture
def datasets_cache(tmp_path_factory, monkeypatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The data bundled for the demo."""
    return Path(__file__).resolve().parents[1] / "recipes" / "demo" / "fashion_mnist"
