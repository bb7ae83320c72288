"""What `PerSampleNorms` measures, and whether it is right, over timm's and transformers' architectures.

    python recipes/zoo.py [--library timm|transformers|all] [--names PATTERN ...] [--json zoo.json]
                          [--jobs 1] [--time_limit 120] [--list]

timm: in every module file, the smallest model of each name prefix and of each set of layer types. transformers: every
model type of the auto classes for language modelling, image classification and CTC, built from a tiny configuration,
and some others. `--names` takes shell patterns such as `timm/swin*`. Weights are random; nothing is downloaded.

Each architecture runs in a process of its own, in float64 and eval mode (BatchNorm by running statistics, no dropout),
on 3 samples with loss (1/3) Σ f_i, f_i being random linear plus square in sample i's outputs. Its line says how many
parameters are measured, and the largest error of any norm against ‖∇f_i‖/3 of batches of one by
`torch.autograd.grad`, relative to that parameter's largest norm. Weight gradients with and without measuring must
agree to 1e-9 and outputs to 1e-12; where an output is not the same to the bit, the line says so. Ends with what is not
measured, grouped by reason; exit status 1 if any number was wrong.
"""

import argparse
import fnmatch
import hashlib
import inspect
import json
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from timm.models import _registry as timm_registry
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.models.auto import configuration_auto, modeling_auto

import hf_clars
from hf_clars import PerSampleNorms

BATCH = 3
LARGEST = 150_000_000  # parameters of a model that still runs
TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
}  # of a norm; rounding inside a model (a cast to float32) included
TINY_GRADIENT = 1e-6  # of the model's largest: errors of smaller gradients, maybe mere rounding, are relative to this

Inputs = dict[str, Tensor] | tuple[Tensor, ...]


@dataclass
class Case:
    """An architecture: what it is called, and how to build it with inputs that it accepts."""

    name: str
    build: Callable[[], tuple[nn.Module, Inputs]]


# --- timm ------------------------------------------------------------------------------------------------------

