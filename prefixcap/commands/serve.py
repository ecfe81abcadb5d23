"""Serve a web page and an HTTP API that caption images.

Several captioners, `--ckpt NAME=CAPTIONER ...`, caption beside each other.
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixcap.checkpoints.paths import require_captioner
from prefixcap.commands.common.options import CAPTIONER, Device
from prefixcap.errors import InputError

EXAMPLES = """The captioner of photographs that comes with the package:

  prefixcap serve

Another one:

  prefixcap serve --ckpt best.ckpt

Several beside each other:

  prefixcap serve --ckpt photos mine=best.ckpt

  PREFIXCAP_PASSWORD=secret prefixcap serve --ckpt best.ckpt \\
      --host 0.0.0.0 --port 8000 --allow-host gpu-box

  prefixcap serve --ckpt best.ckpt --root-path /captions \\
      --allow-host example.org

  prefixcap serve --ckpt best.ckpt --datastore photos=stores/coco art=stores/art"""


def main(
    ckpt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CAPTIONER...",
            help=f"{CAPTIONER} That is the default. NAME=CAPTIONER: several, beside each other, under these names.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on; 0.0.0.0: reachable from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0: any free one.")] = 7860,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="PREFIXCAP_PASSWORD", metavar="TEXT", help="The password that visitors must enter.",
            show_default=False,
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests that may wait; further ones are refused.")
    ] = 64,
    max_per_client: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Of these, requests from one address (default: half of them).", show_default=False
        ),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="The path that browsers see, e.g. /captions, behind a proxy that adds one.",
            show_default=False,
        ),
    ] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A host name that browsers may use; may be repeated; *: any."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A site whose pages may use the API, and show the page in a frame, e.g. https://example.org; may be "
            "repeated; *: any.",
        ),
    ] = None,
    forwarded_allow_ips: Annotated[
        str,
        typer.Option(metavar="LIST", help="Addresses and networks of proxies whose X-Forwarded-* is trusted; *: all."),
    ] = "127.0.0.1,::1",
    datastore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE...",
            help="A feature store of captions, for a captioner that retrieves captions like the picture; NAME=STORE: "
            "several, of which visitors choose one.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Serve until Ctrl-C or SIGTERM; see `prefixcap.web.server.serve`."""
    captioners = _named(ckpt or [], "captioner", "--ckpt NAME=CAPTIONER")
    for path in captioners.values() if isinstance(captioners, dict) else filter(None, [captioners]):
        require_captioner(path)
    try:
        from prefixcap.web.server import serve
    except ModuleNotFoundError as error:
        raise InputError(f"the web page needs {error.name}: pip install 'prefixcap[serve]'") from error

    serve(
        captioners, host, port, password, max_queue, device, max_per_client=max_per_client, root_path=root_path,
        allow_hosts=allow_host or (), allow_origins=allow_origin or (), forwarded_allow_ips=forwarded_allow_ips,
        datastore=_named(datastore or [], "datastore", "--datastore NAME=STORE"),
    )  # fmt: skip


def _named(words: list[str], kind: str, option: str) -> str | dict[str, str] | None:
    """The path of `--option PATH`; or by their names the paths of `--option NAME=PATH ...`.

    Several without a name have that of their file or folder.
    """
    paths = dict[str, str]()
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name or "/" in name or Path(word).exists():
            if len(words) == 1:
                return word
            name, path = word.rstrip("/").rpartition("/")[2], word
        if name in paths:
            raise InputError(f"two {kind}s are called {name}: give names, {option}")
        paths[name] = path
    return paths or None
