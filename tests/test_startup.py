"""What starts without torch: mistakes of every command, stores, scores of captions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "lightning", "transformers", "torchmetrics", "torchvision", "matplotlib")
RUN = """
import contextlib, io, json, sys
from prefixcap import commands
results = []
lines, heavy = map(json.loads, sys.argv[1:])
for words in lines:
    sys.argv, error, status = ["prefixcap", *words], io.StringIO(), 0
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            commands.main()
        except SystemExit as stopped:
            status = stopped.code or 0
    results.append([status, error.getvalue(), [name for name in heavy if name in sys.modules]])
print(json.dumps(results))
"""

MISTAKES = {
    "a mistyped option": [
        "train bach_size=3", "train trainer.max_epoch=3", "train optimizer.lr=1", "train model.mapper.layer=2",
        "eval decode.beam=3 captions=a.json", "embed featurs=[image]", "train-lm lm.nme=gpt2", "vqa questons=a.json",
        "relations frist=3", "caption photo.jpg --ckpt here.pt --decod beam",
        "caption photo.jpg --ckpt here.pt --set beems=3", "info here.pt --jsn",
        "datastore list x --mach a", "datastore sort x",
    ],
    "a value out of range": [
        "train model.mapper.prefix_length=0", "train lm.dtype=float3", "train model.mapper.name=lstm",
        "train model=capdec model.noise.variance=-1", "train model.learns_from=sounds",
        "train data.on_device=2",
        "eval captions=a.json decode.beams=0", "eval captions=a.json decode.method=best",
        "eval method=zerocap method.beams=0", "eval method=zerocap method.encoder_dtype=half",
        "relations method=zerocap method.encoder_dtype=int8", "caption photo.jpg --ckpt here.pt --set beams=two",
        "caption photo.jpg --similarity --format coco",
    ],
    "a missing file": [
        "train ckpt=none.ckpt", "train start=none.ckpt", "train data=coco", "train-lm data=coco lm=gpt2",
        "eval ckpt=none.ckpt", "eval captions=none.json", "eval captions=a.json metrics=[CHAIR] instances=none.json",
        "eval compare=[none,nothing]", "relations ckpt=none.ckpt",
        "relations method=zerocap relations=none.json", "vqa ckpt=none.ckpt data=coco questions=a annotations=b",
        "vqa questions=none.json annotations=b train_annotations=c captions=d", "caption none.jpg --ckpt here.pt",
        "caption photo.jpg --ckpt none.ckpt", "serve --ckpt none.ckpt", "info none.ckpt", "export none.ckpt out",
        "interpret photo.jpg --ckpt none.ckpt", "interpret none.jpg --ckpt here.pt",
        "arithmetic txt:'a' --ckpt none.ckpt", "embed data=coco", "embed data=flickr8k",
        "embed data=folder data.root=none", "import-features none.npy --store s --encoder demo", "verify nothing",
        "gap nothing", "correlate none.txt", "leaderboard none", "export-features nothing out", "caption none.jpg",
        "interpret none.jpg", "datastore list none", "datastore add none a.txt", "datastore dedupe none",
        "datastore remove none --match a", "datastore copy none new", "datastore index none",
        "train-heads nothing --out new",
    ],
    "a wrong metric": ["eval captions=a.json metrics=[BLUE]", "eval ckpt=here.pt metrics=BLUE",
                       "correlate captions.json --metrics BLUE"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a picture, a file in the place of a checkpoint, and captions."""
    made = tmp_path_factory.mktemp("startup")
    (made / "photo.jpg").touch()
    (made / "here.pt").touch()
    captions = [{"image_id": image, "caption": f"a dog number {image}"} for image in range(3)]
    (made / "captions.json").write_text(json.dumps(captions))
    references = {"images": [{"id": image} for image in range(3)], "annotations": captions}
    (made / "references.json").write_text(json.dumps(references))
    return made


def outcomes(folder: Path, lines: list[str]) -> list[tuple[int, str, list[str]]]:
    """Of each command line in turn, in one process: status, stderr, and the heavy modules that are imported by then."""
    words = json.dumps([line.split() for line in lines])
    done = subprocess.run(
        [sys.executable, "-c", RUN, words, json.dumps(HEAVY)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: list[tuple[int, str, list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_reported_before_torch_is_imported(kind: str, folder: Path) -> None:
    for line, (status, error, imported) in zip(MISTAKES[kind], outcomes(folder, MISTAKES[kind]), strict=True):
        assert status in (1, 2) and error.startswith("error: ") and error.count("\n") == 1, (line, error)
        assert not imported, (line, imported)


def test_captions_in_a_file_are_scored_without_torch(folder: Path) -> None:
    line = "eval captions=captions.json references=references.json metrics=[BLEU,ROUGE-L,CIDEr,CHAIR]"
    [(status, error, imported)] = outcomes(folder, [line])
    assert (status, imported) == (0, []), error
    assert list(folder.glob("runs/eval/**/metrics.json"))


def test_help_without_torch(folder: Path) -> None:
    for status, error, imported in outcomes(folder, ["--help", "caption --help", "--version"]):
        assert (status, imported) == (0, []), error


@pytest.mark.parametrize("command", ["train", "train-lm", "embed", "eval", "relations", "vqa"])
def test_a_configuration_is_complete_in_a_process_of_its_own(command: str, tmp_path: Path) -> None:
    """Whatever other commands import: its interpolations are resolved."""
    data = [] if command in ("relations", "vqa") else ["data=demo"]
    line = [sys.executable, "-m", "prefixcap", command, *data, "--cfg", "job", "--resolve"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "${" not in done.stdout


@pytest.mark.parametrize(
    "module", ["prefixcap", "prefixcap.store", "prefixcap.metrics", "prefixcap.evaluation", "prefixcap.decoding",
               "prefixcap.evaluation.agreement", "prefixcap.mappers", "data_prep.stores", "data_prep.records"],
)  # fmt: skip
def test_modules_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"
