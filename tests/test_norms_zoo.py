"""A sample of `recipes/zoo`: architectures whose parameters are used in unusual ways, against batches of one."""

import pytest
import timm
import torch
import transformers
from torch import nn

from .helpers.verdicts import assert_right

TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 1},  # class token, position embeddings
    "swin_tiny_patch4_window7_224": {  # tables of relative positions, windows
        "img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2),
    },
    "swinv2_tiny_window8_256": {  # relative positions computed by an MLP from a constant grid
        "img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2),
    },
    "beit_base_patch16_224": {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2},  # reads another's weight
    "convit_tiny": {"img_size": 32, "embed_dim": 16, "depth": 2, "local_up_to_layer": 1},  # gates, in-place division
    "nf_resnet26": {"depths": (1, 1, 1, 1), "channels": (16, 16, 16, 16), "stem_chs": 8},  # standardised weights
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},  # layer scale
    "edgenext_xx_small": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},  # positions computed for each sample
    "tf_mobilenetv3_small_minimal_100": {},  # convolutions that pad by themselves
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **TIMM[name]).double().eval()
    assert_right(model, torch.randn(3, 3, 32, 32).double())


class LastHiddenState(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        options = {"decoder_input_ids": x.flip(1)} if self.model.config.is_encoder_decoder else {}
        return self.model(x, **options).last_hidden_state


SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TRANSFORMERS = {
    "t5": lambda: transformers.T5Model(
        transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    ),
    "albert": lambda: transformers.AlbertModel(
        transformers.AlbertConfig(vocab_size=20, embedding_size=4, max_position_embeddings=16, **SMALL),
        add_pooling_layer=False,
    ),
    "llama": lambda: transformers.LlamaModel(
        transformers.LlamaConfig(vocab_size=20, use_cache=False, **SMALL)
    ),
    "wav2vec2": lambda: transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            conv_dim=(8, 8), conv_kernel=(4, 3), conv_stride=(2, 2), num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0, **SMALL,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("length", [3, 7])  # as many positions as samples too
def test_transformers(name, length):
    torch.manual_seed(0)
    model = LastHiddenState(TRANSFORMERS[name]().double().eval())
    x = torch.randn(3, 8 * length).double() if name == "wav2vec2" else torch.randint(2, 20, (3, length))
    assert_right(model, x)
