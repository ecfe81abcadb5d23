"""Sample captions beside their images: what people look at to see how far training has come."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from prefixcap.utils.images import data_url

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif }}
body {{ margin: 1rem }}
h1 {{ font-size: 1.2rem }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.5rem 1rem }}
figure {{ margin: 0 }}
img {{ display: block; margin-bottom: .4rem; border-radius: 4px }}
small {{ display: block; margin-top: .3rem; opacity: .65 }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
</html>
"""


@dataclass(frozen=True)
class Sample:
    """A caption of an image; the picture is None where the image is not at hand."""

    image_id: int | str
    caption: str
    references: Sequence[str]
    picture: Image.Image | None


def samples_page(title: str, samples: Sequence[Sample]) -> str:
    """A page that opens from disk and asks no network for anything: each image, its caption, and a human's below."""
    figures = []
    for sample in samples:
        picture = f'<img src="{data_url(sample.picture)}" alt="">' if sample.picture is not None else ""
        reference = html.escape(sample.references[0])
        caption = f"{html.escape(sample.caption)}<small>{reference}</small>"
        figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return _PAGE.format(title=html.escape(title), figures="\n".join(figures))
