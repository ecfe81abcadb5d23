"""Serve a web page and an HTTP API that caption images."""

from pathlib import Path
from typing import Annotated

import typer

from prefixcap.commands.common.options import Checkpoint, Device
from prefixcap.errors import InputError

EXAMPLES = """The captioner of photographs that comes with the package:

  prefixcap serve

Another one:

  prefixcap serve --ckpt best.ckpt

  PREFIXCAP_PASSWORD=secret prefixcap serve --ckpt best.ckpt \\
      --host 0.0.0.0 --port 8000 --allow-host gpu-box

  prefixcap serve --ckpt best.ckpt --root-path /captions \\
      --allow-host example.org

  prefixcap serve --ckpt best.ckpt --datastore photos=stores/coco art=stores/art"""


def main(
    ckpt: Checkpoint = None,
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
    from prefixcap.web.server import serve

    serve(
        ckpt, host, port, password, max_queue, device, max_per_client=max_per_client, root_path=root_path,
        allow_hosts=allow_host or (), allow_origins=allow_origin or (), forwarded_allow_ips=forwarded_allow_ips,
        datastore=_named(datastore or []),
    )  # fmt: skip


def _named(words: list[str]) -> str | dict[str, str] | None:
    """The store of `--datastore STORE`; or by their names the stores of `--datastore NAME=STORE ...`.

    Several without a name have that of their folder.
    """
    stores = dict[str, str]()
    for word in words:
        name, equals, store = word.partition("=")
        if not equals or not name or "/" in name or Path(word).exists():
            if len(words) == 1:
                return word
            name, store = word.rstrip("/").rpartition("/")[2], word
        if name in stores:
            raise InputError(f"two datastores are called {name}: give names, --datastore NAME=STORE")
        stores[name] = store
    return stores or None