SIZES_FILE = Path(__file__).with_suffix("") / "timm_sizes.json"  # model → [parameters, its set of layer types]; a cache
IMAGE_SIZES = (64, 84, 96, 112, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
SHRINK = ({"depth": 2}, {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}, {"depths": (1, 1, 1)})
OVERRIDES = {"mobilenetv5_300m*": {"channel_multiplier": 0.25}}  # pattern → arguments of create_model
MIXES = {  # what equal outputs do not show, so that ∇f_i is not what a sample contributes
    "timm/csatv2*": "samples mix: its spatial attention is q @ k.transpose(-1, -2) of [batch, positions]",
}


def timm_cases() -> list[Case]:
    sizes = json.loads(SIZES_FILE.read_text()) if SIZES_FILE.exists() else {}
    names = timm.list_models()
    new = [n for n in names if n not in sizes]
    sizes.update((n, _size_of(n)) for n in new)
    if new:
        SIZES_FILE.parent.mkdir(exist_ok=True)
        SIZES_FILE.write_text("{\n" + ",\n".join(f"{json.dumps(n)}: {json.dumps(sizes[n])}" for n in names) + "\n}\n")
    families: dict[tuple[str, str], str] = {}
    for name in sorted(names, key=lambda n: sizes[n][0]):
        module = timm_registry._model_to_module[name]
        for family in (re.split(r"[_\d]", name)[0], sizes[name][1]):
            families.setdefault((module, family), name)
    return [Case(f"timm/{name}", partial(build_timm, name)) for name in sorted(set(families.values()))]


def _size_of(name: str) -> tuple[int, str]:
    model = _on_meta(lambda: timm.create_model(name))
    layers = sorted({f"{type(m).__name__}:{','.join(m._parameters)}" for m in model.modules() if m._parameters})
    return _parameters(model), hashlib.sha1(" ".join(layers).encode()).hexdigest()[:8]


def build_timm(name: str) -> tuple[nn.Module, Inputs]:
    options: dict[str, Any] = {"num_classes": 10}
    for pattern, override in OVERRIDES.items():
        options |= override if fnmatch.fnmatch(name, pattern) else {}
    if not _accepts(name, options):
        options = {}
    full = _parameters(_on_meta(lambda: timm.create_model(name, **options)))
    shrunk = [{**options, **fewer} for fewer in SHRINK if _accepts(name, {**options, **fewer}, below=full)]
    for choice in [*shrunk[:1], options]:
        try:
            return _smallest_images(name, choice)
        except Exception as e:
            error = e
    raise error


def _smallest_images(name: str, options: dict[str, Any]) -> tuple[nn.Module, Inputs]:
    """The model, and images of the least size that it accepts."""
    meta = _on_meta(lambda: timm.create_model(name, **options))
    _refuse_large(meta)
    default = meta.default_cfg["input_size"][-1]
    sized = _accepts(name, {**options, "img_size": default})
    model = None if sized else timm.create_model(name, **options).eval()
    for side in (*IMAGE_SIZES, default):
        images = torch.randn(BATCH, 3, side, side)
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
    try:
        return _parameters(_on_meta(lambda: timm.create_model(name, **options))) < below
    except Exception:
        return False


# --- transformers ------------------------------------------------------------------------------------------------

TASKS = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "seq2seq_lm": transformers.AutoModelForSeq2SeqLM,
    "image": transformers.AutoModelForImageClassification,
    "ctc": transformers.AutoModelForCTC,
    "base": transformers.AutoModel,
}
MAPPINGS = {
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked_lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "ctc": modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES,
    "base": (
        "align",
        "altclip",
        "chinese_clip",
        "clip",
        "flava",
        "siglip",
        "whisper",
        "dinov3_vit",
        "videomae",
    ),
}
SDPA = ("causal_lm/gpt2", "causal_lm/llama", "masked_lm/bert", "seq2seq_lm/bart", "image/vit", "base/clip")
VOCABULARY, LENGTH = 99, 8
TINY = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 64, "d_model": 32,
    "n_embd": 32, "n_inner": 48, "n_positions": 64, "n_layer": 2, "n_head": 4, "dim": 32, "hidden_dim": 48,
    "n_layers": 2, "n_heads": 4, "emb_dim": 32, "embedding_size": 16, "embed_dim": 32, "encoder_layers": 2,
    "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "ffn_dim": 48, "word_embed_proj_dim": 32, "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1,
    "max_source_positions": 64, "rotary_dim": 8, "projection_dim": 16, "image_size": 64, "patch_size": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "num_labels": 10,
    "use_cache": False,
}  # fmt: skip
SHALLOW = {
    **{k: v for k, v in TINY.items() if k.endswith(("layer", "layers", "_id", "_labels"))},
    **{k: TINY[k] for k in ("vocab_size", "image_size", "use_cache")},
}
TINY_SWIN = {"image_size": 64, "embed_dim": 16, "num_heads": [2, 2, 4, 4], "depths": [1, 1, 2, 1], "window_size": 2}
CONFIGURED: dict[str, dict[str, Any]] = {  # model type → the tiny configuration, where neither of these works
    "convnext": {"hidden_sizes": [16, 24, 32, 32], "depths": [1, 1, 1, 1]},
    "convnextv2": {"hidden_sizes": [16, 24, 32, 32], "depths": [1, 1, 1, 1]},
    "donut-swin": TINY_SWIN,
    "gpt_neo": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
    },
    "swin": TINY_SWIN,
}  # fmt: skip


def transformers_cases() -> list[Case]:
    cases = []
    for task, mapping in MAPPINGS.items():
        for model_type in sorted(mapping):
            for attention in ("eager", "sdpa") if f"{task}/{model_type}" in SDPA else ("eager",):
                name = f"transformers/{task}/{model_type}" + ("+sdpa" if attention == "sdpa" else "")
                cases.append(Case(name, partial(build_transformers, task, model_type, attention)))
    return cases


