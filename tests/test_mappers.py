"""The mapping networks against the paper's parameter counts and a plain reading of the published layers."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from prefixcap.captioner import Captioner
from prefixcap.encoders import EncoderIdentity
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, Tuning, load_language_model
from prefixcap.mappers import MLPMapper, TransformerMapper, build_mapper
from prefixcap.training import trainable_parameters


@pytest.mark.parametrize(
    ("mapper", "tuning", "millions"),
    [("mlp", "frozen", 31.5), ("transformer", "frozen", 41.7), ("mlp", "full", 155.9)],
)
def test_trainable_parameters_are_the_published_ones(mapper: str, tuning: Tuning, millions: float) -> None:
    tokenizer = load_language_model("demo").tokenizer
    with torch.device("meta"):
        lm = LanguageModel(GPT2LMHeadModel(GPT2Config()), tokenizer, "gpt2", tuning)
        captioner = Captioner(lm, EncoderIdentity("clip:ViT-B/32", "", "", 512), {"name": mapper})
    trained, frozen = trainable_parameters(captioner)
    assert round(trained / 1e6, 1) == millions
    assert frozen == (0 if tuning == "full" else 124_439_808)


def test_transformer_mapper_computes_the_published_layers() -> None:
    """Against the layers written out: einsum attention, (2, heads, head dim) keys and values, pre-norm, ReLU."""
    torch.manual_seed(0)
    mapper = TransformerMapper(embedding_dim=6, lm_dim=16, prefix_length=3, clip_length=2, layers=2, heads=4)
    embedding = torch.randn(5, 6)
    hidden = torch.cat((mapper.linear(embedding).view(5, 2, 16), mapper.prefix_const.expand(5, 3, 16)), dim=1)
    for layer in mapper.layers:
        normed = F.layer_norm(hidden, (16,), layer.norm1.weight, layer.norm1.bias)
        queries = (normed @ layer.attn.to_queries.weight.T).reshape(5, 5, 4, 4)
        keys_values = (normed @ layer.attn.to_keys_values.weight.T).reshape(5, 5, 2, 4, 4)
        keys, values = keys_values[:, :, 0], keys_values[:, :, 1]
        attention = (torch.einsum("bnhd,bmhd->bnmh", queries, keys) * 4**-0.5).softmax(dim=2)
        gathered = torch.einsum("bnmh,bmhd->bnhd", attention, values).reshape(5, 5, 16)
        hidden = hidden + gathered @ layer.attn.project.weight.T + layer.attn.project.bias
        normed = F.layer_norm(hidden, (16,), layer.norm2.weight, layer.norm2.bias)
        first, _, second = layer.mlp
        hidden = hidden + F.relu(normed @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(mapper(embedding), hidden[:, 2:])


def test_mlp_mapper_has_one_hidden_layer_with_tanh() -> None:
    torch.manual_seed(0)
    mapper = MLPMapper(embedding_dim=6, lm_dim=8, prefix_length=3)
    embedding = torch.randn(5, 6)
    first, _, second = mapper.model
    expected = torch.tanh(embedding @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert first.out_features == 12
    torch.testing.assert_close(mapper(embedding), expected.reshape(5, 3, 8))


def test_unknown_names_and_options_are_told() -> None:
    with pytest.raises(InputError, match="unknown mapper 'rnn': choose one of mlp, transformer"):
        build_mapper("rnn", 4, 8)
    with pytest.raises(InputError, match=r"mapper 'mlp'.*layers"):
        build_mapper("mlp", 4, 8, layers=2)
    with pytest.raises(InputError, match="width 10 cannot be split into 8 heads"):
        build_mapper("transformer", 4, 10)
