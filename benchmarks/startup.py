"""How long commands take to start, beside `python -c 'import torch'`: `python benchmarks/startup.py [--runs 5]`.

Each is run several times in turn, in processes of its own, so that a busy machine slows all alike. Printed are the
median of the CPU seconds (user and system, of all threads on one core) and their ratio to `import torch`, beside the
goal. What is captioned, trained and evaluated is the bundled small world.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PYTHON = (sys.executable, "-W", "ignore")
PREFIXCAP = (*PYTHON, "-m", "prefixcap")
QUICK = ("trainer.max_steps=1", "trainer.accelerator=cpu", "+trainer.limit_val_batches=1")
TORCH = "import torch"


def commands(folder: Path) -> dict[str, tuple[tuple[str, ...], float | None, bool]]:
    """By name: the command, the most that its ratio should be (None: no goal), and whether it may fail."""
    ckpt = str(next(folder.glob("runs/*/*/checkpoints/last.ckpt")))
    return {
        TORCH: ((*PYTHON, "-c", TORCH), None, False),
        "import lightning": ((*PYTHON, "-c", "import lightning"), None, False),
        "import transformers' GPT-2": ((*PYTHON, "-c", "from transformers import GPT2LMHeadModel"), None, False),
        "import prefixcap": ((*PYTHON, "-c", "import prefixcap"), None, False),
        "import prefixcap.store": ((*PYTHON, "-c", "import prefixcap.store"), None, False),
        "import prefixcap.metrics": ((*PYTHON, "-c", "import prefixcap.metrics"), None, False),
        "prefixcap --help": ((*PREFIXCAP, "--help"), None, False),
        "a mistyped option of train": ((*PREFIXCAP, "train", "trainer.max_epoch=3"), 1, True),
        "a missing checkpoint": ((*PREFIXCAP, "caption", "photo.png", "--ckpt", "none.ckpt"), 1, True),
        "a wrong metric": ((*PREFIXCAP, "eval", f"ckpt={ckpt}", "metrics=[BLUE]"), 1, True),
        "caption one picture": ((*PREFIXCAP, "caption", "photo.png", "--ckpt", ckpt, "--device", "cpu"), 2, False),
        "train one step": ((*PREFIXCAP, "train", *QUICK), 3, False),
        "imports of eval": ((*PYTHON, "-c", IMPORTS_OF_EVAL), 3, False),
    }


IMPORTS_OF_EVAL = "import prefixcap.commands.common.captioning, transformers.models.gpt2.modeling_gpt2"


def seconds(command: tuple[str, ...], folder: Path, may_fail: bool = False) -> float:
    """CPU seconds of a command and its children, in a folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode and not may_fail:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each command (default: %(default)s)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        Image.new("RGB", (64, 64), "red").save(folder / "photo.png")
        seconds((*PREFIXCAP, "train", *QUICK), folder)  # makes the store and the checkpoint
        measured: dict[str, list[float]] = {}
        chosen = commands(folder)
        for _ in range(1 + runs):
            for name, (command, _, may_fail) in chosen.items():
                measured.setdefault(name, []).append(seconds(command, folder, may_fail))
    measured = {name: values[1:] for name, values in measured.items()}
    torch = statistics.median(measured[TORCH])
    for name, (_, most, _) in chosen.items():
        median = statistics.median(measured[name])
        goal = f"   at most {most}" if most is not None else ""
        print(f"{name:28} {median:7.2f} s {median / torch:6.2f} times {TORCH}{goal}")


if __name__ == "__main__":
    main()
