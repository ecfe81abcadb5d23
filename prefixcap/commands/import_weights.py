"""Import weights that ClipCap's authors published.

The folder that is written names all that it needs: encoder, mapper, language model and tokenizer. `--ckpt` and \
`prefixcap.load` take it.
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixcap.commands.common.outputs import require_new_folder

EXAMPLES = """  prefixcap import coco_weights.pt clipcap-coco

  prefixcap caption photo.jpg --ckpt clipcap-coco"""


def main(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published .pt file.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="NAME", help="GPT-2's tokenizer, a name on the model hub or a folder.")
    ] = "gpt2",
) -> None:
    """Write the folder. Raises InputError if it has files already, or the file has no such weights."""
    require_new_folder(folder)
    from prefixcap.captioner import load

    load(file, tokenizer=tokenizer).save_pretrained(folder)
    print(f"written to {folder}: prefixcap.load and --ckpt take it")
