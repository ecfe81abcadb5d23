"""Commands that look after the machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
PANEL = "Set up"


@app.command(
    rich_help_panel=PANEL,
    epilog="""  prefixcap doctor

  prefixcap doctor --json""",
)
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine has, and lacks, and what would be downloaded.

    Status 1: something is broken, without which nothing works.
    """
    from prefixcap.commands.doctor import examine, format_findings

    findings = examine()
    print(json.dumps([vars(of) for of in findings], indent=2) if as_json else format_findings(findings))
    if any(of.state == "broken" for of in findings):
        raise typer.Exit(1)


@app.command(
    "setup-spice",
    rich_help_panel=PANEL,
    epilog="""  prefixcap setup-spice

  prefixcap setup-spice --from stanford-corenlp-full-2015-12-09""",
)
def prepare_spice(
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="With stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar (default: fetch them).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Get the parser that the SPICE metric needs.

    Of a download of some 400 MB, 17 MB are kept.
    """
    from prefixcap.metrics.spice_setup import setup_spice, spice_folder

    setup_spice(source)
    print(f"SPICE is set up in {spice_folder()}")
