"""A folder that a Hugging Face Space runs: a captioner with its web page."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write_text


def write_space(captioner: Captioner, folder: Path, license: str = "unknown", name: str | None = None) -> None:
    """Write a Space: `app.py`, which serves the page and the API of `prefixcap serve`, `requirements.txt`, `README.md`
    with the settings of the Space, and the captioner in `captioner/`.

    Args:
        captioner: to serve.
        folder: new or empty.
        license: of the weights, as in `save_pretrained`.
        name: of the Space, for its title; None: the folder's name.

    Raises:
        InputError: Gradio is not installed, the captioner's encoder is a file or folder of this machine, it retrieves
            captions, or the folder cannot be written to.

    Examples:
        >>> from prefixcap import load
        >>> write_space(load("best.ckpt"), Path("my-space"))
        >>> sorted(path.name for path in Path("my-space").iterdir())
        ['README.md', 'app.py', 'captioner', 'requirements.txt']
    """
    _require_portable(captioner)
    settings = {
        "title": (name or folder.resolve().name).rpartition("/")[2],
        "sdk": "gradio",
        "sdk_version": _gradio_version(),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "license": license,
    }
    captioner.save_pretrained(folder / "captioner", license)
    front_matter = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    atomic_write_text(folder / "README.md", README.format(front_matter=front_matter, title=settings["title"]))
    atomic_write_text(folder / "requirements.txt", f"{requirement(captioner)}\n")
    atomic_write_text(folder / "app.py", APP)


def requirement(captioner: Captioner) -> str:
    """What a Space installs: this version of the package, with the extras that serve the captioner."""
    extras = ["serve"]
    if captioner.encoder_identity.name == "photo":
        extras.append("photos")
    if captioner.language_model.quantization is not None:
        extras.append("quantized")
    return f"prefixcap[{','.join(extras)}]=={prefixcap.__version__}"


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError as error:
        raise InputError("a Space runs the web page, which needs Gradio: pip install 'prefixcap[serve]'") from error


def _require_portable(captioner: Captioner) -> None:
    """Raise InputError if the captioner reads what is on this machine only."""
    name = captioner.encoder_identity.name
    checkpoint = name.partition(":")[2]
    if checkpoint and Path(checkpoint).expanduser().exists():
        raise InputError(
            f"encoder '{name}' is a file or folder of this machine, which a Space does not have: upload it to the "
            "model hub, and train the captioner with its name there"
        )
    if captioner.retrieves:
        raise InputError(
            "this captioner retrieves captions from a datastore, which a Space does not have: serve it here"
        )


README = """---
{front_matter}---

# {title}

An image captioner: the web page and the HTTP API of `prefixcap serve`. The captioner and its model card are in
`captioner/`; the API is described at `/docs`.

To try it here:

    pip install -r requirements.txt
    python app.py
"""

APP = '''"""A Space: the web page and the HTTP API of the captioner beside this file. To try it here: python app.py"""

import os
from pathlib import Path

from prefixcap.web.server import serve

serve(
    str(Path(__file__).parent / "captioner"),
    host="0.0.0.0",
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    allow_hosts=["*"],  # a Space is public, and its owner may give it other names
    allow_origins=["https://huggingface.co"],  # which shows it in a frame
    forwarded_allow_ips="127.0.0.1,::1,10.0.0.0/8",  # where the proxies of Spaces are
)
'''
