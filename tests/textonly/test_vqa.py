"""Zero-shot visual question answering over the small world, with its own models and questions in VQAv2's format."""

import json
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from prefixcap.captioner import Captioner, load
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import Scene, captions, random_scene
from prefixcap.encoders import Encoder, encode_feature, load_encoder
from prefixcap.errors import InputError
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.store import FeatureStore, ImageRecord, StoreWriter, join
from prefixcap.textonly.vqa import accuracy, ask, first_sentence, nearest_candidates, prompt, write_answers
from prefixcap.textonly.vqa_files import Question, about, frequent_answers, read_questions, sample

# What the small world's language model has read questions about.
ASKED = {
    "colour": "What colour is the {shape}?",
    "shape": "What shape is {colour}?",
    "size": "How large is the {shape}?",
    "position": "Where is the {shape}?",
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("demo")


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    return load_language_model("demo")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """Eight pictures in a store of two splits, their true captions, VQAv2's three files, and an untrained captioner.

    Its captions are poor. What is tested is what is asked of them, and what becomes of the answers.
    """
    root, generator = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    scenes = {image_id: random_scene(generator) for image_id in range(1, 9)}
    texts = {image_id: captions(scene, generator)[0] for image_id, scene in scenes.items()}
    pictures = torch.stack([encoder.preprocess(draw(scene, generator)) for scene in scenes.values()])
    records = [
        ImageRecord(image_id, f"{image_id}.jpg", "val" if image_id < 4 else "test", (text,))
        for image_id, text in texts.items()
    ]
    features = {name: encode_feature(encoder, pictures, name) for name in ("images/embedding", "images/regions")}
    write_store(root / "store", encoder, records, features)
    results = [{"image_id": image_id, "caption": text} for image_id, text in texts.items()]
    (root / "captions.json").write_text(json.dumps(results))
    write_vqa(root, "val", scenes)
    write_vqa(root, "train", {image_id: random_scene(generator) for image_id in range(101, 141)})
    torch.manual_seed(0)
    mapper = {"name": "query", "features": "regions", "prefix_length": 4, "width": 16, "layers": 1, "heads": 2}
    Captioner(load_language_model("demo"), encoder.identity, mapper).save_pretrained(root / "captioner")

    # For the mistakes.
    sentence = ImageRecord(1, "", "val", ("A star.",))
    write_store(root / "sentences", encoder, [sentence], {"captions/embedding": encoder.encode_texts(["A star."])})
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPVisionModel(CLIPVisionConfig(**tower)).save_pretrained(root / "images_only")
    (root / "others.json").write_text(json.dumps([{"image_id": "a.jpg", "caption": "A star."}]))
    return root


def write_store(path: Path, encoder: Encoder, records: list[ImageRecord], features: dict[str, torch.Tensor]) -> None:
    writer = StoreWriter(path, encoder.identity, "small world", path.parent, "job", 1)
    writer.write_piece(0, 0, 1, records, {name: rows.half().numpy() for name, rows in features.items()}, ())
    join(path)


def write_vqa(root: Path, split: str, scenes: dict[int, Scene]) -> None:
    questions, annotations = [], []
    for image_id, scene in scenes.items():
        for number, (attribute, question) in enumerate(ASKED.items()):
            ids = {"image_id": image_id, "question_id": 10 * image_id + number}
            questions.append(ids | {"question": question.format(**asdict(scene))})
            truth = getattr(scene, attribute)
            humans = [{"answer": truth, "answer_confidence": "yes", "answer_id": place} for place in range(1, 11)]
            annotations.append(ids | {"multiple_choice_answer": truth, "answers": humans, "answer_type": "other"})
    (root / f"{split}_questions.json").write_text(json.dumps({"info": {}, "questions": questions}))
    (root / f"{split}_annotations.json").write_text(json.dumps({"info": {}, "annotations": annotations[::-1]}))


def options_of(world: Path) -> dict[str, str]:
    files = {"questions": "val_questions", "annotations": "val_annotations", "train_annotations": "train_annotations"}
    return {option: str(world / f"{name}.json") for option, name in files.items()} | {
        "ckpt": str(world / "captioner"), "data": "coco", "data.store": str(world / "store"),
        "decode.max_tokens": "12", "decode.beams": "2", "decode.rerank": "2", "answers.beams": "2",
    }  # fmt: skip


def run_vqa(monkeypatch: pytest.MonkeyPatch, options: dict[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    monkeypatch.setattr(sys, "argv", ["vqa.py", *(f"{name}={value}" for name, value in options.items())])
    runpy.run_module("prefixcap.commands.vqa", run_name="__main__")
    return tuple(json.loads((Path(options["out"]) / f"{name}.json").read_text()) for name in ("vqa", "answers"))


def ranked(encoder: Encoder, answers: list[str], candidates: list[str]) -> list[list[str]]:
    """The ten nearest candidates, one text at a time and in float64."""

    def unit(text: str) -> Any:
        vector = encoder.encode_texts([text])[0].double().numpy()
        return vector / np.linalg.norm(vector)

    table = np.stack([unit(text) for text in candidates])
    return [[candidates[place] for place in np.argsort(-(table @ unit(text)))[:10]] for text in answers]


def test_the_prompt_is_the_papers() -> None:
    asked = "What colour is it?"
    assert prompt(asked, "A red star.") == "A red star. Question: What colour is it? Answer:"
    assert prompt(asked, None) == "Question: What colour is it? Answer:"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" red", "red"),
        ("\n\nYes.\nQuestion: Is it", "Yes"),
        (" 3.5 metres. It is tall", "3.5 metres"),
        (" a dog Question: What colour? Answer: brown", "a dog"),
        (" no! never", "no"),
        (" .", ""),
        ("", ""),
    ],
)
def test_where_an_answer_ends(text: str, answer: str) -> None:
    assert first_sentence(text) == answer


