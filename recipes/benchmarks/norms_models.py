"""The models that are measured: timm's by name, and a GPT-2 and a BERT of a chosen size; all with random weights."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from hf_clars.errors import UserError

IMAGE_MODELS = ("resnet18", "resnet50", "densenet121", "mobilenetv2_100", "vit_small_patch16_224")
TEXT_MODELS = ("gpt2", "bert")
MODELS = (*IMAGE_MODELS, *TEXT_MODELS)
CLASSES, VOCABULARY, LAYERS, SEQUENCE = 10, 4096, 4, 128


def check_sizes(options: argparse.Namespace) -> None:
    """Raise `UserError` for sizes that no model here takes."""
    if "vit_small_patch16_224" in options.models and options.image_size % 16:
        raise UserError(f"--image_size {options.image_size} must be a multiple of 16 for vit_small_patch16_224")
    if options.width % 64:
        raise UserError(f"--width {options.width} must be a multiple of 64")


class TextModel(nn.Module):
    """Token ids to logits, with positions and types spelt out for every sample.

    transformers would let them broadcast, and a layer that sees one row for the whole batch has no per-sample gradient.
    """

    def __init__(self, network: nn.Module, **inputs: int) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[-1], device=ids.device).repeat(len(ids), 1)
        constants = {name: torch.full_like(ids, value) for name, value in self.inputs.items()}
        return self.network(input_ids=ids, position_ids=positions, **constants).logits


def make(name: str, options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in train mode, its input and its labels, of the sizes and on the device that are asked for."""
    torch.manual_seed(0)
    if name in TEXT_MODELS:
        model = _text_model(name, options.width)
        x, y = (torch.randint(VOCABULARY, (options.batch_size, SEQUENCE)) for _ in range(2))
    else:
        import timm

        size = {"img_size": options.image_size} if name.startswith("vit") else {}
        model = timm.create_model(name, num_classes=CLASSES, **size)
        x = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
        y = torch.randint(CLASSES, (options.batch_size,))
    for module in model.modules():
        if isinstance(module, BatchNorm):
            # timm begins with zeros in the last one of a block, behind which all gradients are zero: nothing to compare
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model, x, y = model.to(options.device).train(), x.to(options.device), y.to(options.device)
    if options.channels_last and x.ndim == 4:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return model, x, y


def mixes_samples(model: nn.Module) -> bool:
    """Whether there is a BatchNorm in train mode."""
    return any(isinstance(module, BatchNorm) and module.training for module in model.modules())


@torch.no_grad()
def freeze_batch_norm(model: nn.Module, x: Tensor) -> None:
    """Eval mode with the statistics of this batch and fixed affine weights: what every peer can live with."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    for module in norms:
        module.momentum = None  # a plain average, here of one batch
        module.reset_running_stats()
    model(x)
    for module in norms:
        module.eval().requires_grad_(False)


def mean_loss(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, a mean over samples, and over the tokens of each."""
    return F.cross_entropy(forward(x).flatten(0, -2).float(), y.flatten())


def _text_model(name: str, width: int) -> nn.Module:
    import transformers

    heads = max(1, width // 64)
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=SEQUENCE, n_embd=width, n_layer=LAYERS, n_head=heads, use_cache=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,  # so that all methods compute the same
            tie_word_embeddings=False,  # peers cannot measure a shared weight
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return TextModel(transformers.GPT2LMHeadModel(config))
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=SEQUENCE, hidden_size=width, num_hidden_layers=LAYERS,
        num_attention_heads=heads, intermediate_size=4 * width, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, tie_word_embeddings=False, pad_token_id=None,
    )  # fmt: skip
    return TextModel(transformers.BertForMaskedLM(config), token_type_ids=0)
