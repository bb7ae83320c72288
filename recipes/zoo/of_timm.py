"""The smallest timm model of each name prefix and of each set of layer types, in every module file."""

import fnmatch
import hashlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from architecture import Case, Inputs, Setting, count_parameters, on_meta, refuse_large
from timm.models import _registry as timm_registry
from torch import nn

SIZES_FILE = Path(__file__).with_name("timm_sizes.json")  # model → [parameters, its set of layer types]; a cache
IMAGE_SIZES = (64, 84, 96, 112, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
SHRINK = ({"depth": 2}, {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}, {"depths": (1, 1, 1)})
OVERRIDES = {"mobilenetv5_300m*": {"channel_multiplier": 0.25}}  # pattern → arguments of create_model


def timm_cases(families: bool = False) -> list[Case]:
    """Of each family (module file and prefix of a name) the smallest; unless `families`, of each set of layers, too."""
    sizes = json.loads(SIZES_FILE.read_text(encoding="utf-8")) if SIZES_FILE.exists() else {}
    names = timm.list_models()
    new = [n for n in names if n not in sizes]
    sizes.update((n, _size_of(n)) for n in new)
    if new:
        SIZES_FILE.write_text(
            "{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(sizes[n])}" for n in names) + "\n}\n", encoding="utf-8"
        )
    smallest: dict[tuple[str, str], str] = {}
    for name in sorted(names, key=lambda n: sizes[n][0]):
        module = timm_registry._model_to_module[name]
        for family in (re.split(r"[_\d]", name)[0], *(() if families else (sizes[name][1],))):
            smallest.setdefault((module, family), name)
    return [Case(f"timm/{name}", partial(build_timm, name)) for name in sorted(set(smallest.values()))]


def _size_of(name: str) -> tuple[int, str]:
    model = on_meta(lambda: timm.create_model(name))
    layers = sorted({f"{type(m).__name__}:{','.join(m._parameters)}" for m in model.modules() if m._parameters})
    return count_parameters(model), hashlib.sha1(" ".join(layers).encode()).hexdigest()[:8]


def build_timm(name: str, setting: Setting) -> tuple[nn.Module, Inputs]:
    options: dict[str, Any] = {"num_classes": 10}
    for pattern, override in OVERRIDES.items():
        options |= override if fnmatch.fnmatch(name, pattern) else {}
    if not _accepts(name, options):
        options = {}
    full = count_parameters(on_meta(lambda: timm.create_model(name, **options)))
    shrunk = [{**options, **fewer} for fewer in SHRINK if _accepts(name, {**options, **fewer}, below=full)]
    for choice in [options] if setting.whole else [*shrunk[:1], options]:
        try:
            return _smallest_images(name, choice, setting)
        except Exception as e:
            error = e
    raise error


def _smallest_images(name: str, options: dict[str, Any], setting: Setting) -> tuple[nn.Module, Inputs]:
    """The model, and images of the least size that it accepts, or of its own."""
    meta = on_meta(lambda: timm.create_model(name, **options))
    refuse_large(meta)
    default = meta.default_cfg["input_size"][-1]
    sized = _accepts(name, {**options, "img_size": default})
    model = None if sized else timm.create_model(name, **options).eval()
    sides = (default,) if setting.checkpointing else (*(s for s in IMAGE_SIZES if s >= setting.side), default)
    for side in sides:
        images = torch.randn(setting.batch, 3, side, side)
        try:
            if sized:
                model = timm.create_model(name, **options, img_size=side).eval()
            with torch.no_grad():
                model(images[:2])
            return model, (images,)
        except Exception as e:
            error = e
    raise error


def _accepts(name: str, options: dict[str, Any], below: float = float("inf")) -> bool:
    """Whether the model can be built with these arguments, with fewer parameters than `below`."""
    try:
        return count_parameters(on_meta(lambda: timm.create_model(name, **options))) < below
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, StopIteration):
        return False  # an argument that it does not know, or a size that does not fit its others
