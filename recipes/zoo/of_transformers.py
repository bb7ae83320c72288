"""Every transformers model type of some auto classes, built from a tiny configuration."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from architecture import Case, Inputs, Setting, call, on_meta, refuse_large, wants_float32
from torch import Tensor, nn
from transformers.models.auto import configuration_auto, modeling_auto

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
VOCABULARY = 99
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
WIDE = {  # in place of some of these, for a network that is measured as a whole
    "hidden_size": 256, "head_dim": 64, "intermediate_size": 1024, "max_position_embeddings": 256, "d_model": 256,
    "n_embd": 256, "n_inner": 1024, "n_positions": 256, "dim": 256, "hidden_dim": 1024, "embed_dim": 256, "d_kv": 64,
    "d_ff": 1024, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024, "ffn_dim": 1024, "emb_dim": 256, "image_size": 96,
    "embedding_size": 128, "rotary_dim": 16, "projection_dim": 256,
}  # fmt: skip
COMMON = (
    "causal_lm/gpt2", "causal_lm/llama", "causal_lm/qwen3", "causal_lm/mamba", "masked_lm/bert", "masked_lm/albert",
    "masked_lm/modernbert", "seq2seq_lm/bart", "seq2seq_lm/t5", "image/vit", "image/dinov2", "image/segformer",
    "ctc/wav2vec2", "base/clip",
)  # fmt: skip
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


def transformers_cases(common: bool = False) -> list[Case]:
    """Of every model type, or of those that are trained most."""
    cases = []
    for task, mapping in MAPPINGS.items():
        for model_type in sorted(mapping):
            if common and f"{task}/{model_type}" not in COMMON:
                continue
            for attention in ("eager", "sdpa") if f"{task}/{model_type}" in SDPA else ("eager",):
                name = f"transformers/{task}/{model_type}" + ("+sdpa" if attention == "sdpa" else "")
                cases.append(Case(name, partial(build_transformers, task, model_type, attention)))
    return cases


def build_transformers(task: str, model_type: str, attention: str, setting: Setting) -> tuple[nn.Module, Inputs]:
    config_class = configuration_auto.CONFIG_MAPPING[model_type]
    errors: list[Exception] = []
    # Some configurations contradict themselves when all sizes change; multi-head latent attention wants equal heads.
    sizes = {**TINY, **WIDE} if setting.whole else TINY
    for choice in (sizes, {**sizes, "num_key_value_heads": 4}, SHALLOW):
        try:
            ready = CONFIGURED.get(model_type)
            config = config_class(**ready) if ready else _tiny(config_class, choice)
            classes = TASKS[task]._model_mapping[config_class]
            config.architectures = [(classes[0] if isinstance(classes, tuple) else classes).__name__]
            if task == "causal_lm" and hasattr(config, "is_decoder"):
                config.is_decoder = True
            build = partial(TASKS[task].from_config, config, attn_implementation=attention)
            refuse_large(on_meta(build))
            model = build().eval()
            inputs = _inputs(task, config, inspect.signature(model.forward).parameters, setting)
            with torch.no_grad():
                call(model, inputs)
            return model, inputs
        except Exception as e:
            if wants_float32(e):
                raise
            errors.append(e)
    raise errors[0]


def _inputs(task: str, config: Any, takes: Any, setting: Setting) -> Inputs:
    vision = getattr(config, "vision_config", None) or config
    side = getattr(vision, "image_size", None) or 64
    side = (side, side) if isinstance(side, int) else tuple(side)
    batch = setting.batch
    ids = torch.randint(5, VOCABULARY, (2, batch, setting.length))
    makers: dict[str, Callable[[], Tensor]] = {
        "input_ids": lambda: ids[0],
        "decoder_input_ids": lambda: ids[1],
        "pixel_values": lambda: torch.randn(batch, getattr(vision, "num_channels", None) or 3, *side),
        "input_values": lambda: torch.randn(batch, 200 * setting.length),
        "input_features": lambda: torch.randn(batch, *_features(config)),
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
