"""Evaluate captions: `python eval.py ckpt=PATH [data=…]`. The script itself is prefixcap/commands/eval.py."""

from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.eval import main

if __name__ == "__main__":
    run(main, "eval")
