"""Training, evaluation and captioning with prompts of images, by the scripts, in a small world of few pictures."""

import json
from pathlib import Path

import pytest

from prefixcap.captioner import load
from prefixcap.demo.scenes import COLOURS, SHAPES
from prefixcap.store import FeatureStore
from tests.commands.conftest import Command
from tests.commands.conftest import command as command
from tests.e2e.conftest import Script

SHORT = (
    "model=mlp", "trainer.max_steps=2", "trainer.val_check_interval=2", "val_max_tokens=8", "batch_size=8",
    "data.keep_tokens=false",
)  # fmt: skip
QUICK = ("decode=greedy", "decode.max_tokens=6", "metrics=[CIDEr]")


@pytest.fixture
def vocabulary(folder: Path) -> Path:
    """A file with all pairs of a colour and a shape."""
    file = folder / "objects.txt"
    file.write_text("".join(f"{colour} {shape}\n" for colour in COLOURS for shape in SHAPES))
    return file


def test_entities_by_clip(script: Script, vocabulary: Path, folder: Path, command: Command) -> None:
    """The captioner makes them when it captions; texts that are given are read in their place."""
    entities = ("prompts=clip_entities", f"prompts.vocabulary={vocabulary}", "prompts.top_k=1", "prompts.threshold=0.0")
    script("train", *SHORT, *entities, "run_dir=runs/entities")
    ckpt = folder / "runs/entities/checkpoints/best.ckpt"
    assert load(ckpt).describe()["prompts"]["vocabulary"][:2] == ["red circle", "red square"]
    assert load(ckpt).prompts_first  # by default
    printed = script("eval", f"ckpt={ckpt}", *QUICK)
    assert "out-of-domain" in printed
    pictures = sorted((folder / "data/demo/images").iterdir())[:2]
    given = folder / "given.json"
    given.write_text(json.dumps({pictures[0].name: "There are purple hexagon in image.", pictures[1].name: ""}))
    words = ("caption", *pictures, "--ckpt", ckpt, "--decode", "greedy", "--set", "max_tokens=6", "--format", "json")
    own, other = command(*words), command(*words, "--prompts", given)
    assert (own.status, other.status) == (0, 0)
    images = [str(picture) for picture in pictures]
    expected = load(ckpt).caption(images, "greedy", max_tokens=6, prompts=["There are purple hexagon in image.", ""])
    assert [entry["captions"][0] for entry in json.loads(other.out)] == expected
    assert [entry["captions"][0] for entry in json.loads(own.out)] == load(ckpt).caption(images, "greedy", max_tokens=6)


