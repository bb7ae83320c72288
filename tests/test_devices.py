"""What a training on a GPU would trip over, looked for without one: tensors of two devices, waits for the device.

Tensors on the meta device have no values, so that asking for one raises, and so does mixing them with a CPU's. Fake
tensors of a GPU do the same for gathers, which the meta device takes from anywhere, but cannot be differentiated here.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_clars import CLARS, LARS, NAG, PerSampleNorms, build_model
from hf_clars.data import DecodedImages
from hf_clars.data.resident import random_shifts, shifted_and_mirrored
from hf_clars.norms.extra_passes import mean_gradient_norms
from hf_clars.optimizers import AuthorsCLARS, is_adapted, parameter_groups

META = torch.device("meta")


@pytest.fixture
def meta_without_autocast(monkeypatch):
    """Autocast does not know the device, and asking whether it is on raises."""
    asked = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind=None: kind not in (None, "meta") and asked(kind))


def test_such_mistakes_are_found():
    """What the tests below rely on."""
    for mistake in (
        lambda: torch.ones(3, device=META) + torch.ones(3),
        lambda: torch.ones((), device=META).item(),
        lambda: bool(torch.ones((), device=META)),
        lambda: torch.ones(3, device=META).cpu(),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            mistake()


@pytest.mark.parametrize("network", ["resnet8_cifar", "vgg11_bn_cifar"])
@pytest.mark.parametrize("method", ["per_sample", "subset", "micro_batch", "authors", "lars", "mnag"])
def test_a_step_stays_on_its_device_and_waits_for_nothing(meta_without_autocast, network, method):
    model = build_model(network, 10, width=4).to(META).train()
    groups = [
        {"params": [parameter for _, parameter in group["params"]], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, 2e-4)
    ]
    norms, optimizer = None, None
    if method in ("per_sample", "subset", "micro_batch"):
        norms = PerSampleNorms(model, method, norm_samples=8)
        optimizer = CLARS(groups, 6.4, norms=norms)
    else:
        optimizer = {"authors": AuthorsCLARS, "lars": LARS, "mnag": NAG}[method](groups, 6.4)
    images = torch.empty(16, 3, 32, 32, dtype=torch.uint8, device=META)
    labels = torch.empty(16, dtype=torch.int64, device=META)

    def loss(rows=slice(None)):
        return model(pixel_values=images[rows], labels=labels[rows]).loss

    for _ in range(2):
        for _ in range(2):
            (loss() / 2).backward()
        if method == "authors":
            adapted = [p for group in optimizer.param_groups for p in group["params"] if is_adapted(group, p)]
            measured = mean_gradient_norms(model, adapted, [lambda: loss(slice(0, 8)), lambda: loss(slice(8, 16))])
            optimizer.measured(dict(zip(adapted, measured.unbind(), strict=True)))
        optimizer.step()
        optimizer.zero_grad()
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, torch.Tensor)]
    assert state
    assert {value.device for value in state} == {META}
    if norms is not None:
        norms.detach()


def test_batches_of_resident_images_stay_on_the_device():
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(32, 3, 32, 32, dtype=torch.uint8, device="cuda")
        labels = torch.empty(32, dtype=torch.int64, device="cuda")
        with pytest.raises(RuntimeError):
            images.gather(3, torch.zeros(32, 3, 32, 32, dtype=torch.int64))  # found, too
        draws = torch.from_numpy(random_shifts(0, 0, 32, 4)).to(images.device)
        assert shifted_and_mirrored(images, draws, 4).device.type == "cuda"
        for indices in ([1, 2, 3], [5, 1]):
            batch = DecodedImages(images, labels).__getitems__(indices)
            assert {value.device.type for value in batch.values()} == {"cuda"}
