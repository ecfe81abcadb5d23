"""Runs that are killed, stopped, sent NaN, or out of memory: what they did is kept, and resuming changes nothing."""

import errno
import fcntl
import json
import os
import random
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from prefixcap.captioner import Captioner
from prefixcap.checkpoints.files import read_training
from prefixcap.commands.common import run_folder
from prefixcap.commands.common.trainer import fit as run_training
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity
from prefixcap.losses import token_cross_entropy
from prefixcap.packing import Batch
from prefixcap.training import CaptionTraining, nan_guard
from prefixcap.training.checkpoints import AtomicCheckpointIO, LastCheckpoint, RandomState, best_and_last
from prefixcap.training.cuda_graphs import CapturedTraining
from prefixcap.training.nan_guard import FiniteLoss
from prefixcap.training.objectives import CrossEntropy, Objective
from tests.conftest import ROOT, assert_equal, run_script, slow_after, small_captioner
from tests.processes import free_port, start
from tests.training.test_captured import capture_on_cpu
from tests.training.test_training import make_store

DEMO = EncoderIdentity("demo", "0" * 64, "none", 16)


class Kill(L.Callback):
    """Writes which captions every batch has, and how validations end; sends a signal to this process at a batch and a
    place in it."""

    def __init__(self, run: Path, batch: int, place: str, number: int) -> None:
        self.run, self.batch, self.place, self.number, self.trained = run, batch, place, number, 0

    def _at(self, place: str) -> None:
        if (self.trained, place) == (self.batch, self.place):
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        self.trained = trainer.fit_loop.total_batch_idx
        with (self.run / "drawn").open("a") as file:
            print(json.dumps([self.trained, *batch.caption_rows]), file=file)

    def on_after_backward(self, *_: Any) -> None:
        self._at("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self._at("end")

    def on_validation_batch_start(self, *_: Any) -> None:
        self._at("validation")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        with (self.run / "scores").open("a") as file:
            print(json.dumps([trainer.global_step, trainer.callback_metrics["val_cider"].item()]), file=file)


def train(
    store: Path, run: Path, options: dict[str, Any], batch: int, place: str, number: int, rank: int, port: int
) -> None:
    """Train a small captioner with dropout; go on from last.ckpt if there is one. The last process sends the signal."""
    run.mkdir(exist_ok=True)
    if options["processes"] > 1:
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    batch = batch if rank == options["processes"] - 1 else -1
    L.seed_everything(5, verbose=False)
    captioner = small_captioner("full", "mlp")  # GPT-2's dropout is 0.1
    last = run / "last.ckpt"
    if place == "save":
        save = torch.save

        def half(content: Any, file: Any) -> None:
            save(content, file)
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), number)

        torch.save = half if last.exists() else save
    if options["captured"]:
        capture_on_cpu()
    data = CaptionData(store, captioner, **options["data"])
    training = CaptionTraining(captioner, data.val_split, 1e-2, warmup_steps=2, max_tokens=3)
    trainer = L.Trainer(
        max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        gradient_clip_val=1.0, accelerator="cpu", deterministic=True, plugins=[AtomicCheckpointIO()],
        devices=options["processes"], strategy="ddp" if options["processes"] > 1 else "auto",
        accumulate_grad_batches=options["accumulate"], default_root_dir=run,
        callbacks=[*best_and_last(run, 2), RandomState(), FiniteLoss(), CapturedTraining(options["captured"]),
                   Kill(run, batch, place, number)],
    )  # fmt: skip
    trainer.fit(training, data, ckpt_path=last if last.exists() else None, weights_only=True)


PLAIN: dict[str, Any] = {"data": {"batch_size": 3}, "accumulate": 1, "processes": 1, "captured": False}
GROUPED = PLAIN | {"data": {"batch_size": 3, "num_workers": 2, "group_captions": True}, "accumulate": 2}
SMALL = PLAIN | {"data": {"batch_size": 2}}  # two batches of validation
CAPTURED = SMALL | {"captured": True}
TWO = SMALL | {"processes": 2}
KILL, TERM, CTRL_C = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
PLACES = [
    *((batch, place) for batch in range(12) for place in ("backward", "end")),
    (3, "validation"),
    (7, "validation"),
]