def build_transformers(task: str, model_type: str, attention: str) -> tuple[nn.Module, Inputs]:
    config_class = configuration_auto.CONFIG_MAPPING[model_type]
    errors: list[Exception] = []
    # Some configurations contradict themselves when all sizes change; multi-head latent attention wants equal heads.
    for sizes in (TINY, {**TINY, "num_key_value_heads": 4}, SHALLOW):
        try:
            ready = CONFIGURED.get(model_type)
            config = config_class(**ready) if ready else _tiny(config_class, sizes)
            classes = TASKS[task]._model_mapping[config_class]
            config.architectures = [(classes[0] if isinstance(classes, tuple) else classes).__name__]
            if task == "causal_lm" and hasattr(config, "is_decoder"):
                config.is_decoder = True
            build = partial(TASKS[task].from_config, config, attn_implementation=attention)
            _refuse_large(_on_meta(build))
            model = build().eval()
            inputs = _inputs(task, config, inspect.signature(model.forward).parameters)
            with torch.no_grad():
                call(model, inputs)
            return model, inputs
        except Exception as e:
            if wants_float32(e):
                raise
            errors.append(e)
    raise errors[0]


def _inputs(task: str, config: Any, takes: Any) -> Inputs:
    vision = getattr(config, "vision_config", None) or config
    side = getattr(vision, "image_size", None) or 64
    side = (side, side) if isinstance(side, int) else tuple(side)
    ids = torch.randint(5, VOCABULARY, (2, BATCH, LENGTH))
    makers: dict[str, Callable[[], Tensor]] = {
        "input_ids": lambda: ids[0],
        "decoder_input_ids": lambda: ids[1],
        "pixel_values": lambda: torch.randn(BATCH, getattr(vision, "num_channels", None) or 3, *side),
        "input_values": lambda: torch.randn(BATCH, 1600),
        "input_features": lambda: torch.randn(BATCH, *_features(config)),
    }
    wanted = {
        "image": ["pixel_values"],
        "ctc": ["input_values", "input_features"],
        "base": ["input_ids", "pixel_values", "input_values", "input_features"],
    }.get(task, ["input_ids"])
    if getattr(config, "is_encoder_decoder", False):
        wanted = [*wanted, "decoder_input_ids"]
    return {w: makers[w]() for w in wanted if w in takes}


def _features(config: Any) -> tuple[int, int]:
    """Shape of a sample's spectrogram: Whisper's is channels first and has one length."""
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        return config.num_mel_bins, 2 * config.max_source_positions
    return 64, getattr(config, "feature_projection_input_dim", getattr(config, "num_mel_bins", 80))


def _tiny(config_class: type, sizes: dict[str, Any]) -> Any:
    """The class's default configuration with every size that it knows of made small."""
    default = config_class()
    values = default.to_dict()
    options: dict[str, Any] = {}
    for key in {*values, *default.attribute_map}:
        value = values.get(key, values.get(default.attribute_map.get(key)))
        if key in sizes and (value is None or type(value) is type(sizes[key])):
            options[key] = sizes[key]
        elif key == "depths" and value:
            options[key] = [1] * len(value)
    for key, same in default.attribute_map.items():
        if key in options and same in options:
            del options[key]
    for key in getattr(config_class, "sub_configs", {}):
        if getattr(default, key, None) is not None:
            options[key] = _tiny(type(getattr(default, key)), sizes).to_dict()
    return config_class(**options)


# --- one architecture ----------------------------------------------------------------------------------------------


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def _refuse_large(model: nn.Module) -> None:
    if _parameters(model) > LARGEST:
        raise ValueError(f"{_parameters(model) / 1e6:.0f} million parameters at its smallest")


