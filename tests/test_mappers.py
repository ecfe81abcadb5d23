"""The mapping networks against the paper's parameter counts and a plain reading of the published layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import prefixcap
from data_prep.embedding import embed
from data_prep.records import ImageRecord, dataset_from_files
from prefixcap.captioner import Captioner
from prefixcap.commands.train import required_feature
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import random_scene
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.language import LanguageModel, Tuning, load_language_model
from prefixcap.mappers import MAPPERS, Mapper, MLPMapper, QueryMapper, TransformerMapper, build_mapper
from prefixcap.mappers.fusion import FusionMapper
from prefixcap.mappers.transformer import Attention
from prefixcap.store import FeatureStore, StoreSplit
from prefixcap.training import trainable_parameters
from prefixcap.utils.images import open_image
from tests.conftest import IDENTITY, small_lm

QUERY: dict[str, Any] = {"name": "query", "prefix_length": 4, "width": 24, "layers": 2, "heads": 4}


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


def test_fusion_mapper_computes_the_layers_of_its_paper() -> None:
    """F_att(f_1(image), f_2(captions)), by torch's own attention, and the mapping network on it."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"prefix_length": 3, "clip_length": 2, "layers": 2, "heads": 4}
    mapper = build_mapper("fusion", 6, 16, **options, retrieved=5)
    assert isinstance(mapper, FusionMapper)
    embeddings = F.normalize(torch.randn(4, 6, 6), dim=-1)
    first, second, layer = mapper.linear, mapper.linear_retrieved, mapper.fuse
    queries = (embeddings[:, 0] @ first.weight.T + first.bias).view(4, 2, 16)
    keys = 8 * embeddings[:, 1:] @ second.weight.T + second.bias
    normed = F.layer_norm(queries, (16,), layer.norm1.weight, layer.norm1.bias)
    fused = queries + torch_attention(layer.attn, normed, keys)
    normed = F.layer_norm(fused, (16,), layer.norm2.weight, layer.norm2.bias)
    inner, _, outer = layer.mlp
    fused = fused + F.relu(normed @ inner.weight.T + inner.bias) @ outer.weight.T + outer.bias

    transformer = TransformerMapper(16, 16, **options)  # that reads the fused vectors as they are
    transformer.linear = nn.Identity()  # type: ignore[assignment]
    transformer.load_state_dict(mapper.state_dict(), strict=False)  # its prefix_const and layers
    torch.testing.assert_close(mapper(embeddings), transformer(fused.flatten(1)))
    other = embeddings.clone()
    other[:, 1:] = other[:, 1:].flip(1)
    torch.testing.assert_close(mapper(other), mapper(embeddings))  # captions have no order
    assert not torch.allclose(mapper(embeddings.roll(1, 1)), mapper(embeddings))