def test_questions_and_candidates_are_those_of_a_plain_loop(world: Path) -> None:
    asked = json.loads((world / "val_questions.json").read_text())["questions"]
    truth = {
        entry["question_id"]: entry["multiple_choice_answer"]
        for entry in json.loads((world / "val_annotations.json").read_text())["annotations"]
    }
    questions = read_questions(world / "val_questions.json", world / "val_annotations.json")
    assert [(q.id, q.image_id, q.text, q.truth) for q in questions] == [
        (q["question_id"], q["image_id"], q["question"], truth[q["question_id"]]) for q in asked
    ]
    training = json.loads((world / "train_annotations.json").read_text())["annotations"]
    counts = Counter(entry["multiple_choice_answer"] for entry in training)
    most = frequent_answers(world / "train_annotations.json", 5)
    assert sorted((counts[name] for name in most), reverse=True) == sorted(counts.values(), reverse=True)[:5]
    assert [counts[name] for name in most] == sorted((counts[name] for name in most), reverse=True)
    assert sorted(frequent_answers(world / "train_annotations.json")) == sorted(counts)


def test_a_sample_depends_on_its_seed_alone() -> None:
    questions = [Question(number, number, "?", "yes") for number in range(1000)]
    drawn = sample(questions, 300, 0)
    assert drawn == sample(questions, 300, 0) != sample(questions, 300, 1)
    assert len(set(drawn)) == 300 and drawn == sorted(drawn, key=lambda question: question.id)
    assert 400 < np.mean([question.id for question in drawn]) < 600  # not the first ones
    assert sample(questions, None, 0) == sample(questions, 5000, 0) == questions