def call(model: nn.Module, inputs: Inputs, samples: slice = slice(None)) -> list[Tensor]:
    """The model's outputs, each with the samples as its first dimension."""
    torch.manual_seed(1)  # for those that draw something even in eval mode
    if isinstance(inputs, dict):
        outputs = model(**{k: v[samples] for k, v in inputs.items()})
    else:
        outputs = model(*(v[samples] for v in inputs))
    if isinstance(outputs, dict):
        for keys in (("logits",), ("prediction_logits",), ("image_embeds", "text_embeds"), ("last_hidden_state",)):
            if all(isinstance(outputs.get(k), Tensor) for k in keys):
                return [outputs[k] for k in keys]
        outputs = tuple(outputs.values())
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return [o for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]


def randomize(model: nn.Module, inputs: Inputs) -> None:
    """Break what initialisation leaves constant (zero gradients would hide errors); let BatchNorm see some data."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() > 1 and parameter.min() == parameter.max():
                scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
                parameter += scale * torch.randn_like(parameter)
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_var is not None]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        if norms:
            call(model, inputs)
        for norm in norms:
            norm.eval()
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var.mul_(0.8 + 0.4 * torch.rand_like(norm.running_var)).add_(1e-3)


def functional(outputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    """f_i of each sample: random linear plus square."""
    return sum(((o * w + 0.5 * o.square()).flatten(1).mean(1)) for o, w in zip(outputs, weights, strict=True))


def wants_float32(error: Exception) -> bool:
    """Whether the model failed because it insists on float32 somewhere."""
    return (
        torch.get_default_dtype() is torch.float64
        and isinstance(error, RuntimeError)
        and bool(re.search("dtype|Double|Float", str(error)))
    )


def examine(case: Case) -> dict[str, Any]:
    """Everything that is known about one architecture."""
    for dtype in TOLERANCE:
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            model, inputs = case.build()
            model = model.to(dtype).eval()
            randomize(model, inputs)
            mixed = next((reason for pattern, reason in MIXES.items() if fnmatch.fnmatch(case.name, pattern)), "")
            return {"dtype": str(dtype).removeprefix("torch."), **compare(model, inputs, TOLERANCE[dtype], mixed)}
        except RuntimeError as error:
            if not wants_float32(error):
                raise
    raise AssertionError


def compare(model: nn.Module, inputs: Inputs, tolerance: float, mixed: str) -> dict[str, Any]:
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    owners = {id(p): type(m).__name__ for m in model.modules() for p in m._parameters.values()}
    kind = {n: owners.get(id(p), "?") for n, p in parameters.items()}

    def gradients(f: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(f, list(parameters.values()), allow_unused=True)
        return {n: g for n, g in zip(parameters, found, strict=True) if g is not None}

    outputs = call(model, inputs)
    if not outputs or any(o.shape[:1] != (BATCH,) for o in outputs):
        raise ValueError(f"outputs {[tuple(o.shape) for o in outputs]} are not one per sample")
    if not all(o.isfinite().all() for o in outputs):
        raise ValueError("outputs are not finite")
    weights = [torch.randn_like(o[:1]) for o in outputs]
    plain = gradients(functional(outputs, weights).mean())

    if not all(g.isfinite().all() for g in plain.values()):
        raise ValueError("gradients are not finite")
    floor = max((g.norm().item() for g in plain.values()), default=0.0) * TINY_GRADIENT

    truth, rest = {n: torch.zeros(BATCH) for n in plain}, {n: g.clone() for n, g in plain.items()}
    for i in range(0 if mixed else BATCH):
        try:
            alone = call(model, inputs, slice(i, i + 1))
            off = max(_relative(a - o[i : i + 1], o) for a, o in zip(alone, outputs, strict=True))
        except Exception as error:
            mixed = f"refuses a batch of one ({_line(error)})"
            break
        if off > tolerance:
            mixed = f"samples mix in eval mode (outputs differ by {off:.0e})"
            break
        for n, g in gradients(functional(alone, weights).sum() / BATCH).items():
            truth[n][i] = g.norm()
            rest[n] -= g
    # Where gradients of batches of one do not add up to the batch's, PyTorch is wrong about one of them (BatchNorm2d in
    # eval mode with one sample, CPU, torch 2.14: finite differences side with the batch): take each f_i of the batch.
    adds_up = all(g.norm() <= tolerance * max(plain[n].norm().item(), floor) for n, g in rest.items())
    if not mixed and not adds_up:
        values = functional(call(model, inputs), weights) / BATCH
        for i in range(BATCH):
            found = torch.autograd.grad(values[i], [parameters[n] for n in plain], retain_graph=True, allow_unused=True)
            for n, g in zip(plain, found, strict=True):
                truth[n][i] = 0.0 if g is None else g.norm()
    del rest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PerSampleNorms(model, vectors=True) as norms:
            again = call(model, inputs)
            functional(again, weights).mean().backward()
            measured = norms.per_sample()
            norms.denominators()  # what the optimizer asks for; it is when unmeasured parameters are noticed
            untracked = norms.untracked

    result: dict[str, Any] = {"parameters": _parameters(model), "inputs": _shapes(inputs), "mixed": mixed}
    result["reference"] = "batches of one" if adds_up else "each f_i of the batch"
    result["output_change"] = max(_relative(a - o, o) for a, o in zip(again, outputs, strict=True))
    off_gradients = {
        n: ((torch.zeros_like(g) if (p := parameters[n].grad) is None else p) - g).norm().item()
        / max(g.norm().item(), floor)
        for n, g in plain.items()
    }
    result["gradient_error"], result["gradient_error_at"] = _worst(off_gradients)

    matrices = {n for n in plain if parameters[n].ndim >= 2}
    vectors = plain.keys() - matrices
    tracked = {n for n in plain if n in measured and n not in untracked}
    result["matrices"], result["matrices_measured"] = len(matrices), len(matrices & tracked)
    result["vectors"], result["vectors_measured"] = len(vectors), len(vectors & tracked)
    result["elements"] = sum(parameters[n].numel() for n in matrices)
    result["elements_measured"] = sum(parameters[n].numel() for n in matrices & tracked)
    result["no_gradient"] = sorted(parameters.keys() - plain.keys())
    exceptions = defaultdict(list)
    for n in sorted(plain.keys() - tracked):
        if n in matrices:
            exceptions[untracked.get(n, f"no norm and no reason ({kind[n]})")].append(n)
        else:
            exceptions[f"1-d: no norm ({kind[n]})"].append(n)
    result["exceptions"] = dict(exceptions)

    if not mixed:
        result["tiny_gradients"] = sum(truth[n].max().item() < floor for n in tracked)
        errors = {n: _error(measured[n], truth[n], floor) for n in tracked}
        result["error"], result["error_at"] = _worst(errors)
        result["wrong"] = [
            {
                "parameter": n,
                "layer": kind[n],
                "shape": list(parameters[n].shape),
                "error": errors[n],
                "measured": measured[n].flatten().tolist()[:8],
                "truth": truth[n].tolist(),
            }
            for n in sorted(tracked, key=lambda n: -errors[n])
            if not errors[n] <= tolerance
        ]
    return result


def _error(measured: Tensor, truth: Tensor, floor: float) -> float:
    if measured.shape != truth.shape:
        return float("inf")
    error = ((measured - truth).abs().max() / max(truth.max().item(), floor)).item()
    return float("inf") if math.isnan(error) else error


def _relative(difference: Tensor, reference: Tensor) -> float:
    return (difference.abs().max() / reference.abs().max().clamp(min=1e-30)).item()


def _worst(errors: dict[str, float]) -> tuple[float, str]:
    name = max(errors, key=lambda n: errors[n], default="")
    return errors.get(name, 0.0), name


def _shapes(inputs: Inputs) -> str:
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return " ".join("×".join(map(str, v.shape)) for v in values)


def _line(error: BaseException) -> str:
    message = (str(error).strip() or "?").splitlines()[0]
    return f"{type(error).__name__}: {message[:150]}"


# --- all of them -----------------------------------------------------------------------------------------------------


def survey(cases: list[Case], jobs: int, time_limit: float) -> Iterator[dict[str, Any]]:
    """Each case in a forked process of its own, `jobs` at a time; yields what each has to say, as they finish."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(reversed(cases)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop()
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(theirs, case))
            process.start()
            theirs.close()
            running[ours] = case, process, time.monotonic()
        earliest = min(start for _, _, start in running.values()) + time_limit
        ready = multiprocessing.connection.wait(list(running), timeout=max(0.0, earliest - time.monotonic()))
        late = [c for c, (_, _, start) in running.items() if time.monotonic() - start > time_limit and c not in ready]
        for connection in [*ready, *late]:
            case, process, start = running.pop(connection)
            if connection in late:
                process.kill()
                result = {"failed": f"longer than {time_limit:g} s"}
            else:
                try:
                    result = connection.recv()
                except EOFError:
                    process.join()
                    result = {"failed": f"the process died with exit status {process.exitcode}"}
            process.join()
            connection.close()
            yield {"name": case.name, "seconds": round(time.monotonic() - start, 1), **result}