def test_mlp_mapper_has_one_hidden_layer_with_tanh() -> None:
    torch.manual_seed(0)
    mapper = MLPMapper(embedding_dim=6, lm_dim=8, prefix_length=3)
    embedding = torch.randn(5, 6)
    first, _, second = mapper.model
    expected = torch.tanh(embedding @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert first.out_features == 12
    torch.testing.assert_close(mapper(embedding), expected.reshape(5, 3, 8))


def small_query_mapper() -> QueryMapper:
    """A query mapper with random weights; as it is made, norms would be the identity and most biases small."""
    torch.manual_seed(0)
    mapper = QueryMapper(embedding_dim=6, lm_dim=10, prefix_length=3, width=16, layers=2, heads=4)
    with torch.no_grad():
        for weight in mapper.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return mapper


def torch_attention(attention: Attention, hidden: Tensor, context: Tensor) -> Tensor:
    """The same attention by torch's own module."""
    dim = hidden.shape[-1]
    module = nn.MultiheadAttention(dim, attention.heads, batch_first=True)
    module.load_state_dict(
        {
            "in_proj_weight": torch.cat((attention.to_queries.weight, attention.to_keys_values.weight)),
            "in_proj_bias": torch.zeros(3 * dim),
            "out_proj.weight": attention.project.weight,
            "out_proj.bias": attention.project.bias,
        }
    )
    gathered: Tensor = module(hidden, context, context)[0]
    return gathered


def test_query_mapper_computes_the_layers_written_out_with_torch_attention() -> None:
    mapper = small_query_mapper()
    patches = torch.randn(5, 7, 6)
    linear, norm = mapper.project
    image = F.layer_norm(patches @ linear.weight.T + linear.bias, (16,), norm.weight, norm.bias)
    hidden = torch.stack([mapper.queries] * 5)
    for layer in mapper.layers:
        normed = F.layer_norm(hidden, (16,), layer.norm1.weight, layer.norm1.bias)
        hidden = hidden + torch_attention(layer.self_attn, normed, normed)
        normed = F.layer_norm(hidden, (16,), layer.norm2.weight, layer.norm2.bias)
        hidden = hidden + torch_attention(layer.cross_attn, normed, image)
        normed = F.layer_norm(hidden, (16,), layer.norm3.weight, layer.norm3.bias)
        first, _, second = layer.mlp
        hidden = hidden + F.gelu(normed @ first.weight.T + first.bias) @ second.weight.T + second.bias
    norm, linear = mapper.to_prefix
    expected = F.layer_norm(hidden, (16,), norm.weight, norm.bias) @ linear.weight.T + linear.bias
    assert expected.shape == (5, 3, 10)
    torch.testing.assert_close(mapper(patches), expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projector_maps_each_patch_by_itself(layers: int) -> None:
    torch.manual_seed(0)
    mapper = build_mapper("projector", 6, 10, prefix_length=7, layers=layers)
    patches = torch.randn(5, 7, 6)
    prefix = mapper(patches)
    assert prefix.shape == (5, 7, 10)
    weights = list(mapper.parameters())
    for image in range(5):
        for patch in range(7):
            vector = weights[0] @ patches[image, patch] + weights[1]
            for weight, bias in zip(weights[2::2], weights[3::2], strict=True):
                vector = weight @ (vector * 0.5 * (1 + torch.erf(vector / 2**0.5))) + bias
            torch.testing.assert_close(prefix[image, patch], vector)
    with pytest.raises(InputError, match=r"have 8 vectors of images/patches, .* was built for 7: set prefix_length=8"):
        mapper(torch.randn(5, 8, 6))


def test_projectors_have_the_published_size() -> None:
    """LLaVA's linear layer and LLaVA-1.5's MLP, from ViT-L/14's 1,024 to Vicuna-7B's 4,096: the shapes in the published
    files mm_projector.bin."""
    shapes = [
        [tuple(weight.shape) for weight in build_mapper("projector", 768, 4096, **options).parameters()]
        for options in (
            {"prefix_length": 256, "layers": 1, "features": "hidden", "input_dim": 1024},
            {"prefix_length": 576, "features": "hidden", "input_dim": 1024},
        )
    ]
    assert shapes == [[(4096, 1024), (4096,)], [(4096, 1024), (4096,), (4096, 4096), (4096,)]]
    for wrong, told in (
        ({}, "one prefix vector for each patch of an image: set prefix_length=49"),
        ({"prefix_length": 4, "features": "image"}, "must be patches, regions, hidden, not 'image'"),
        ({"prefix_length": 4, "input_dim": 9}, "input_dim is the width of hidden states"),
        ({"prefix_length": 4, "features": "hidden"}, "set input_dim=768"),
    ):
        with pytest.raises(InputError, match=told):
            build_mapper("projector", 6, 10, **wrong)


def test_query_mapper_reads_any_number_of_patches_in_any_order() -> None:
    mapper = small_query_mapper()
    patches = torch.randn(2, 9, 6)
    prefix = mapper(patches)
    torch.testing.assert_close(mapper(patches[:, torch.randperm(9)]), prefix)
    torch.testing.assert_close(mapper(patches.repeat(1, 3, 1)), prefix)  # each three times: their mean is the same
    patches[0, 4] += 1
    changed = (mapper(patches) - prefix).abs().amax(dim=(1, 2))
    assert changed[0] > 0.01 and changed[1] == 0


def test_gradients_reach_every_weight_of_the_query_mapper_through_a_frozen_language_model() -> None:
    captioner = Captioner(small_lm("frozen"), IDENTITY, QUERY).train()
    logits = captioner.language_model.model(inputs_embeds=captioner.prefix(torch.randn(2, 5, 16))).logits
    F.cross_entropy(logits[:, -1], torch.tensor([3, 4])).backward()
    for name, weight in captioner.mapper.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_patches_are_normalized_one_by_one() -> None:
    captioner = Captioner(small_lm(), IDENTITY, QUERY, normalize_embeddings=True)
    patches = torch.randn(2, 5, 16)
    scales = 0.1 + 9 * torch.rand(2, 5, 1)
    torch.testing.assert_close(captioner.prefix(patches * scales), captioner.prefix(patches))


def store_of_pictures(folder: Path, features: list[str]) -> StoreSplit:
    """Five pictures of the small world, embedded by its encoder without rounding."""
    generator = np.random.default_rng(0)
    for number in range(5):
        draw(random_scene(generator, "in-domain"), generator).save(folder / f"{number}.jpg")
    records = [ImageRecord(number, f"{number}.jpg", "train", ("A star.",)) for number in range(5)]
    data = dataset_from_files(records, [], folder, "five pictures")
    embed(data, load_encoder("demo"), folder / "store", features, store_dtype=torch.float32, progress=False)
    return FeatureStore(folder / "store").split("train")


@pytest.mark.parametrize(
    ("mapper", "features", "places"),
    [("query", "patches", 49), ("query", "regions", 10), ("projector", "patches", 49), ("projector", "regions", 10)],
)
def test_image_files_pictures_and_stored_features_give_the_same_prefix(
    mapper: str, features: str, places: int, tmp_path: Path
) -> None:
    split = store_of_pictures(tmp_path, ["image", features])
    torch.manual_seed(0)
    options = QUERY if mapper == "query" else {"name": "projector", "prefix_length": places}
    made = Captioner(
        load_language_model("demo"), load_encoder("demo").identity, options | {"features": features}, True
    ).eval()
    made.save_pretrained(tmp_path / "exported")
    captioner = prefixcap.load(tmp_path / "exported")
    assert captioner.describe() == made.describe()

    stored = split.feature(captioner.features)[:]
    assert stored.shape == (5, places, 128)
    prefixes: list[Tensor] = []
    captioner.mapper.register_forward_hook(lambda _module, _read, prefix: prefixes.append(prefix))
    captions = [
        captioner.caption(images, "greedy", max_tokens=10)
        for images in (stored, split.files, [open_image(file) for file in split.files])
    ]
    assert captions[0] == captions[1] == captions[2]
    expected = made.prefix(torch.from_numpy(stored))
    assert (expected[0] - expected[1]).abs().max() > 0.01  # pictures differ
    for prefix in prefixes:
        torch.testing.assert_close(prefix, expected, rtol=1e-4, atol=1e-4)


def test_features_that_a_query_mapper_cannot_read_are_told(tmp_path: Path) -> None:
    captioner = Captioner(small_lm(), IDENTITY, QUERY)
    for shape in ((3, 16), (3, 5, 8)):
        with pytest.raises(InputError) as told:
            captioner.caption(torch.randn(shape))
        assert str(told.value) == (
            f"embeddings of shape {shape}, but this captioner reads (batch, patches, 16): "
            "embed the images with clip:nowhere.pt and features=[image,patches]"
        )
    mlp = Captioner(small_lm(), IDENTITY, {"name": "mlp"})
    with pytest.raises(InputError, match=r"shape \(3, 5, 16\), but this captioner reads \(batch, 16\): embed the "):
        mlp.prefix(torch.randn(3, 5, 16))
    split = store_of_pictures(tmp_path, ["image"])
    with pytest.raises(InputError, match=r"has no images/patches; it has images/embedding: embed .*features="):
        split.feature(captioner.features)


def test_unknown_names_and_options_are_told() -> None:
    with pytest.raises(InputError, match="unknown mapper 'rnn': choose one of mlp, transformer"):
        build_mapper("rnn", 4, 8)
    with pytest.raises(InputError, match=r"mapper 'mlp'.*layers"):
        build_mapper("mlp", 4, 8, layers=2)
    with pytest.raises(InputError, match="width 10 cannot be split into 8 heads: set heads=2"):
        build_mapper("transformer", 4, 10)
    with pytest.raises(InputError, match="width 512 cannot be split into 7 heads"):
        build_mapper("query", 4, 10, heads=7)
    with pytest.raises(InputError, match="must be patches or regions, not 'embedding'"):
        build_mapper("query", 4, 10, features="embedding")


def test_adaptor_mapper_computes_the_layers_of_its_equations() -> None:
    """Equations 5 to 8 of MacCap, each layer written out with torch's own attention."""
    torch.manual_seed(0)
    mapper = build_mapper("adaptor", 16, 12, prefix_length=3, heads=4).eval()
    regions = F.normalize(torch.randn(2, 5, 16), dim=-1)
    weights = dict(mapper.named_parameters())

    def attend(name: str, queries: Tensor, context: Tensor) -> Tensor:
        of = {part: weights[f"decoder.layers.0.{name}.{part}"] for part in ("in_proj_weight", "in_proj_bias")}
        projected = [
            F.linear(rows, weight, bias)
            for rows, weight, bias in zip(
                (queries, context, context), of["in_proj_weight"].chunk(3), of["in_proj_bias"].chunk(3), strict=True
            )
        ]
        heads = [rows.unflatten(-1, (4, 4)).transpose(1, 2) for rows in projected]
        scores = (heads[0] @ heads[1].transpose(2, 3) / 2).softmax(-1) @ heads[2]
        out = scores.transpose(1, 2).flatten(2)
        return F.linear(
            out, weights[f"decoder.layers.0.{name}.out_proj.weight"], weights[f"decoder.layers.0.{name}.out_proj.bias"]
        )

    def norm(name: str, rows: Tensor) -> Tensor:
        return F.layer_norm(rows, (16,), weights[f"decoder.{name}.weight"], weights[f"decoder.{name}.bias"])

    def linear(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, weights[f"{name}.weight"], weights[f"{name}.bias"])

    queries = weights["queries"].expand(2, -1, -1)
    queries = norm("layers.0.norm1", queries + attend("self_attn", queries, queries))
    queries = norm("layers.0.norm2", queries + attend("multihead_attn", queries, regions))
    inside = linear("decoder.layers.0.linear1", queries).relu()
    queries = norm("norm", norm("layers.0.norm3", queries + linear("decoder.layers.0.linear2", inside)))
    expected = linear("to_prefix.4", linear("to_prefix.2", linear("to_prefix.0", queries).relu()).relu())
    torch.testing.assert_close(mapper(regions), expected)
    torch.testing.assert_close(mapper(regions.flip(1)), expected)  # regions have no order


def test_an_untrained_adaptor_reads_its_regions() -> None:
    """Of what its layer gives, elements of variance one, a good part comes from regions of length one; with PyTorch's
    own initial weights 0.018 of it did, and learning took three times as long."""
    torch.manual_seed(0)
    mapper = build_mapper("adaptor", 512, 64, prefix_length=8).eval()
    regions = F.normalize(torch.randn(64, 1, 512), dim=-1).expand(-1, 10, -1)
    decoded = mapper.decoder(mapper.queries.expand(64, -1, -1), regions)
    assert decoded.std(0).mean() > 0.2


def test_text_only_mappers_have_the_published_size() -> None:
    """MacCap's Table 6 with ViT-B/32 and OPT-1.3B: 5.7M, 1.5M for its CapDec and DeCap; cut, not rounded."""
    mlp = {"prefix_length": 1, "hidden": [512, 512], "activation": "relu"}
    sizes = [
        sum(weight.numel() for weight in build_mapper(name, 512, 2048, **options).parameters())
        for name, options in (("adaptor", {}), ("mlp", mlp))
    ]
    assert sizes == [5_797_376, 1_575_936]
    linear = build_mapper("mlp", 512, 768, prefix_length=1, hidden=[])  # DeCap's: one layer
    assert [tuple(weight.shape) for weight in linear.parameters()] == [(768, 512), (768,)]
    with pytest.raises(InputError, match="activation must be tanh or relu, not 'gelu'"):
        build_mapper("mlp", 4, 10, activation="gelu")
    with pytest.raises(InputError, match="cannot be split into 7 heads"):
        build_mapper("adaptor", 16, 10, heads=7)


@pytest.mark.parametrize(("given", "feature"), [("embedding", Feature.IMAGE), ("regions", Feature.REGIONS)])
def test_a_mapper_may_name_its_feature(given: str, feature: Feature, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Mapper):
        features = given
        prefix_length = 1

        def __init__(self, embedding_dim: int, lm_dim: int) -> None:
            super().__init__()
            self.linear = nn.Linear(embedding_dim, lm_dim)

        def forward(self, features: Tensor) -> Tensor:
            prefix: Tensor = self.linear(features if features.ndim == 2 else features.mean(1)).unsqueeze(1)
            return prefix

    monkeypatch.setitem(MAPPERS, "named", Named)
    captioner = Captioner(small_lm(), IDENTITY, {"name": "named"})
    assert captioner.features is feature
    assert captioner.prefix(torch.randn(3, *[5] * (feature.ndim - 2), 16)).shape == (3, 1, 32)
    model = OmegaConf.create({"learns_from": "images", "mapper": {"name": "named"}})
    assert required_feature(model) == feature.option
