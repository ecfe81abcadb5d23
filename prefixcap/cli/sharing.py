"""Commands that take captioners elsewhere: the page, exports, and weights that others published."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from prefixcap.cli.options import CAPTIONER, Checkpoint, Device
from prefixcap.errors import InputError

app = typer.Typer()
PANEL = "Share"


@app.command(
    rich_help_panel="Caption",
    epilog="""  prefixcap serve --ckpt best.ckpt

  PREFIXCAP_PASSWORD=secret prefixcap serve --ckpt best.ckpt \\
      --host 0.0.0.0 --port 8000""",
)
def serve(
    ckpt: Checkpoint,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0: other machines can come, too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: any that is free.")] = 7860,
    password: Annotated[
        str | None,
        typer.Option(envvar="PREFIXCAP_PASSWORD", metavar="TEXT", help="Ask who comes for it.", show_default=False),
    ] = None,
    max_queue: Annotated[int, typer.Option(min=1, metavar="N", help="Requests that wait; more are sent away.")] = 64,
    device: Device = "auto",
) -> None:
    """Serve a web page and an HTTP API that caption images."""
    from prefixcap.web.server import serve as run

    run(str(ckpt), host, port, password, max_queue, device)


@app.command(
    rich_help_panel=PANEL,
    epilog="""  prefixcap export best.ckpt shared

  prefixcap export best.ckpt shared-onnx --format onnx""",
)
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=CAPTIONER)],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    form: Annotated[
        Literal["safetensors", "onnx", "torch-export"],
        typer.Option(
            "--format",
            metavar="NAME",
            help="safetensors (for prefixcap.load), onnx, or torch-export (to run without prefixcap).",
        ),
    ] = "safetensors",
    license: Annotated[
        str, typer.Option(metavar="NAME", help="Of the weights, for the model card of safetensors: mit, ...")
    ] = "unknown",
) -> None:
    """Write a captioner to a folder that others can load."""
    _require_new(folder)
    from prefixcap.checkpoints import load

    captioner = load(checkpoint)
    if form == "safetensors":
        captioner.save_pretrained(folder, license)
    elif form == "onnx":
        from prefixcap.sharing.export import export_onnx

        export_onnx(captioner, folder, progress=True)
    else:
        from prefixcap.sharing.export import export_program

        export_program(captioner, folder, progress=True)
    print(f"written to {folder}")


@app.command(
    "import",
    rich_help_panel=PANEL,
    epilog="""  prefixcap import coco_weights.pt clipcap-coco

  prefixcap caption photo.jpg --ckpt clipcap-coco""",
)
def import_published(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights that the authors of ClipCap published (.pt).")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    tokenizer: Annotated[str, typer.Option(metavar="NAME", help="GPT-2's, by name or folder.")] = "gpt2",
) -> None:
    """Turn weights that ClipCap published into such a folder.

    The folder says by itself what it needs: encoder, mapper and language model, tokenizer included.
    """
    _require_new(folder)
    from prefixcap.checkpoints import load

    load(file, tokenizer=tokenizer).save_pretrained(folder)
    print(f"written to {folder}: prefixcap.load and --ckpt take it")


def _require_new(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new or empty folder")
