"""Export a captioner to a folder that others can load.

safetensors is for `prefixcap.load` and comes with a model card; onnx and torch-export run without prefixcap.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from prefixcap.commands.common.options import CAPTIONER, existing_captioner
from prefixcap.commands.common.outputs import require_new_folder

EXAMPLES = """  prefixcap export best.ckpt shared

  prefixcap export best.ckpt shared-onnx --format onnx"""


def main(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CAPTIONER, callback=existing_captioner)],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    form: Annotated[
        Literal["safetensors", "onnx", "torch-export"],
        typer.Option("--format", metavar="NAME", help="safetensors, onnx or torch-export."),
    ] = "safetensors",
    license: Annotated[
        str, typer.Option(metavar="NAME", help="The licence of the weights, for the model card: mit, ...")
    ] = "unknown",
) -> None:
    """Write the folder. Raises InputError if it has files already, or the checkpoint cannot be loaded."""
    require_new_folder(folder)
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
