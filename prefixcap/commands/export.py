"""Export a captioner to a folder that others can load, or to the model hub.

safetensors is for `prefixcap.load` and comes with a model card; onnx and torch-export run without prefixcap; --space \
writes what a Hugging Face Space runs.
"""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prefixcap.commands.common.options import CAPTIONER, existing_captioner
from prefixcap.commands.common.outputs import require_new_folder
from prefixcap.errors import InputError

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner

EXAMPLES = """  prefixcap export best.ckpt shared

  prefixcap export best.ckpt --push someone/captioner --license mit

  prefixcap export best.ckpt shared-onnx --format onnx

  prefixcap export best.ckpt my-space --space"""

Form = Literal["safetensors", "onnx", "torch-export"]


def main(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CAPTIONER, callback=existing_captioner)],
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="A new or empty folder; with --push it may be left out.")
    ] = None,
    form: Annotated[
        Form, typer.Option("--format", metavar="NAME", help="safetensors, onnx or torch-export.")
    ] = "safetensors",
    space: Annotated[
        bool, typer.Option("--space", help="A Hugging Face Space: the captioner, and an app.py that serves it.")
    ] = False,
    license: Annotated[
        str, typer.Option(metavar="NAME", help="The licence of the weights, for the model card: mit, ...")
    ] = "unknown",
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", show_default=False,
            help="Upload it to the model hub, as a model or Space that is created if necessary; hf auth login first.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: create a private repository.")] = False,
) -> None:  # fmt: skip
    """Write the folder, and upload it.

    Raises:
        InputError: the folder has files already, the checkpoint cannot be loaded, or the hub refuses.
    """
    from prefixcap.utils.hub import require_repository, upload

    if push is not None:
        require_repository(push)
    elif private:
        raise InputError("--private is for an upload: add --push OWNER/NAME, or leave it out")
    elif folder is None:
        raise InputError("there is no place to export to: give a FOLDER, or --push OWNER/NAME")
    if space and form != "safetensors":
        raise InputError(f"a Space holds the captioner as safetensors: leave out --format {form}, or --space")
    if folder is not None:
        require_new_folder(folder)
    from prefixcap.captioner import load

    captioner = load(checkpoint)
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as written:
        write(captioner, Path(written), "space" if space else form, license, push)
        if folder is not None:
            print(f"written to {folder}")
        if push is not None:
            print(f"uploaded to {upload(Path(written), push, private, 'space' if space else 'model')}")


def write(captioner: "Captioner", folder: Path, form: Form | Literal["space"], license: str, name: str | None) -> None:
    """Write a captioner in this form; `name` is for the model card, None: that of the folder."""
    if form == "safetensors":
        from prefixcap.checkpoints.pretrained import save

        save(captioner, folder, license, name)
    elif form == "space":
        from prefixcap.sharing.space import write_space

        write_space(captioner, folder, license, name)
    elif form == "onnx":
        from prefixcap.sharing.export import export_onnx

        export_onnx(captioner, folder, progress=True)
    else:
        from prefixcap.sharing.export import export_program

        export_program(captioner, folder, progress=True)