@pytest.mark.parametrize(
    ("options", "ends"),
    slow_after(3, [
        (CAPTURED, [(4, "end", KILL), (11, "validation", TERM)]),
        (PLAIN, [(5, "backward", KILL), (-1, "save", KILL)]),
        (SMALL, [(1, "backward", TERM), (5, "backward", CTRL_C), (11, "validation", TERM), (13, "end", TERM)]),
        (TWO, [(1, "backward", TERM), (4, "backward", KILL)]),
        (PLAIN, [(batch, place, KILL) for batch, place in sorted(random.Random(0).sample(PLACES, 3))]),
        (GROUPED, [(4, "backward", KILL), (8, "backward", TERM)]),
    ]),
    ids=["captured steps", "while a checkpoint is written", "by signals", "two processes", "anywhere",
         "workers and summed gradients"],
)  # fmt: skip
def test_a_killed_run_ends_as_an_uninterrupted_one(
    options: dict[str, Any], ends: list[tuple[int, str, int]], tmp_path: Path
) -> None:
    store = make_store(tmp_path / "store")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, end in [(whole, (-1, "", 0)), *((parts, end) for end in ends), (parts, (-1, "", 0))]:
        port = free_port()
        processes = [start(train, store, folder, options, *end, rank, port) for rank in range(options["processes"])]
        processes[-1].join()
        for process in processes[:-1]:
            if end[2] == KILL:
                process.kill()
            process.join()
        expected = -end[2] if end[2] == KILL else end[2] and 128 + end[2]
        assert {process.exitcode for process in processes} == {expected}, ends
    one, other = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, parts))
    for checkpoint in (one, other):  # what the other callbacks keep has the folder's name in it
        checkpoint["callbacks"] = checkpoint["callbacks"]["RandomState"]
    assert_equal(one, other, f"killed at {ends}")
    written = {
        name: [
            [tuple(json.loads(line)) for line in (folder / name).read_text().splitlines()] for folder in (whole, parts)
        ]
        for name in ("drawn", "scores")
    }
    for of_whole, of_parts in written.values():
        assert set(of_whole) == set(of_parts)
    assert sorted(row for _, *rows in set(written["drawn"][0]) for row in rows) == sorted([*range(12)] * 3)
    if all(number != KILL for _, _, number in ends):  # nothing had to be done again
        assert sorted(written["drawn"][0]) == sorted(written["drawn"][1])


def poisoned(tmp_path: Path, images: slice) -> Path:
    """A store with embeddings that are NaN; images 0 to 8 are those of training."""
    store = make_store(tmp_path / "store")
    with h5py.File(store / "part-00000.h5", "r+") as file:
        file["images/embedding"][images] = np.nan
    return store


def fit(
    data: CaptionData, captioner: Captioner, run: Path, choice: str, *more: L.Callback, epochs: int = 1,
    accumulate: int = 1,
) -> None:  # fmt: skip
    trainer = L.Trainer(
        max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        gradient_clip_val=1.0, accelerator="cpu", default_root_dir=run, accumulate_grad_batches=accumulate,
        limit_val_batches=0, callbacks=[LastCheckpoint(run / "last.ckpt", 1), FiniteLoss(choice), *more],
    )  # fmt: skip
    trainer.fit(CaptionTraining(captioner, data.val_split, 1e-2, warmup_steps=2), data)


def test_within_an_epoch_a_run_goes_on_with_the_same_batches_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")

    class Interrupt(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, index: int) -> None:
            if trainer.global_step == steps:
                raise InterruptedError

    def go_on(batch_size: int, start: Path | None) -> None:
        captioner = small_captioner("frozen", "mlp")
        data = CaptionData(store, captioner, batch_size)
        trainer = L.Trainer(
            max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
            num_sanity_val_steps=0, default_root_dir=tmp_path,
            callbacks=[LastCheckpoint(tmp_path / "last.ckpt", 1), Interrupt()],
        )  # fmt: skip
        trainer.fit(CaptionTraining(captioner, data.val_split, max_tokens=4), data, ckpt_path=start, weights_only=True)

    steps = 2  # of an epoch's four
    with pytest.raises(InterruptedError):
        go_on(3, None)
    with pytest.raises(InputError, match="after 2 batches with batch_size=3: continue with that"):
        go_on(2, tmp_path / "last.ckpt")
    steps = 4
    with pytest.raises(InterruptedError):
        go_on(3, tmp_path / "last.ckpt")
    steps = 99
    go_on(2, tmp_path / "last.ckpt")  # from the next epoch on


