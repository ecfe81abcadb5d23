"""Embed a data set once, into a feature store: `python -m data_prep.embed` is `prefixcap embed`."""

from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.embed import main

if __name__ == "__main__":
    run(main, "embed")
