"""Install the parser that the SPICE metric needs.

Downloads some 400 MB, of which 17 MB are kept.
"""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """  prefixcap setup-spice

  prefixcap setup-spice --from stanford-corenlp-full-2015-12-09"""


def main(
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="A folder with stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar "
            "(default: download them).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Install it, and say where."""
    from prefixcap.metrics.spice_setup import setup_spice, spice_folder

    setup_spice(source)
    print(f"SPICE is set up in {spice_folder()}")
