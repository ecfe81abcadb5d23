"""The scripts as users run them, each in a process of its own: complete runs, and what they say of mistakes.

Training, evaluation and captioning start Python anew once; all other processes are forked.
"""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import prefixcap
from prefixcap.demo.scenes import DOMAINS
from prefixcap.demo.world import write_coco
from tests.conftest import ROOT
from tests.processes import python


def succeed(*arguments: object, fresh: bool = False, cwd: Path = ROOT) -> str:
    """Run python with these arguments, in a fresh interpreter or in a forked one; -> what it prints."""
    if fresh:
        command = [sys.executable, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    else:
        process = python(*arguments, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a smaller small world, in COCO's format, and the store that the offline step made of it."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"train": {"in-domain": 60}, "val": {"in-domain": 8}, "test": dict.fromkeys(DOMAINS, 4)}
        patch.setattr("prefixcap.demo.world.SPLITS", sizes)
        write_coco(folder / "images")
    data = ["data=coco", f"data.root={folder / 'images'}", "data.reader.annotations=captions_demo.json"]
    data.append(f"data.store={folder / 'store'}")
    printed = succeed("-m", "data_prep.embed", *data, "encoder.name=demo")
    assert "images: train 60, val 8, test 12; captions: 400" in printed
    return data


@pytest.fixture(scope="module")
def trained(world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    printed = succeed(
        ROOT / "train.py", *world, "lm=demo", "encoder=demo", f"run_dir={folder}", "model.mapper.layers=2",
        "trainer.max_epochs=2", "optimizer.learning_rate=1e-3", "optimizer.warmup_steps=2", "val_max_tokens=30",
        "logger=tensorboard", "objective.fused=false",  # an option that self-critical training does not take
        fresh=True,
    )  # fmt: skip
    assert re.search(r"training [\d.]+M parameters \([\d.]+M frozen\)", printed)
    assert "\non CPU: 32-true, captions drawn one by one\n" in printed
    assert re.search(r"\n[\d,]+ captions a second, without validation\n", printed)
    assert f"python eval.py ckpt={folder}/checkpoints/best.ckpt" in printed.splitlines()[-1]
    return folder


def test_the_folder_of_a_run(trained: Path) -> None:
    """Slow because it is the first that needs the run: a store is built, and a fresh interpreter trains two epochs."""
    assert {"best.ckpt", "last.ckpt"} == {file.name for file in (trained / "checkpoints").iterdir()}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["lm_tuning"] == "frozen"
    assert (config["trainer"]["precision"], config["data"]["group_captions"]) == ("32-true", False)  # not auto
    with (trained / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames
    assert {"train_loss", "val_loss", "val_cider", "step", "epoch", "captions_per_second"} <= set(columns or [])
    assert len(list((trained / "samples").glob("*.json"))) == len(list((trained / "samples").glob("*.html"))) == 2
    assert (trained / "curves.png").exists()
    assert list((trained / "tensorboard").glob("events.out.tfevents.*"))
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("language_model" in name for name in checkpoint["state_dict"])


def test_resume_goes_on_in_the_same_folder(trained: Path, mistake: Callable[..., str]) -> None:
    with (trained / "metrics.csv").open("r+") as file:
        table = csv.DictReader(file)
        before = list(table)
        csv.DictWriter(file, table.fieldnames or ()).writerow(before[-1] | {"step": 9999})  # after the checkpoint
    config = yaml.safe_load((trained / "config.yaml").read_text())
    del config["compile"], config["model"]["learns_from"], config["model"]["noise"]  # as if they had come since
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    succeed(ROOT / "train.py", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "trainer.max_epochs=3")
    with (trained / "metrics.csv").open() as file:
        after = list(csv.DictReader(file))
    assert after[: len(before)] == before and len(after) > len(before)
    assert {row["epoch"] for row in after} >= {"0", "1", "2"} and "9999" not in {row["step"] for row in after}
    assert len(list((trained / "samples").glob("*.json"))) == 3
    message = mistake("train", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "model=mlp")
    assert "a resumed run keeps its model" in message
    for option in ("model.start_token=true", "model.mapper.prefix_length=4"):
        message = mistake("train", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", option)
        assert f"a resumed run keeps its {'.'.join(option.split('=')[0].split('.')[:2])}: leave it out" in message
    message = mistake("train", f"ckpt={trained / 'checkpoints' / 'last.ckpt'}", "find=batch_size")
    assert "find= starts from new weights, and ckpt= continues" in message
    taken = [f"ckpt={trained / 'checkpoints' / 'best.ckpt'}", "model.objective=scst", f"run_dir={trained}"]
    assert f"{trained} holds a run" in mistake("train", *taken)


def test_a_full_disk_leaves_the_last_checkpoint_whole(trained: Path) -> None:
    """A limit on the size of files stands in for the disk: the next checkpoint does not fit."""
    last = trained / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    limit = len(before) // 2
    limited = (
        "import resource, runpy, sys; sys.dont_write_bytecode = True; "  # it would be cut
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    )
    process = python("-c", limited, f"ckpt={last}", "trainer.max_epochs=9")
    assert process.returncode == 2, process.stderr
    told = process.stderr.splitlines()[-1]
    assert re.match(r"error: cannot write .*/(best|last)\.ckpt: no space left on the disk; ", told)
    assert "Traceback" not in process.stderr
    assert last.read_bytes() == before
    prefixcap.load(last)


def test_evaluation_of_a_checkpoint(trained: Path, world: list[str], mistake: Callable[..., str]) -> None:
    """Slow because a fresh interpreter captions the split, and METEOR starts Java for captions and people."""
    printed = succeed(ROOT / "eval.py", f"ckpt={trained / 'checkpoints' / 'best.ckpt'}", "decode=greedy", fresh=True)
    assert re.search(r"humans +0\.\d{4}", printed) and "right attributes" in printed
    (folder,) = (trained / "eval").iterdir()
    assert {"metrics.json", "captions.json", "per_image.csv", "report.html", "statistics.npz"} == {
        f.name for f in folder.iterdir()
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"} <= metrics.keys()
    assert metrics["right attributes"].keys() == {*DOMAINS, "overall"}
    results = json.loads((folder / "captions.json").read_text())
    assert len(results) == 12 and all(result.keys() == {"image_id", "caption"} for result in results)
    assert (folder / "report.html").read_text().count("data:image/jpeg;base64,") == 12

    # The same captions, scored as captions made elsewhere, get the same scores.
    references = Path(next(option for option in world if "root" in option).partition("=")[2]) / "dataset_coco.json"
    elsewhere = folder.parent.parent / "elsewhere"
    captions = folder / "captions.json"
    message = mistake("eval", f"captions={captions}", f"references={references}", "split=null")
    assert "68" in message  # the split file also has the train and val images, which have no captions here
    succeed(ROOT / "eval.py", f"captions={captions}", f"references={references}", f"out={elsewhere}")
    again = json.loads((elsewhere / "metrics.json").read_text())
    assert again == {name: value for name, value in metrics.items() if name not in ("right attributes", "domains")}
    printed = succeed(ROOT / "eval.py", f"compare=[{folder},{elsewhere}]")
    assert re.search(r"CIDEr\n", printed) and re.search(r"p-value( +1\.0000){7}", printed)


def test_a_run_that_ends_before_its_first_validation(world: list[str], tmp_path: Path) -> None:
    options = ["lm=demo", "encoder=demo", "model=mlp", f"run_dir={tmp_path / 'run'}", "+trainer.max_steps=1"]
    printed = succeed(ROOT / "train.py", *world, *options)
    assert "ended before the first validation" in printed and (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_self_critical_training_starts_from_a_checkpoint(trained: Path, mistake: Callable[..., str]) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    before, new = best.read_bytes(), trained.parent / "scst"
    options = ["model.objective=scst", f"run_dir={new}", "trainer.max_epochs=1", "scst.sample_tokens=12"]
    succeed(ROOT / "train.py", f"ckpt={best}", *options, "optimizer.learning_rate=1e-5")
    assert best.read_bytes() == before and "scst" in (new / "config.yaml").read_text()
    assert list((new / "tensorboard").glob("events.out.tfevents.*")), "its trackers are where it is"
    succeed(ROOT / "train.py", f"ckpt={new / 'checkpoints' / 'last.ckpt'}", "trainer.max_epochs=2")
    with (new / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["val_cider"]] == ["0", "1"]
    assert prefixcap.load(new / "checkpoints" / "last.ckpt").caption(torch.randn(1, 128), "greedy", max_tokens=3)
    assert "choose one of cider, clip" in mistake("train", f"ckpt={best}", "model.objective=scst", "scst.reward=bleu")
    assert "choose one of cross_entropy, scst" in mistake("train", f"ckpt={best}", "model.objective=rl")


def test_a_run_starts_from_the_weights_of_another(
    trained: Path, world: list[str], tmp_path: Path, mistake: Callable[..., str]
) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    options = [*world, "lm=demo", "encoder=demo", f"start={best}"]
    one_tiny_step = ["+trainer.max_steps=1", "optimizer.learning_rate=1e-12", "optimizer.warmup_steps=0"]
    succeed(ROOT / "train.py", *options, "model.mapper.layers=2", *one_tiny_step, f"run_dir={tmp_path / 'run'}")
    after = prefixcap.load(tmp_path / "run" / "checkpoints" / "last.ckpt").checkpoint_state_dict()
    torch.testing.assert_close(after, prefixcap.load(best).checkpoint_state_dict(), rtol=0, atol=1e-9)
    assert str(best) in mistake("train", *options, "model.mapper.layers=3")
    assert "start=photos begins a new one with it" in mistake("train", *world, "ckpt=photos")
    assert "there is no checkpoint" in mistake("train", *options, f"start={tmp_path / 'none.ckpt'}")


@pytest.mark.slow
def test_load_in_another_process_outside_the_project(trained: Path, world: list[str], tmp_path: Path) -> None:
    image = next((Path(world[1].partition("=")[2]) / "images").iterdir())
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    code = f"import prefixcap; print(prefixcap.load({checkpoint!r}).caption([{str(image)!r}])[0])"
    caption = succeed("-c", code, cwd=tmp_path)
    command = ["-m", "prefixcap", "caption", image, "--ckpt", checkpoint]
    assert succeed(*command, cwd=tmp_path, fresh=True) == f"{image}\t{caption}"


@pytest.mark.slow
def test_published_results_get_the_published_scores(shared: Path, tmp_path: Path) -> None:
    """METEOR of the same captions, which takes most of the time, is in tests/metrics/test_published.py."""
    captions = shared / "results" / "magic_coco_test.json"
    printed = succeed(ROOT / "eval.py", f"captions={captions}", "metrics=[BLEU,ROUGE-L,CIDEr]", f"out={tmp_path}")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    published = {
        "BLEU-1": 0.56820, "BLEU-2": 0.35764, "BLEU-3": 0.21417, "BLEU-4": 0.12878,
        "ROUGE-L": 0.39879, "CIDEr": 0.49289,
    }  # fmt: skip
    assert {name: round(metrics[name], 5) for name in published} == published
    assert "0.4929" in printed and metrics["humans"]["CIDEr"] > 0.8


def test_without_java_the_other_scores_print(tmp_path: Path) -> None:
    entries = [
        {"image_name": f"{i}.jpg", "prediction": f"a dog number {i}", "captions": [f"dog {i}", "a dog"]}
        for i in range(4)
    ]
    (tmp_path / "captions.json").write_text(json.dumps(entries))
    words = [f"captions={tmp_path / 'captions.json'}", f"out={tmp_path / 'out'}"]
    process = python(ROOT / "eval.py", *words, environment=os.environ | {"PATH": ""})
    assert process.returncode == 0, process.stderr
    assert "CIDEr" in process.stdout and re.search(r"METEOR is missing: .*Java", process.stdout)
    assert "METEOR" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "model.mapper.lenght=3"], r"model\.mapper\.lenght"),
        (["train", "model=rnn"], r"model=rnn.*mlp.*transformer"),
        (["train", "model.lm_tuning=half", "{world}", "lm=demo", "encoder=demo"], "'half'.*frozen, lora, full"),
        (["train", "data=coco", "data.root=nowhere"], "no feature store.*data_prep.embed data=coco"),
        (["train", "{world}", "lm=demo"], "made with encoder 'demo', not 'clip:ViT-B/32'"),
        (
            ["train", "{world}", "encoder=demo", "lm.name=/no/such/folder"],
            "cannot load language model '/no/such/folder'",
        ),
        (["train", "ckpt=absent.ckpt"], "there is no checkpoint absent.ckpt"),
        (["eval"], "ckpt=PATH.*captions=FILE"),
        (["eval", "ckpt=absent.ckpt"], "there is no checkpoint absent.ckpt"),
        (["eval", "ckpt={run}/checkpoints/best.ckpt", "split=dev"], "no split 'dev'; it has train, val, test"),
        (["eval", "ckpt={run}/checkpoints/best.ckpt", "decode.max_tokens=500"], "exceed the context"),
        (
            ["eval", "ckpt={run}/checkpoints/best.ckpt", "data=coco", "data.store=absent"],
            "no feature store absent.*data_prep.embed data=coco data.store=absent encoder.name=demo",
        ),
        (["eval", "compare=[absent,absent]"], "absent holds no evaluation.*folders that an evaluation was written to"),
        (["eval", "compare=[absent]"], "compare takes two or more folders of evaluations, not 1"),
        (["eval", "compare=runs/a"], "compare takes two or more folders of evaluations, not 1"),
        (["eval", "compare=[absent,absent]", "test=t"], "unknown test=t: choose from bootstrap, randomization"),
        (["eval", "compare=[a,[b,c]]", "test=randomization"], "test=randomization exchanges captions, not runs"),
        (["eval", "captions=absent", "test=randomization"], "test= is for compare="),
        (["eval", "captions=absent.json", "data=coco", "references=absent.json"], "references= is for captions="),
        (["eval", "captions=absent.json", "limit=5"], "limit= is for method=zerocap or magic"),
        (["eval", "ckpt={run}/checkpoints/best.ckpt", "metrics=bleu"], "unknown metric 'bleu': choose from BLEU"),
        (["eval", "captions=absent.json", "out=pyproject.toml"], "out=pyproject.toml is a file: name a folder"),
        (["eval", "captions=absent.json", "metrics=null"], r"metrics=None is not a list of names: .*metrics=\[A,B\]"),
        (
            ["eval", "ckpt={run}/checkpoints/best.ckpt", "decode=nucleus", "decode.top_p=2"],
            r"top_p must be above 0\.0 and at most 1\.0, not 2\n",
        ),
        (["eval", "ckpt={run}/checkpoints/best.ckpt", "decode.rerank=10"], r"beams=5, not 10: set decode\.beams=10\n"),
        (["eval", "ckpt={run}/checkpoints/best.ckpt", "batch_size=0"], "batch_size must be at least 1, not 0"),
        (["eval", "captions=absent.json"], "cannot read absent.json: No such file"),
        (["eval", "captions=pyproject.toml"], "is not JSON"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], message: str, world: list[str], trained: Path, mistake: Callable[..., str]
) -> None:
    words = [part for word in arguments for part in (world if word == "{world}" else [word.format(run=trained)])]
    assert re.search(message, mistake(*words))