def test_viecap_and_another_vocabulary(
    script: Script, vocabulary: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It learns from captions; what it is told of images follows the options of the evaluation."""
    script(
        "train",
        *SHORT,
        "model=viecap",
        "prompts=clip_entities",
        f"prompts.vocabulary={vocabulary}",
        "prompts.first=false",
        "run_dir=runs/v",
    )
    ckpt = folder / "runs/v/checkpoints/best.ckpt"
    assert not load(ckpt).prompts_first
    (folder / "few.txt").write_text("red circle\nsea\n")
    changes: dict[str, tuple[str, ...]] = {
        "own": (),
        "few": (f"prompts.vocabulary={folder / 'few.txt'}", "prompts.top_k=1", "prompts.threshold=0.0"),
        "none": ("prompts.temperature=100.0",),
    }
    found = {}
    for name, options in changes.items():
        script("eval", f"ckpt={ckpt}", "data=demo", *options, *QUICK, f"out=eval/{name}")
        written = json.loads((folder / "eval" / name / "captions.json").read_text())
        found[name] = {row["image_id"]: row["caption"] for row in written}
    assert len({json.dumps(captions) for captions in found.values()}) == 3
    store = FeatureStore(folder / "stores/demo-demo").split("test")
    nothing = ["There are something in image."] * len(store)
    expected = load(ckpt).caption(store.embeddings[:], "greedy", max_tokens=6, prompts=nothing)
    assert list(found["none"].values()) == expected
    with pytest.raises(SystemExit):
        script("eval", f"ckpt={ckpt}", "data=demo", "prompts.least=2", *QUICK)
    assert "prompts 'clip_entities': got an unexpected keyword argument 'least'" in capsys.readouterr().err


def test_retrieved_captions_of_another_datastore(script: Script, folder: Path, command: Command) -> None:
    """The captions of the training are retrieved in training, and then those of any store of the same encoder."""
    script("data_prep.embed", "features=[image,caption]", "data.store=stores/both")
    references = list(FeatureStore(folder / "stores/both").split("test").references().values())
    reference = references[0][0]
    sentences = "A purple hexagon in the snow.\nA brown crescent.\nA pink ring by the sea.\n"
    (folder / "others.txt").write_text(f"{sentences}{reference.upper()} !\n")
    script(
        "data_prep.embed",
        "data=text",
        "data.files=others.txt",
        "data.reader.val_share=0",
        "encoder=demo",
        "data.store=stores/others",
    )
    retrieved = ("prompts=retrieved_captions", "prompts.k=1", "prompts.template='Like {}'", "data.store=stores/both")
    script("train", *SHORT, *retrieved, "run_dir=runs/retrieved")
    ckpt = folder / "runs/retrieved/checkpoints/best.ckpt"
    found, leaks = {}, {}
    for store in ("both", "others"):
        script("eval", f"ckpt={ckpt}", f"datastore=stores/{store}", *QUICK, f"out=eval/{store}")
        found[store] = (folder / "eval" / store / "captions.json").read_text()
        notes = json.loads((folder / "eval" / store / "metrics.json").read_text())["notes"]
        leaks[store] = [note.split(" have ")[0] for note in notes if "in datastore=" in note]
    assert found["both"] != found["others"]
    count = sum(reference in texts for texts in references)
    assert leaks == {"both": [], "others": [f"{count} of {len(references)} images"]}
    picture = sorted((folder / "data/demo/images").iterdir())[0]
    words = ("caption", picture, "--ckpt", ckpt, "--decode", "greedy", "--set", "max_tokens=6")
    assert command(*words, "--datastore", folder / "stores/others").status == 0
    status, _, err = command(*words)
    assert status == 2 and "need a datastore" in err


def test_ifcap(script: Script, vocabulary: Path, folder: Path, command: Command) -> None:
    """It learns from captions and those like them, and reads those like an image in a datastore that is given."""
    few = ("trainer.max_steps=2", "trainer.val_check_interval=2", "val_max_tokens=8", "batch_size=8")
    entities = ("prompts=retrieved_entities", f"prompts.vocabulary={vocabulary}", "prompts.k=5", "prompts.least=2")
    script("train", *few, "model=ifcap", *entities, "run_dir=runs/ifcap")
    ckpt = folder / "runs/ifcap/checkpoints/best.ckpt"
    made = load(ckpt)
    assert made.mapper.retrieved == 5 and made.describe()["prompts"]["least"] == 2
    (folder / "several.txt").write_text("".join(f"A purple hexagon in the snow, {n}.\n" for n in range(9)))
    script("data_prep.embed", "data=text", "data.files=several.txt", "encoder=demo", "data.store=stores/several")
    captions = {}
    for store in ("demo-demo-caption", "several"):
        script("eval", f"ckpt={ckpt}", "data=demo", f"datastore=stores/{store}", *QUICK, f"out=eval/{store}")
        captions[store] = json.loads((folder / "eval" / store / "captions.json").read_text())
    assert captions["several"] != captions["demo-demo-caption"]
    made.use_datastore(folder / "stores/several")
    embeddings = FeatureStore(folder / "stores/demo-demo").split("test").embeddings[:]
    expected = made.caption(embeddings, "greedy", max_tokens=6)
    assert [row["caption"] for row in captions["several"]] == expected

    picture = sorted((folder / "data/demo/images").iterdir())[0]
    words = ("caption", picture, "--ckpt", ckpt, "--decode", "greedy", "--set", "max_tokens=6")
    assert command(*words, "--datastore", folder / "stores/several").status == 0
    status, _, err = command(*words)
    assert status == 2 and "need a datastore" in err
    status, printed, _ = command("interpret", picture, "--ckpt", ckpt, "--datastore", folder / "stores/several")
    assert status == 0 and made.caption([picture])[0] in printed


def test_smallcap(script: Script, folder: Path, command: Command) -> None:
    """Cross-attention to hidden states, with retrieved captions as prompts: trained, evaluated, exported, captioned.

    Takes long because of all the commands: a store is embedded, and each loads its models.
    """
    script("data_prep.embed", "features=[image,caption,hidden]", "data.store=stores/all")
    own = ["model.mapper.features=hidden", "model.mapper.input_dim=128"]
    options = ["model=cross_attention", *own, *SHORT[1:], "data.store=stores/all"]
    printed = script("train", *options, "prompts=retrieved_captions", "prompts.k=2", "run_dir=runs/smallcap")
    assert "training 0.1M parameters" in printed
    ckpt = folder / "runs/smallcap/checkpoints/best.ckpt"
    weights = load(ckpt).checkpoint_state_dict()
    assert all(name.startswith("mapper.adapters.") for name in weights), "a frozen language model is only named"
    script("eval", f"ckpt={ckpt}", "datastore=stores/all", *QUICK)
    shown = command("info", ckpt)
    assert "cross_attention: head_dim 16" in shown.out and shown.status == 0
    assert command("export", ckpt, folder / "shared").status == 0
    status, _, error = command("export", ckpt, folder / "onnx", "--format", "onnx")
    assert status == 2 and "reads images/hidden" in error
    pictures = sorted((folder / "data/demo/images").iterdir())[:3]
    words = ("--decode", "beam", "--set", "beams=3", "--set", "max_tokens=6", "--datastore", folder / "stores/all")
    own = command("caption", *pictures, "--ckpt", ckpt, *words)
    shared = command("caption", *pictures, "--ckpt", folder / "shared", *words)
    assert own.status == 0 and own.out == shared.out
    status, _, error = command("interpret", *pictures, "--ckpt", ckpt)
    assert status == 2 and "puts images into no prefix" in error


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("prompts=clip_entities",), "prompts.vocabulary"),
        (("prompts=clip_entities", "prompts.vocabulary=nowhere.txt"), "nowhere.txt"),
        (("prompts=retrieved_captions", "prompts.k=0"), "k must be"),
        (("prompts=clip_entities", "prompts.vocabulary=objects.txt", "prompts.template=captions"), "must have {} once"),
        (("prompts=retrieved_captions",), "captions/embedding"),
        (("val_max_tokens=600",), "set val_max_tokens="),
        (
            ("prompts=clip_entities", "prompts.vocabulary=objects.txt", "prompts.template='{}'", "val_max_tokens=600"),
            "longest prompt of",
        ),
        (("+model.retrieval.noise=0.04",), "'mlp' does not: set model.retrieval=null"),
        (("model=ifcap", "+model.retrieval.variance=1"), "no option 'variance'"),
        (("model=ifcap", "model.retrieval.noise=-1"), "model.retrieval.noise"),
    ],
)
def test_mistakes_are_one_line(
    options: tuple[str, ...], problem: str, script: Script, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script("train", *SHORT, *options)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and problem in err, err
    assert err.splitlines()[-1].startswith("error: ")
