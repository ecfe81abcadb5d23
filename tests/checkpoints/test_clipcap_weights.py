"""Files as ClipCap published them, against the published modules written out here."""

import json
import runpy
import sys
from pathlib import Path

import clip.model
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import prefixcap
from prefixcap import commands
from prefixcap.checkpoints.clipcap_weights import ENCODERS
from prefixcap.checkpoints.files import read_checkpoint
from prefixcap.encoders import load_encoder
from prefixcap.errors import InputError
from tests.conftest import ROOT

WIDTH, PREFIX, CLIP_LENGTH, LAYERS = 128, 5, 3, 2  # width: two heads of 64 in GPT-2, eight of 16 in the mapper
END = "<|endoftext|>"
SENTENCES = ["A red bus on a street.", "Two dogs run on the grass.", "A man on a horse."]


class PublishedMLP(nn.Module):
    """clip_project of the MLP models."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = WIDTH * PREFIX // 2
        self.model = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, WIDTH * PREFIX))

    def forward(self, embedding: Tensor) -> Tensor:
        return self.model(embedding).view(-1, PREFIX, WIDTH)


class PublishedTransformer(nn.Module):
    """clip_project of the transformer models: the names, and the arithmetic by einsum as it was released."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, CLIP_LENGTH * WIDTH)
        self.prefix_const = nn.Parameter(torch.randn(PREFIX, WIDTH))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(published_layer() for _ in range(LAYERS))

    def forward(self, embedding: Tensor) -> Tensor:
        images = len(embedding)
        x = self.linear(embedding).view(images, CLIP_LENGTH, WIDTH)
        x = torch.cat((x, self.prefix_const.unsqueeze(0).expand(images, PREFIX, WIDTH)), dim=1)
        n = x.shape[1]
        for layer in self.transformer.layers:
            y = layer.norm1(x)
            queries = layer.attn.to_queries(y).reshape(images, n, 8, WIDTH // 8)
            keys_values = layer.attn.to_keys_values(y).reshape(images, n, 2, 8, WIDTH // 8)
            scores = torch.einsum("bnhd,bmhd->bnmh", queries, keys_values[:, :, 0]) * (WIDTH // 8) ** -0.5
            gathered = torch.einsum("bnmh,bmhd->bnhd", scores.softmax(dim=2), keys_values[:, :, 1])
            x = x + layer.attn.project(gathered.reshape(images, n, WIDTH))
            x = x + layer.mlp.fc2(F.relu(layer.mlp.fc1(layer.norm2(x))))
        return x[:, CLIP_LENGTH:]


def published_layer() -> nn.Module:
    layer = nn.Module()
    layer.norm1, layer.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
    layer.attn, layer.mlp = nn.Module(), nn.Module()
    layer.attn.to_queries = nn.Linear(WIDTH, WIDTH, bias=False)
    layer.attn.to_keys_values = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
    layer.attn.project = nn.Linear(WIDTH, WIDTH)
    layer.mlp.fc1, layer.mlp.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
    return layer


class PublishedModel(nn.Module):
    """A ClipCaptionModel."""

    def __init__(self, mapper: str, vocabulary: int, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gpt = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_positions=96, n_embd=WIDTH, n_layer=LAYERS, n_head=WIDTH // 64,
                bos_token_id=vocabulary - 1, eos_token_id=vocabulary - 1,
            )
        )  # fmt: skip
        self.clip_project = PublishedMLP(dim) if mapper == "mlp" else PublishedTransformer(dim)
        with torch.no_grad():
            for weight in self.parameters():  # biases and norms are 0 and 1 at first, which would hide a mistake
                weight.add_(0.1 * torch.randn_like(weight))
        self.eval()

    def published_state(self) -> dict[str, Tensor]:
        """Its state dict as transformers of that time would have it: with GPT-2's masks."""
        state = dict(self.state_dict())
        for layer in range(LAYERS):
            state[f"gpt.transformer.h.{layer}.attn.bias"] = torch.ones(96, 96).tril().view(1, 1, 96, 96).bool()
            state[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        return state


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer as GPT-2's is, but small: bytes, some merges, and the end token last."""
    folder = tmp_path_factory.mktemp("published") / "gpt2"
    folder.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(SENTENCES, vocab_size=300, min_frequency=1)
    tokenizer.add_special_tokens([END])
    tokenizer.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, END: len(vocabulary)}), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def vocabulary(gpt2: Path) -> int:
    return len(json.loads((gpt2 / "vocab.json").read_text(encoding="utf-8")))


@pytest.fixture(params=["mlp", "transformer"])
def published(request: pytest.FixtureRequest, vocabulary: int) -> PublishedModel:
    return PublishedModel(request.param, vocabulary, 512 if request.param == "mlp" else 640)


def save(state: dict[str, object], path: Path) -> Path:
    torch.save(state, path)
    return path


@torch.no_grad()
def test_prefix_and_logits_are_those_of_the_published_model(
    published: PublishedModel, gpt2: Path, tmp_path: Path
) -> None:
    transformer = isinstance(published.clip_project, PublishedTransformer)
    captioner = prefixcap.load(save(published.published_state(), tmp_path / "coco.pt"), tokenizer=str(gpt2))
    embeddings = 3 * torch.randn(4, 640 if transformer else 512)
    # The notebook of the transformer divides by the norm, that of the MLP does not.
    read = embeddings / embeddings.norm(2, -1, keepdim=True) if transformer else embeddings
    prefix = published.clip_project(read)
    assert captioner.prefix(embeddings).shape == (4, PREFIX, WIDTH)
    torch.testing.assert_close(captioner.prefix(embeddings), prefix, atol=1e-5, rtol=0)

    tokens = torch.tensor(captioner.language_model.tokenize(SENTENCES[:1])).expand(4, -1)
    words = published.gpt.transformer.wte(tokens)
    expected = published.gpt(inputs_embeds=torch.cat((prefix, words), dim=1)).logits
    lm = captioner.language_model
    logits = lm(torch.cat((captioner.prefix(embeddings), lm.embed(tokens)), dim=1), last=PREFIX + tokens.shape[1])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert not captioner.training and not lm.training


def test_what_the_file_does_not_say(published: PublishedModel, gpt2: Path, vocabulary: int, tmp_path: Path) -> None:
    transformer = isinstance(published.clip_project, PublishedTransformer)
    path = save(published.published_state(), tmp_path / "coco.pt")
    captioner = prefixcap.load(path, tokenizer=str(gpt2))
    assert captioner.encoder_identity.name == ("clip:RN50x4" if transformer else "clip:ViT-B/32")
    assert captioner.normalize_embeddings is transformer
    assert captioner.language_model.tuning == "full" and captioner.language_model.context == 96
    assert captioner.language_model.eos_token_id == vocabulary - 1
    assert captioner.language_model.tokenize(["A horse."])[0][-1] == vocabulary - 1
    other = prefixcap.load(path, tokenizer=str(gpt2), normalize_embeddings=not transformer)
    assert other.normalize_embeddings is not transformer


def test_a_file_without_masks_and_head_is_the_same(published: PublishedModel, gpt2: Path, tmp_path: Path) -> None:
    with_all = prefixcap.load(save(published.published_state(), tmp_path / "a.pt"), tokenizer=str(gpt2))
    state = {name: weight for name, weight in published.state_dict().items() if name != "gpt.lm_head.weight"}
    without = prefixcap.load(save(state, tmp_path / "b.pt"), tokenizer=str(gpt2))
    assert with_all.state_dict().keys() == without.state_dict().keys()
    for name, weight in with_all.state_dict().items():
        assert torch.equal(weight, without.state_dict()[name]), name


@pytest.mark.parametrize("form", ["checkpoint", "folder"])
def test_it_is_saved_and_loaded_again_with_the_same_captions(
    published: PublishedModel, form: str, gpt2: Path, tmp_path: Path
) -> None:
    captioner = prefixcap.load(save(published.published_state(), tmp_path / "coco.pt"), tokenizer=str(gpt2))
    embeddings = torch.randn(4, captioner.encoder_identity.dim)
    captions = captioner.caption(embeddings, "beam", max_tokens=20)
    assert len(set(captions)) > 1 and all(captions)
    if form == "checkpoint":
        state = {f"captioner.{name}": weight for name, weight in captioner.checkpoint_state_dict().items()}
        path = save({"prefixcap": captioner.describe(), "state_dict": state}, tmp_path / "ours.ckpt")
    else:
        path = tmp_path / "exported"
        captioner.save_pretrained(path)
        ours = GPT2LMHeadModel.from_pretrained(path / "language_model").state_dict()
        assert all(torch.equal(weight, ours[name]) for name, weight in published.gpt.state_dict().items())
    loaded = prefixcap.load(path)
    assert loaded.caption(embeddings, "beam", max_tokens=20) == captions
    assert loaded.describe() == captioner.describe()


def test_every_weight_is_needed_and_named(published: PublishedModel, gpt2: Path, tmp_path: Path) -> None:
    state = published.published_state()
    head = "gpt.lm_head.weight"
    for name in published.state_dict():
        without = {other: weight for other, weight in state.items() if other not in (name, head)}
        if name != head:
            with pytest.raises(InputError, match=rf"bad\.pt lacks weight '{name}'"):
                prefixcap.load(save(without, tmp_path / "bad.pt"), tokenizer=str(gpt2))


@pytest.mark.parametrize(
    "name",
    [
        "gpt.transformer.h.0.attn.rotary",
        "gpt.transformer.h.0.crossattention.bias",
        "clip_project.transformer.layers.0.attn.bias",
        "clip_project.weight",
        "epoch",
    ],
)
def test_unknown_weights_are_named(published: PublishedModel, name: str, gpt2: Path, tmp_path: Path) -> None:
    for value in (torch.zeros(1), 3):
        path = save({**published.published_state(), name: value}, tmp_path / "bad.pt")
        with pytest.raises(InputError, match=rf"bad\.pt has the unknown weight '{name}'"):
            prefixcap.load(path, tokenizer=str(gpt2))


def test_a_file_without_layers_lacks_them(vocabulary: int, gpt2: Path, tmp_path: Path) -> None:
    state = PublishedModel("transformer", vocabulary, 640).published_state()
    for stem, first in (
        ("gpt.transformer.h.", r"gpt\.transformer\.h\.0\."),
        ("clip_project.transformer.", r"clip_project\.transformer\.layers\.0\."),
        ("clip_project.", r"clip_project\.linear\.weight"),
        ("gpt.", r"gpt\.transformer\.wte\.weight"),
    ):
        rest = {name: weight for name, weight in state.items() if not name.startswith(stem)}
        with pytest.raises(InputError, match=f"lacks weight '{first}"):
            prefixcap.load(save(rest, tmp_path / "bad.pt"), tokenizer=str(gpt2))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("gpt.transformer.ln_f.bias", torch.zeros(7), r"is \(7,\), not \(128,\)"),
        ("clip_project.model.0.weight", torch.zeros(321, 512), r"is \(321, 512\), not \(320, 512\)"),
        ("clip_project.model.2.weight", torch.zeros(641, 320), r"is \(641, 320\), not \(640, 320\)"),
        ("clip_project.model.2.weight", torch.zeros(640), r"is \(640,\), not a matrix"),
        ("gpt.transformer.wte.weight", torch.zeros(300, 100), "is 100 wide, not a multiple of 64"),
        ("gpt.lm_head.weight", None, r"differs from 'gpt\.transformer\.wte\.weight'"),
    ],
)
def test_weights_of_a_wrong_shape_are_named(
    name: str, value: Tensor | None, problem: str, vocabulary: int, gpt2: Path, tmp_path: Path
) -> None:
    state = PublishedModel("mlp", vocabulary, 512).published_state()
    state[name] = state[name] + 1 if value is None else value
    with pytest.raises(InputError, match=rf"bad\.pt: weight '{name}' {problem}"):
        prefixcap.load(save(state, tmp_path / "bad.pt"), tokenizer=str(gpt2))


