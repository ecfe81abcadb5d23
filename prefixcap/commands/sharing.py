"""Commands that take captioners elsewhere: the page, exports, and weights that others published."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from prefixcap.commands.common.options import CAPTIONER, Checkpoint, Device
from prefixcap.errors import InputError

app = typer.Typer()
PANEL = "Share"


@app.command(
    rich_help_panel="Caption",
    epilog="""  prefixcap serve --ckpt best.ckpt

  PREFIXCAP_PASSWORD=secret prefixcap serve --ckpt best.ckpt \\
      --host 0.0.0.0 --port 8000 --allow-host gpu-box

  prefixcap serve --ckpt best.ckpt --root-path /captions \\
      --allow-host example.org""",
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
    max_per_client: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of them, of one address; half, if not given.", show_default=False),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Where browsers see the page, e.g. /captions, if a proxy serves it below a path.",
            show_default=False,
        ),
    ] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that browsers may call it by; may be repeated; *: any."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="A site whose pages may use the API, e.g. https://example.org; may be repeated; *: any."
        ),
    ] = None,
    forwarded_allow_ips: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Addresses and networks of proxies that are trusted in X-Forwarded-*; *: all."
        ),
    ] = "127.0.0.1,::1",
    device: Device = "auto",
) -> None:
    """Serve a web page and an HTTP API that caption images."""
    from prefixcap.web.server import serve as run

    run(
        str(ckpt),
        host,
        port,
        password,
        max_queue,
        device,
        max_per_client=max_per_client,
        root_path=root_path,
        allow_hosts=allow_host or (),
        allow_origins=allow_origin or (),
        forwarded_allow_ips=forwarded_allow_ips,
    )


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
    from prefixcap.captioner import load

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
    from prefixcap.captioner import load

    load(file, tokenizer=tokenizer).save_pretrained(folder)
    print(f"written to {folder}: prefixcap.load and --ckpt take it")


def _require_new(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already: name a new or empty folder")