def _work(connection: Any, case: Case) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        connection.send(examine(case))
    except Exception as error:
        connection.send({"failed": _line(error)})


def verdict(result: dict[str, Any]) -> list[str]:
    """What is wrong with an architecture's numbers."""
    found = []
    if result.get("wrong"):
        found.append(f"{len(result['wrong'])} NORMS WRONG")
    if result.get("gradient_error", 0) > (1e-9 if result.get("dtype") == "float64" else 1e-4):
        found.append(f"GRADIENT CHANGED by {result['gradient_error']:.0e} at {result['gradient_error_at']}")
    if result.get("output_change", 0) > (1e-12 if result.get("dtype") == "float64" else 1e-5):
        found.append(f"OUTPUT CHANGED by {result['output_change']:.0e}")
    return found


def line(result: dict[str, Any]) -> str:
    head = f"{result['name']:52} {result['seconds']:6.1f} s  "
    if "failed" in result:
        return head + f"did not run: {result['failed']}"
    measured = "".join(f"{result[f'{kind}_measured']:4}/{result[kind]:<4} " for kind in ("matrices", "vectors"))
    error = result["mixed"] or f"{result['error']:.0e} {result['error_at']}"
    notes = [*verdict(result), *(f"{len(names)} × {reason}" for reason, names in result["exceptions"].items())]
    if result["no_gradient"]:
        notes.append(f"{len(result['no_gradient'])} without gradient")
    if result["dtype"] != "float64":
        notes.append(result["dtype"])
    if result["output_change"]:
        notes.append(f"output rounded differently ({result['output_change']:.0e})")
    if not result["mixed"] and result["reference"] != "batches of one":
        notes.append("compared with each f_i of the batch")
    return f"{head}{measured} " + "; ".join([error, *notes])