@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
@pytest.mark.parametrize(("dim", "encoder"), [(512, "clip:ViT-B/32"), (640, "clip:RN50x4"), (768, None), (16, None)])
def test_the_encoder_is_told_by_its_width(
    mapper: str, dim: int, encoder: str | None, vocabulary: int, gpt2: Path, tmp_path: Path
) -> None:
    path = save(PublishedModel(mapper, vocabulary, dim).published_state(), tmp_path / "coco.pt")
    if encoder:
        captioner = prefixcap.load(path, tokenizer=str(gpt2))
        assert (captioner.encoder_identity.name, captioner.encoder_identity.dim) == (encoder, dim)
        with pytest.raises(InputError, match=f"embed the images with {encoder}"):
            captioner.prefix(torch.randn(1, 16))
    else:
        with pytest.raises(InputError, match=rf"width {dim}, .* reads 512 \(clip:ViT-B/32\) or 640 \(clip:RN50x4\)"):
            prefixcap.load(path, tokenizer=str(gpt2))


def test_the_tokenizer_must_be_there_and_fit(vocabulary: int, tmp_path: Path) -> None:
    path = save(PublishedModel("mlp", vocabulary, 512).published_state(), tmp_path / "coco.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"cannot load the tokenizer of language model '.*empty'"):
        prefixcap.load(path, tokenizer=str(tmp_path / "empty"))
    with pytest.raises(InputError, match=rf"'demo' has \d+ tokens, but .*coco\.pt knows {vocabulary}: give GPT-2's"):
        prefixcap.load(path, tokenizer="demo")


def test_other_files_take_no_argument_of_published_ones(published: PublishedModel, gpt2: Path, tmp_path: Path) -> None:
    captioner = prefixcap.load(save(published.published_state(), tmp_path / "coco.pt"), tokenizer=str(gpt2))
    captioner.save_pretrained(tmp_path / "exported")
    with pytest.raises(
        InputError, match=r"tokenizer is for .* ClipCap published, and .*exported is none: leave it out"
    ):
        prefixcap.load(tmp_path / "exported", tokenizer=str(gpt2))
    state = {f"captioner.{name}": weight for name, weight in captioner.checkpoint_state_dict().items()}
    path = save({"prefixcap": captioner.describe(), "state_dict": state}, tmp_path / "ours.ckpt")
    for value in (True, False):
        with pytest.raises(InputError, match=r"normalize_embeddings is for .*ours\.ckpt is none: leave it out"):
            prefixcap.load(path, normalize_embeddings=value)


def test_what_is_no_published_file_is_told(published: PublishedModel, gpt2: Path, tmp_path: Path) -> None:
    path = save(published.published_state(), tmp_path / "coco.pt")
    (tmp_path / "half.pt").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"half\.pt is not a checkpoint of prefixcap, or is damaged"):
        prefixcap.load(tmp_path / "half.pt")
    with pytest.raises(InputError, match=r"other\.pt is not a checkpoint of prefixcap"):
        prefixcap.load(save({"model.weight": torch.zeros(2)}, tmp_path / "other.pt"))
    with pytest.raises(InputError, match=r"code\.pt is not a checkpoint of prefixcap, or is damaged"):
        prefixcap.load(save({**published.published_state(), "gpt.model": nn.Linear(1, 1)}, tmp_path / "code.pt"))
    with pytest.raises(InputError, match=r"coco\.pt is not a checkpoint of prefixcap: give one that train\.py wrote"):
        read_checkpoint(path)  # training cannot go on from published weights