@pytest.mark.parametrize("captured", [False, True])
def test_a_loss_that_is_no_number_stops_training_and_names_the_batch(
    captured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture_on_cpu(monkeypatch.setattr)
    captioner = small_captioner("frozen", "mlp")
    data = CaptionData(poisoned(tmp_path, slice(4, 5)), captioner, batch_size=3)
    batches = list(data.train_dataloader())
    step, batch = next((number, batch) for number, batch in enumerate(batches, 1) if 4 in batch.image_rows)
    captions = ", ".join(map(str, sorted(batch.caption_rows)))
    with pytest.raises(InputError) as stopped:
        fit(data, captioner, tmp_path, "stop", CapturedTraining(captured))
    named = f"captions {captions} of split 'train'; the embedding of image 4 is, too"
    assert str(stopped.value).startswith(f"the loss is NaN or infinite in step {step}: {named}")
    assert "nonfinite_loss=skip" in str(stopped.value)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == step - 1
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


def with_infinite_loss(objective: CrossEntropy, states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The cross-entropy, but infinite where a batch has image 4."""
    head = objective.captioner.language_model.head
    loss = token_cross_entropy(states, head.weight, head.bias, batch.targets)
    return loss + (torch.inf if 4 in batch.image_rows else 0)


@pytest.mark.parametrize(
    ("poison", "accumulate", "captured"),
    [("embedding", 1, False), ("embedding", 1, True), ("embedding", 2, False), ("loss", 1, False), ("loss", 2, False)],
)
def test_skipped_steps_change_nothing(
    poison: str, accumulate: int, captured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those of a plain loop without the poisoned steps.

    An infinite number added to the loss has no gradient, so that only the loss shows it.
    """
    capture_on_cpu(monkeypatch.setattr)
    store = poisoned(tmp_path, slice(4, 5)) if poison == "embedding" else make_store(tmp_path / "store")
    captioner, plain = small_captioner("frozen", "mlp"), small_captioner("frozen", "mlp")
    data = CaptionData(store, captioner, batch_size=3)
    batches = list(data.train_dataloader())
    if poison == "loss":
        monkeypatch.setattr(CrossEntropy, "__call__", with_infinite_loss)
    with pytest.warns(UserWarning, match="is NaN or infinite.*the step is left out"):
        fit(data, captioner, tmp_path, "skip", CapturedTraining(captured), accumulate=accumulate)

    optimizer = torch.optim.AdamW(plain.mapper.parameters(), lr=0.0, weight_decay=0.01)
    total = len(batches) // accumulate
    for step in range(total):
        of_step = batches[step * accumulate : (step + 1) * accumulate]
        if any(4 in batch.image_rows for batch in of_step):
            continue
        optimizer.zero_grad()
        for batch in of_step:
            (plain.loss(batch) / len(batch.targets) / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(plain.mapper.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * (step / 2 if step < 2 else (total - step) / (total - 2))
        optimizer.step()
    for trained, expected in zip(captioner.mapper.parameters(), plain.mapper.parameters(), strict=True):
        torch.testing.assert_close(trained, expected)


def test_too_many_skipped_steps_in_a_row_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nan_guard, "MOST_SKIPPED", 6)
    captioner = small_captioner("frozen", "mlp")
    data = CaptionData(poisoned(tmp_path, slice(0, 9)), captioner, batch_size=3)
    with (
        pytest.warns(UserWarning, match="step is left out") as warned,
        pytest.raises(InputError, match=r"in step 6: .*the last of 6 such steps in a row.*learning_rate"),
    ):
        fit(data, captioner, tmp_path, "skip", epochs=2)
    assert sum("left out" in str(warning.message) for warning in warned) == 5
    with pytest.raises(InputError, match="nonfinite_loss must be stop or skip, not 'ignore'"):
        FiniteLoss("ignore")


@pytest.mark.parametrize(("capability", "has_bfloat16"), [("AVX512", True), ("AVX2", False)])
def test_out_of_memory_names_what_to_change(
    capability: str, has_bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def loss(objective: Objective, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        return states.sum() * torch.ones(1 << 50).sum()

    monkeypatch.setattr(CrossEntropy, "__call__", loss)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", *run_of(make_store(tmp_path / "store", DEMO), tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("prefixcap.commands.train", run_name="__main__")
    assert stopped.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    knobs = re.findall(r"([\w.]+=[\w.-]+)", line.partition(": try ")[2])
    assert {"batch_size=2", "trainer.accumulate_grad_batches=2", "lm.gradient_checkpointing=true"} < set(knobs)
    assert "data.group_captions=true" in knobs and "(it is 4)" in line
    assert ("trainer.precision=bf16-mixed" in knobs) == has_bfloat16
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("train", knobs)  # there are such options


def run_of(store: Path, run: Path) -> list[str]:
    """Options of train.py for a run that takes long, and writes last.ckpt after each step."""
    return [
        "data=coco", f"data.store={store}", "encoder=demo", "lm=demo", "model=mlp", f"run_dir={run}", "batch_size=4",
        "trainer.max_epochs=100000", "trainer.check_val_every_n_epoch=100000", "checkpoint_every_n_steps=1",
        "trainer.accelerator=cpu",
    ]  # fmt: skip


def job(folder: Path, command: list[str], environment: dict[str, str]) -> None:
    """Run train.py in a folder; what it writes to stderr goes to a file there."""
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["train.py", *command]
    sys.stderr = Path("errors").open("w")  # noqa: SIM115  # as long as the process lives
    run_script("train")


@pytest.mark.slow
def test_a_job_of_slurm_that_is_started_again_goes_on(tmp_path: Path) -> None:
    """What SLURM does, done by hand: its variables, the signal before the time is over, and the start after it."""
    asked = tmp_path / "asked"
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    environment = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0", "SLURM_ARRAY_TASK_ID": "5",
    }  # fmt: skip
    options = [option for option in run_of(make_store(tmp_path / "store", DEMO), tmp_path) if "run_dir" not in option]

    def stopped(number: signal.Signals, command: list[str], more: dict[str, str]) -> tuple[Path, int]:
        """A job that gets a signal when it has written a checkpoint: where that is, and of which step."""
        began = time.time()
        process = start(job, tmp_path, command, environment | more)
        while process.is_alive() and not any(
            of.stat().st_mtime > began for of in tmp_path.glob("runs/*/*/*/last.ckpt")
        ):
            time.sleep(0.05)
        os.kill(process.pid or 0, number)
        process.join()
        told = (tmp_path / "errors").read_text()
        assert process.exitcode == 128 + number and "Traceback" not in told, told
        said, _, path = told.splitlines()[-1].rpartition("=")
        step = torch.load(tmp_path / path, weights_only=True)["global_step"]
        assert said == f"{number.name} stopped training after step {step}: continue with python train.py ckpt"
        return tmp_path / path, step

    again = {"SLURM_RESTART_COUNT": "1"}
    first, step = stopped(signal.SIGUSR1, options, {})
    assert asked.read_text() == "requeue 77\n" and first.parents[1].name.endswith("-5")
    last, later = stopped(signal.SIGTERM, options, again)
    assert last == first and later > step
    other, _ = stopped(signal.SIGTERM, [*options, "seed=1"], again)  # another command of the same job
    assert other != first
    reward = [f"ckpt={first}", "model.objective=scst", "scst.sample_tokens=4"]
    rewarded, step = stopped(signal.SIGTERM, reward, {})
    assert rewarded.parents[2].name == "coco-mlp-scst"
    last, later = stopped(signal.SIGTERM, reward, again)
    assert last == rewarded and later > step
    assert len(list(tmp_path.glob("runs/*/*/config.yaml"))) == 3


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path, mistake: Callable[..., str]) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    assert f"holds a run: continue it with ckpt={last}" in mistake("train", f"run_dir={tmp_path}")


@pytest.mark.parametrize("command", ["train", "train_lm"])
def test_a_folder_in_which_another_process_trains_is_not_written(
    command: str, tmp_path: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = tmp_path / "run", make_store(tmp_path / "store", DEMO)
    options = ["data=coco", f"data.store={store}", "encoder=demo", "lm=demo", f"run_dir={run}"]
    monkeypatch.setattr(run_folder, "_SECONDS", 0)
    with run_folder.sole_run(run):
        assert f"another process is training in {run}: give another run_dir" in mistake(command, *options)
        assert [file.name for file in run.iterdir()] == [".lock"]
    assert not run.exists()  # nothing was begun


@pytest.mark.parametrize("command", ["train", "train_lm"])
def test_a_run_that_ended_while_another_process_waited_for_it_is_not_written_over(
    command: str, tmp_path: Path, mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    last, store = tmp_path / "run" / "checkpoints" / "last.ckpt", make_store(tmp_path / "store", DEMO)
    locked = run_folder.lock

    def lock_after_another(run: Path) -> Any:
        last.parent.mkdir(parents=True)
        last.write_text("another's")
        return locked(run)

    monkeypatch.setattr(run_folder, "lock", lock_after_another)
    options = ["data=coco", f"data.store={store}", "encoder=demo", "lm=demo", f"run_dir={tmp_path / 'run'}"]
    assert "holds a run" in mistake(command, *options)
    assert last.read_text() == "another's"


def test_a_run_on_a_disk_without_locks_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="without locks: let no other"), run_folder.sole_run(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    assert (tmp_path / "run" / "config.yaml").exists()


DAMAGE: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("no loops", lambda content: content["loops"].update(fit_loop={"epoch_loop.state_dict": 3})),
    ("loops", lambda content: content.update(loops=[])),
    ("callbacks", lambda content: content.update(callbacks={"RandomState": {"more": 1}})),
    ("callbacks", lambda content: content.update(callbacks=3)),
    ("random numbers", lambda content: content["callbacks"]["RandomState"].update(processes=[{"torch": 3}])),
    ("random numbers", lambda content: content["callbacks"]["RandomState"].update(processes=3)),
    ("optimizer", lambda content: content["optimizer_states"][0].pop("param_groups")),
    ("optimizer", lambda content: content["optimizer_states"][0].update(param_groups=[])),
    ("optimizer", lambda content: content.update(optimizer_states=[3])),
    ("schedule", lambda content: content.update(lr_schedulers=[[]])),
    ("step", lambda content: content.update(global_step="9")),
    ("step", lambda content: content.pop("global_step")),
    ("epoch", lambda content: content.update(epoch=-1)),
    ("weights", lambda content: content.update(state_dict=[])),
]


def test_a_damaged_checkpoint_to_go_on_from_is_told(tmp_path: Path) -> None:
    def go_on(checkpoint: Path | None) -> None:
        captioner = small_captioner("frozen", "mlp")
        data = CaptionData(make_store(tmp_path / "store") if checkpoint is None else tmp_path / "store", captioner, 3)
        trainer = L.Trainer(
            max_epochs=1 if checkpoint is None else 2, logger=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=tmp_path,
            callbacks=[LastCheckpoint(tmp_path / "last.ckpt"), RandomState()],
        )  # fmt: skip
        if checkpoint is not None:
            read_training(checkpoint)
        training = CaptionTraining(captioner, data.val_split, 1e-2, warmup_steps=2)
        run_training(trainer, training, data, checkpoint and str(checkpoint), "", ())

    go_on(None)
    for name, damage in DAMAGE:
        content = torch.load(tmp_path / "last.ckpt", weights_only=True)
        damage(content)
        torch.save(content, tmp_path / "damaged.ckpt")
        with pytest.raises(InputError, match=r"damaged\.ckpt|the checkpoint") as told:
            go_on(tmp_path / "damaged.ckpt")
            pytest.fail(f"went on with damaged {name}")
        assert "\n" not in str(told.value), name
