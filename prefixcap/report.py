"""How an evaluation looks: a table on the console, and one HTML page that opens from disk."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from prefixcap.errors import InputError
from prefixcap.images import open_image

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; }
pre { overflow-x: auto; padding: 1rem; border-radius: .5rem; background: rgb(128 128 128 / .12); }
main { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
figure { margin: 0; border-radius: .75rem; overflow: hidden; background: rgb(128 128 128 / .12); }
img { width: 100%; aspect-ratio: 1; object-fit: cover; display: block; }
figcaption { padding: .75rem 1rem 1rem; font-weight: 600; }
details { font-weight: 400; font-size: .875rem; opacity: .85; }
ul { margin: .25rem 0 0; padding-left: 1.1rem; }
"""


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Named rows of figures as a text table; a figure that a row lacks is a dash."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"  {column:>9}" for column in columns)]
    for name, row in rows.items():
        figures = [f"{row[column]:.4f}" if column in row else "-" for column in columns]
        lines.append(
            f"{name:<{width}}"
            + "".join(f"  {figure:>{max(9, len(column))}}" for figure, column in zip(figures, columns, strict=True))
        )
    return "\n".join(lines)


def html_report(title: str, scores: str, gallery: Sequence[tuple[Path, str, list[str]]]) -> str:
    """A self-contained page: the scores, and images with their captions and references.

    Args:
        title: of the page.
        scores: the table, as text.
        gallery: image file, caption and references of each image to show; one that cannot be read is left out.
    """
    figures = []
    for file, caption, references in gallery:
        try:
            picture = _thumbnail(file)
        except InputError:
            continue
        items = "".join(f"<li>{html.escape(reference)}</li>" for reference in references)
        figures.append(
            f'<figure><img src="{picture}" alt="{html.escape(caption)}"><figcaption>{html.escape(caption)}'
            f"<details><summary>references</summary><ul>{items}</ul></details></figcaption></figure>"
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n<pre>{html.escape(scores)}</pre>\n<main>\n"
        + "\n".join(figures)
        + "\n</main></body></html>\n"
    )


def _thumbnail(file: Path, side: int = 320) -> str:
    """The image as a data URL."""
    image = open_image(file).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
