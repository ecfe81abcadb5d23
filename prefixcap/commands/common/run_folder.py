"""The folder of a training run: a new one, or that of a run to continue; the files kept in it."""

import csv
import errno
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import yaml
from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_prep.readers import READERS
from prefixcap.checkpoints.paths import file_with_weights
from prefixcap.commands.common.conf import config_folder
from prefixcap.commands.common.hydra_main import sweep_number
from prefixcap.errors import InputError
from prefixcap.renamed import current
from prefixcap.store.remote import lock
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.files import atomic_write_text, read_text

with deferred_imports():  # what follows imports torch: it waits until the options are checked
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.utilities import rank_zero_only

    from prefixcap.checkpoints.files import read_checkpoint

TARGET = re.compile(r"_target_: *([\w.]+)")

# What weights have learned with; with another value they would fit as well, and mean something else.
_LEARNED_WITH = ("model.mapper", "model.normalize_embeddings", "model.start_token", "prompts.first")

# Worker processes of a run that was killed notice it within five seconds, and until then they hold its lock.
_SECONDS = 10


def resolve_run_config(composed: DictConfig) -> DictConfig:
    """The configuration of the run that a command line asks for: a new run, or one to continue.

    Raises:
        InputError: there is no such run to continue, it cannot be changed like this, or a new run's folder is taken.
    """
    overrides = list(HydraConfig.get().overrides.task)
    command = {"slurm_job": os.environ.get("SLURM_JOB_ID"), "overrides": overrides}
    config = resumed(composed, Path(composed.ckpt), overrides) if composed.ckpt else composed
    if interrupted := _interrupted(Path(config.run_dir).parent, command):
        config = resumed(composed, interrupted, [f"ckpt={interrupted}"])
    refuse_kept_run(config)
    if config.find and config.ckpt:
        raise InputError("find= starts from new weights, and ckpt= continues a run: leave one of them out")
    return cast(DictConfig, OmegaConf.merge(config, {"command": command}))


def refuse_kept_run(config: DictConfig) -> None:
    """Raise InputError if the folder of a new run holds one."""
    last = Path(config.run_dir) / "checkpoints" / "last.ckpt"
    if last.exists() and not config.ckpt:
        raise InputError(f"{config.run_dir} holds a run: continue it with ckpt={last}, or give another run_dir")


@contextmanager
def sole_run(run_dir: Path) -> Iterator[None]:
    """A context in which no other run is written to a folder; of a run's processes, the first one sees to that.

    Raises:
        InputError: one is, by another process.
    """
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(run_dir).acquire(timeout=_SECONDS))
        except Timeout as error:
            raise InputError(f"another process is training in {run_dir}: give another run_dir, or wait") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            warnings.warn(f"{run_dir} is on a disk without locks: let no other process train in it", stacklevel=2)
        try:
            yield
        finally:
            with suppress(OSError):
                (run_dir / ".lock").unlink()
                run_dir.rmdir()  # unless something was written


def _interrupted(runs: Path, command: dict[str, Any]) -> Path | None:
    """The checkpoint to continue from, if SLURM restarted this job and this command wrote one before."""
    if "SLURM_RESTART_COUNT" not in os.environ:
        return None
    for file in sorted(runs.glob("*/config.yaml")):
        last = file.parent / "checkpoints" / "last.ckpt"
        if _command(file) != command or not last.exists():
            continue
        if last.stat().st_mtime_ns > file.stat().st_mtime_ns:  # not the one that it continued from
            return last
    return None


