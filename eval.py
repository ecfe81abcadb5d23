"""Evaluate captions: `python eval.py ckpt=PATH [data=…]`. The script itself is prefixcap/scripts/eval.py."""

from prefixcap.scripts.eval import main
from prefixcap.scripts.launch import run

if __name__ == "__main__":
    run(main, "eval")