def test_batches_answer_as_one_question_alone_and_as_transformers(language_model: LanguageModel, world: Path) -> None:
    questions = read_questions(world / "val_questions.json", world / "val_annotations.json")
    texts = {entry["image_id"]: entry["caption"] for entry in json.loads((world / "captions.json").read_text())}
    of_questions = [texts[question.image_id] for question in questions]
    tokenizer = language_model.tokenizer
    lengths = {len(tokenizer(prompt(q.text, c))["input_ids"]) for q, c in zip(questions, of_questions, strict=True)}
    assert 1 < len(lengths) < len(questions)  # of some lengths there are many
    together = write_answers(language_model, questions, of_questions, batch_size=8)
    assert len(set(together)) > 3
    for question, caption, answer in list(zip(questions, of_questions, together, strict=True))[::3]:
        assert write_answers(language_model, [question], [caption]) == [answer]
        words = tokenizer(prompt(question.text, caption), return_tensors="pt")
        written = language_model.model.generate(
            **words, num_beams=5, max_new_tokens=10, min_new_tokens=1, length_penalty=-1.0, do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        text = tokenizer.decode(written[0, words["input_ids"].shape[1] :], skip_special_tokens=True)
        assert first_sentence(text) == answer


def test_candidates_are_ranked_as_by_numpy(encoder: Encoder) -> None:
    candidates = ["red", "blue", "circle", "square", "star", "meadow", "beach", "night", "small", "large", "dotted"]
    answers = ["a red one", "The shape is a star", "", "by night", "a large square on a beach"]
    assert nearest_candidates(encoder, answers, candidates, batch_size=3) == ranked(encoder, answers, candidates)
    assert nearest_candidates(encoder, ["red", "star"], candidates, count=1) == [["red"], ["star"]]
    assert nearest_candidates(encoder, ["red"], ["red", "blue"]) == [["red", "blue"]]  # fewer than ten


def test_accuracy_of_answers_made_by_hand() -> None:
    letters = list("abcdefghij")
    truths = ["a", "e", "f", "j", "k"]  # first, fifth, sixth, tenth, and none of them
    assert accuracy([letters] * 5, truths) == {"Top1": 0.2, "Top5": 0.4, "Top10": 0.8}


def test_true_captions_are_worth_more_than_none(world: Path, encoder: Encoder, language_model: LanguageModel) -> None:
    questions = read_questions(world / "val_questions.json", world / "val_annotations.json")
    candidates = frequent_answers(world / "train_annotations.json")
    texts = {entry["image_id"]: entry["caption"] for entry in json.loads((world / "captions.json").read_text())}
    of_questions = [texts[question.image_id] for question in questions]
    told = ask(language_model, encoder, questions, of_questions, candidates).accuracy
    alone = ask(language_model, encoder, questions, [None] * len(questions), candidates).accuracy
    assert told["Top1"] > 0.5 and told["Top1"] > 2 * alone["Top1"]


def test_the_command_over_a_store(
    world: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Captions of a captioner, asked with each question; the scores again from the answers alone; and the baseline."""
    monkeypatch.chdir(tmp_path)
    options = options_of(world) | {"sample": "12"}
    result, answers = run_vqa(monkeypatch, options | {"out": "first"})
    printed = capsys.readouterr().out
    questions = read_questions(options["questions"], options["annotations"])
    assert [entry["question_id"] for entry in answers] == [question.id for question in sample(questions, 12, 0)]
    candidates = frequent_answers(options["train_annotations"])
    assert [entry["nearest"] for entry in answers] == ranked(encoder, [e["answer"] for e in answers], candidates)
    for count in (1, 5, 10):
        right = 0
        for entry in answers:
            right += entry["truth"] in entry["nearest"][:count]
        assert result["accuracy"][f"Top{count}"] == pytest.approx(right / 12)
        assert f"{100 * right / 12:.2f}" in printed
    assert result["candidates"] == len(candidates) and result["language model"] == "demo"
    written = {entry["image_id"]: entry["caption"] for entry in json.loads(Path("first/captions.json").read_text())}
    assert {entry["image_id"]: entry["caption"] for entry in answers} == written and len(set(written.values())) > 1
    split = FeatureStore(options["data.store"]).split("test")
    regions, embeddings = (split.feature(f"images/{name}")[:] for name in ("regions", "embedding"))
    of_all = load(options["ckpt"]).caption(regions, rerank=2, embeddings=embeddings, max_tokens=12, beams=2)
    expected = dict(zip(split.ids, of_all, strict=True))
    assert {image_id: text for image_id, text in written.items() if image_id in expected} == expected

    # The captions that were written, given back, and models by name, give the same answers.
    named = {name: value for name, value in options.items() if not name.startswith(("ckpt", "data"))}
    named |= {"captions": "first/captions.json", "lm": "demo", "encoder": "demo", "sample": "null", "out": "again"}
    _, again = run_vqa(monkeypatch, named)
    known = {entry["question_id"]: entry for entry in answers}
    assert known.items() <= {entry["question_id"]: entry for entry in again}.items()

    _, alone = run_vqa(monkeypatch, options | {"caption": "false", "out": "baseline"})
    assert [entry["question_id"] for entry in alone] == [entry["question_id"] for entry in answers]
    assert {entry["caption"] for entry in alone} == {None} and not Path("baseline/captions.json").exists()
    without = {(entry["question"], entry["answer"]) for entry in alone}
    assert len(without) == len({entry["question"] for entry in alone})  # images make no difference


def test_questions_about_other_images_are_left_out_and_counted(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result, answers = run_vqa(monkeypatch, options_of(world) | {"split": "val", "sample": "6", "out": "val"})
    assert {entry["image_id"] for entry in answers} <= {1, 2, 3} and len(answers) == 6
    assert result["left out"] in (printed := capsys.readouterr().out)
    assert "left out: 20 of 32 questions, without images 4, 5, 6, 7, 8\n" in printed
    assert about([1], [Question(1, 1, "?", "yes")]) == ([Question(1, 1, "?", "yes")], None)


ASKED_ONCE = {"question_id": 10, "image_id": 1, "question": "?"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ({"annotations": []}, "has no list of 'questions'"),
        ([ASKED_ONCE], "has no list of 'questions'"),
        ({"questions": []}, "has no questions"),
        ({"questions": [ASKED_ONCE, {"image_id": 1, "question": "?"}]}, "entry 1 of 'questions' has no 'question_id'"),
        ({"questions": [ASKED_ONCE, 10]}, "entry 1 of 'questions' has no 'question_id'"),
        ({"questions": [ASKED_ONCE, ASKED_ONCE | {"question_id": 7}]}, "1 of the 2 questions"),
        ({"questions": [ASKED_ONCE, ASKED_ONCE]}, "question 10 more than once"),
    ],
)
def test_files_of_another_form(content: Any, message: str, world: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "questions.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_questions(tmp_path / "questions.json", world / "val_annotations.json")


def test_nothing_to_choose_from(world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text(json.dumps({"annotations": []}))
    with pytest.raises(InputError, match="has no answers to choose candidates from"):
        frequent_answers(tmp_path / "empty.json")
    with pytest.raises(InputError, match="candidates must be at least 1"):
        frequent_answers(world / "train_annotations.json", 0)
    with pytest.raises(InputError, match="sample must be at least 1"):
        sample([Question(1, 1, "?", "yes")], 0, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_annotations": "{world}/val_questions.json"}, "val_questions.json has no list of 'annotations'"),
        ({"split": "dev"}, "has no split 'dev'"),
        ({"data.store": "{world}/sentences"}, "sentences and no images"),
        ({"captions": "{world}/captions.json"}, "give one of the two"),
        ({"data": None, "data.store": None, "captions": "{world}/others.json"}, "7, 8, and there is image 'a.jpg'"),
        ({"ckpt": None}, "give ckpt=PATH and data=NAME"),
        ({"ckpt": None, "caption": "false"}, "give the models that answer"),
        ({"encoder": "demo", "encoder.name": "transformers:{world}/images_only"}, "is a 'clip_vision_model' model"),
        ({"answers.max_tokens": "120"}, "the prompts of 32 questions and max_tokens=120 exceed the context"),
        ({"answers.beams": "0", "decode.max_tokens": "1"}, "beams must be between 1 and 10000, not 0"),
    ],
)
def test_mistakes(
    change: dict[str, str | None], message: str, world: Path, tmp_path: Path, mistake: Callable[..., str]
) -> None:
    options = options_of(world) | {"out": str(tmp_path / "out")} | change
    given = [f"{name}={value.format(world=world)}" for name, value in options.items() if value is not None]
    assert message in mistake("vqa", *given)
    assert not (tmp_path / "out").exists()