def resumed(composed: DictConfig, checkpoint: Path, overrides: list[str]) -> DictConfig:
    """The configuration of the run that wrote `checkpoint`, with the values that the command line changes.

    Where these choose another objective, it is that of a new run, which starts from the weights of the checkpoint.
    """
    if not file_with_weights(checkpoint).is_file():
        raise InputError(
            f"{checkpoint} is a captioner without a run, which ckpt= would continue: start={checkpoint} begins a new "
            "one with it"
        )
    read_checkpoint(checkpoint)
    run_dir = checkpoint.resolve().parent.parent
    if not (run_dir / "config.yaml").is_file():
        raise InputError(
            f"{checkpoint} is not in the folder of a run ({run_dir} has no config.yaml): resume it where it was written"
        )
    for override in overrides:
        key = override.partition("=")[0]
        if key in HydraConfig.get().runtime.choices:
            raise InputError(f"a resumed run keeps its {key}: leave out '{override}', or start a new run without ckpt=")
    before = read_config(run_dir / "config.yaml", overrides)
    for option, value in composed.items():  # options that were added since
        before.setdefault(option, value)
        if option in ("model", "lm"):
            for name in value:
                before[option].setdefault(name, value[name])
    before.data.setdefault("options", [f"data={before.data.name}"])
    changes = OmegaConf.from_dotlist([override.lstrip("+") for override in overrides])
    config = OmegaConf.merge(before, changes, {"run_dir": str(run_dir)})
    for name in _LEARNED_WITH:
        if OmegaConf.select(config, name) != OmegaConf.select(before, name):
            raise InputError(f"a resumed run keeps its {name}: leave it out, or start a new run without ckpt=")
    if config.model.objective != before.model.objective:
        config.objective = changes.get("objective", {})  # what it was holds for the objective before
        time = f"{datetime.now():%Y-%m-%d_%H-%M-%S}{sweep_number()}"
        new = changes.get("run_dir", f"{run_dir.parent}-{config.model.objective}/{time}")
        config = OmegaConf.merge(config, {"run_dir": new, "ckpt": None, "start": str(checkpoint)})
    if Path(config.run_dir).resolve() != Path(before.run_dir).resolve():  # a new run, or one that was moved
        for logger in config.logger.values():
            logger.update({option: config.run_dir for option, value in logger.items() if value == before.run_dir})
    return cast(DictConfig, config)


def read_config(file: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """A configuration that `keep_config` wrote. It builds classes by name, so that each name must be a known one.

    Args:
        file: the `config.yaml` of a run.
        overrides: of the command line, which may name other classes.

    Raises:
        InputError: it cannot be read, or it names a class that neither `conf/` nor the command line names, because the
            run of somebody else could execute anything.
    """
    try:
        config = OmegaConf.load(io.StringIO(read_text(file)))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a run's configuration ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("data"), DictConfig):
        raise InputError(f"{file} is not a run's configuration: resume where one was written")
    _rename_targets(config)
    known = {
        name for own in config_folder().rglob("*.yaml") for name in TARGET.findall(own.read_text(encoding="utf-8"))
    }
    known |= {f"{reader.__module__}.{reader.__name__}" for reader in READERS.values()}  # as older runs name them
    known |= {override.partition("=")[2] for override in overrides if "_target_=" in override}
    for name in _targets(OmegaConf.to_container(config)):
        if name not in known:
            raise InputError(
                f"{file} builds {name!r}, which prefixcap's configuration does not: if the run is yours, give that "
                "option again on the command line; if not, do not resume it"
            )
    return config


def _rename_targets(value: Any) -> None:
    """Replace class names of older versions by the present ones."""
    if isinstance(value, DictConfig):
        if isinstance(value.get("_target_"), str):
            value["_target_"] = current(value["_target_"])
        value = list(value.values())
    if isinstance(value, list | ListConfig):
        for inner in value:
            _rename_targets(inner)


def _targets(value: Any) -> Iterator[Any]:
    """The names of all classes that a configuration would build."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def keep_config(config: DictConfig) -> None:
    """Write `config.yaml`, unless the same command wrote it before (see `_interrupted`)."""
    file = Path(config.run_dir) / "config.yaml"
    if not file.exists() or _command(file) != OmegaConf.to_container(config.command):
        atomic_write_text(file, OmegaConf.to_yaml(config, resolve=True))


def keep_metrics(logger: CSVLogger, steps: int) -> None:
    """Let the CSV logger of a resumed run append to its file, cut off at `steps`; it would start an empty one."""
    file = Path(logger.log_dir) / "metrics.csv"
    rows = list(csv.DictReader(file.open())) if file.exists() else []
    if rows:
        logger.experiment.metrics_keys = list(rows[0])  # it empties the file
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(row for row in rows if int(row["step"]) < steps)
        atomic_write_text(file, text.getvalue())


def _command(file: Path) -> Any:
    """The command that wrote a `config.yaml`; None: an older version wrote it."""
    return OmegaConf.to_container(read_config(file)).get("command")  # type: ignore[union-attr]