def summary(results: list[dict[str, Any]]) -> str:
    ran = [r for r in results if "failed" not in r]
    compared = [r for r in ran if not r["mixed"]]
    text = []
    for library in ("timm", "transformers"):
        of = [r for r in ran if r["name"].startswith(library)]
        if of:
            m, mm = sum(r["matrices"] for r in of), sum(r["matrices_measured"] for r in of)
            v, vv = sum(r["vectors"] for r in of), sum(r["vectors_measured"] for r in of)
            e, ee = sum(r["elements"] for r in of), sum(r["elements_measured"] for r in of)
            whole = sum(r["matrices"] == r["matrices_measured"] for r in of)
            text.append(
                f"{library}: {len(of)} architectures, {whole} measured wholly; ≥ 2-d: {mm} of {m} parameters "
                f"({mm / max(m, 1):.2%}; {ee / max(e, 1):.2%} of elements); 1-d: {vv} of {v} ({vv / max(v, 1):.2%})"
            )
    exact = [r["error"] for r in compared if r["dtype"] == "float64" and not r["wrong"]]
    text.append(
        f"compared with batches of one: {len(compared)}, wrong: {sum(bool(r['wrong']) for r in compared)}; "
        f"largest error of the others {max(exact, default=0):.0e}"
    )
    text += _grouped("Not measured", ((reason, len(n), r) for r in ran for reason, n in r["exceptions"].items()))
    text += _grouped("Wrong", ((v.split(" by ")[0].lstrip("0123456789 "), 1, r) for r in ran for v in verdict(r)))
    text += _grouped("Output rounded differently", (("up to 1e-12", 1, r) for r in ran if r["output_change"]))
    text += _grouped(
        "Other reference",
        (
            ("each f_i of the batch: gradients of batches of one do not add up", 1, r)
            for r in compared
            if r["reference"][0] == "e"
        ),
    )
    text += _grouped("Not compared", ((r["mixed"].split(" (")[0], 1, r) for r in ran if r["mixed"]))
    text += _grouped("Did not run", ((r["failed"], 1, r) for r in results if "failed" in r))
    return "\n".join(text)


