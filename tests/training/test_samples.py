"""The page of sample captions, read back by another parser."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from prefixcap.training.samples import Sample, samples_page
from prefixcap.utils.images import thumbnail


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[Image.Image] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            start, _, data = str(dict(attrs)["src"]).partition(",")
            assert start == "data:image/jpeg;base64"
            self.images.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_shows_images_with_their_captions(tmp_path: Path) -> None:
    Image.new("RGB", (600, 300), (200, 30, 30)).save(tmp_path / "red.png")
    (tmp_path / "page.html").write_text("<html>")
    pictures = [thumbnail(tmp_path / name, 224) for name in ("red.png", "page.html", "missing.jpg")]
    assert pictures[1] is None and pictures[2] is None
    samples = [
        Sample(1, "A red café, 猫.", ["Red."], pictures[0]),
        Sample(2, "</figure><script>alert(1)</script>", ["<b>", "Never shown."], None),
    ]
    page = Page(samples_page("Captions after step 7", samples))
    (image,) = page.images
    assert image.size == (224, 112) and np.allclose(image.getpixel((50, 50)), (200, 30, 30), atol=8)
    texts = [text for text in page.texts if text]
    assert texts[-4:] == ["A red café, 猫.", "Red.", "</figure><script>alert(1)</script>", "<b>"]
    assert page.tags.count("figure") == 2 and "script" not in page.tags