def test_the_command_captions_images(
    published: PublishedModel,
    gpt2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of it runs, but with a small CLIP in place of the one that would be downloaded, and GPT-2's folder nearby."""
    dim = 640 if isinstance(published.clip_project, PublishedTransformer) else 512
    torch.manual_seed(1)
    encoder = clip.model.CLIP(
        embed_dim=dim, image_resolution=64, vision_layers=1, vision_width=64, vision_patch_size=32,
        context_length=8, vocab_size=100, transformer_width=64, transformer_heads=1, transformer_layers=1,
    )  # fmt: skip
    monkeypatch.setitem(ENCODERS, dim, f"clip:{save(encoder.state_dict(), tmp_path / 'clip.pt')}")
    save(published.published_state(), tmp_path / "coco.pt")
    for name, colour in (("red.png", (200, 30, 30)), ("blue.png", (0, 0, 250))):
        Image.new("RGB", (80, 64), colour).save(tmp_path / name)

    monkeypatch.chdir(gpt2.parent)  # where "gpt2" is a folder
    images = [str(tmp_path / "red.png"), str(tmp_path / "blue.png")]
    monkeypatch.setattr(sys, "argv", ["prefixcap", "caption", *images, "--ckpt", str(tmp_path / "coco.pt")])
    commands.main()
    printed = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())

    captioner = prefixcap.load(tmp_path / "coco.pt")
    own = load_encoder(f"clip:{tmp_path / 'clip.pt'}")
    embeddings = own.encode_images(torch.stack([own.preprocess(Image.open(image)) for image in images]))
    assert [printed[image] for image in images] == captioner.caption(embeddings)
    assert captioner.encoder().identity.digest  # taken as it is: a published file knows no digest to compare with

    (tmp_path / "captions.csv").write_text("image,caption,split\nred.png,a red one,test\nblue.png,a blue one,test\n")
    data = ["data=folder", f"data.root={tmp_path}", f"data.store={tmp_path / 'store'}"]
    weights = [f"ckpt={tmp_path / 'coco.pt'}", f"tokenizer={gpt2}"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["embed", *data, f"encoder.name={own.identity.name}"])
    runpy.run_module("data_prep.embed", run_name="__main__")
    monkeypatch.setattr(sys, "argv", ["eval.py", *weights, *data, "metrics=[CIDEr]", f"out={tmp_path / 'scores'}"])
    runpy.run_module("prefixcap.commands.eval", run_name="__main__")
    scored = {entry["caption"] for entry in json.loads((tmp_path / "scores" / "captions.json").read_text())}
    assert scored == set(printed.values())