def _grouped(title: str, found: Iterator[tuple[str, int, dict[str, Any]]]) -> list[str]:
    count: Counter[str] = Counter()
    where = defaultdict(list)
    for reason, n, result in found:
        count[reason] += n
        where[reason].append(result["name"])
    if not count:
        return []
    lines = ["", f"{title}:"]
    for reason, names in sorted(where.items(), key=lambda item: -len(item[1])):
        some = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        lines.append(f"  {len(names):4} architectures, {count[reason]:5} ×  {reason}: {some}")
    return lines


def _fingerprint() -> str:
    """Of the code that is measured: an editable install may be another than the one meant, and change."""
    sources = sorted(Path(hf_clars.__file__).parent.rglob("*.py"))
    return hashlib.sha1(b"".join(p.read_bytes() for p in sources)).hexdigest()[:10]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=["timm", "transformers", "all"], default="all")
    parser.add_argument("--names", nargs="+", metavar="PATTERN", help="only architectures that match one of these")
    parser.add_argument("--json", metavar="FILE", help="write all results there")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--time_limit", type=float, default=120.0, help="seconds for one architecture")
    parser.add_argument("--list", action="store_true", help="only list the architectures")
    options = parser.parse_args()
    if options.jobs < 1 or options.time_limit <= 0:
        parser.error("--jobs must be at least 1 and --time_limit above 0")

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    cases = timm_cases() if options.library != "transformers" else []
    cases += transformers_cases() if options.library != "timm" else []
    if options.names:
        cases = [c for c in cases if any(fnmatch.fnmatch(c.name, p) for p in options.names)]
        if not cases:
            parser.error(f"no architecture matches {' '.join(options.names)}; --list shows their names")
    if options.list:
        print("\n".join(c.name for c in cases))
        return 0

    versions = {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
    measured = {"hf_clars": str(Path(hf_clars.__file__).parent), "sources": _fingerprint()}
    about = {"command": " ".join(sys.argv), "python": platform.python_version(), **versions, **measured}
    start, results = time.monotonic(), []
    print(f"hf_clars of {measured['hf_clars']}, sources {measured['sources']}")
    print(f"{'architecture':52} {'time':>8}  ≥ 2-d     1-d       largest error of a norm; exceptions")
    for result in survey(cases, options.jobs, options.time_limit):
        results.append(result)
        print(line(result), flush=True)
        if options.json:  # each time, so that an interrupted survey leaves what it has
            Path(options.json).write_text(json.dumps({**about, "architectures": results}, indent=1) + "\n")
    print(f"\n{len(results)} architectures in {time.monotonic() - start:.0f} s\n{summary(results)}")
    return int(any(verdict(r) for r in results))


if __name__ == "__main__":
    sys.exit(main())
