"""What is written around a caption."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefixcap.errors import InputError

_FIELD = re.compile(r"\{(\w*)\}")
_NAMES = ("caption", "name", "folder")


@dataclass(frozen=True)
class Wording:
    """How a caption is written.

    Attributes:
        before: a text before it, as it is.
        after: a text after it, as it is.
        template: "{caption}" stands for the caption, "{name}" for the name of the image's file without its suffix,
            "{folder}" for the name of its folder.

    Raises:
        InputError: a text has more than one line, or the template has other fields or no caption.

    Examples:
        >>> Wording("ohwx, ", template="{caption} ({folder}/{name})").of(["a dog"], "photos/red one/7.jpg")
        ['ohwx, a dog (red one/7)']
    """

    before: str = ""
    after: str = ""
    template: str = "{caption}"

    def __post_init__(self) -> None:
        for name, text in (("before", self.before), ("after", self.after), ("template", self.template)):
            if len(text.splitlines()) > 1 or text.endswith("\n"):
                raise InputError(f"--{name} has several lines: give one, as a line is a caption")
        fields = _FIELD.findall(self.template)
        if "caption" not in fields or (unknown := [field for field in fields if field not in _NAMES]):
            problem = f"has an unknown field {{{unknown[0]}}}" if "caption" in fields else "has no {caption}"
            raise InputError(f"--template {problem}: it has {{caption}}, and may have {{name}} and {{folder}}")

    def of(self, captions: Sequence[str], image: str) -> list[str]:
        """The captions of an image as they are written."""
        place = Path(image)
        values = {"name": place.stem, "folder": place.resolve().parent.name}

        def fill(caption: str) -> str:
            return _FIELD.sub(lambda field: (values | {"caption": caption})[field[1]], self.template)

        return [f"{self.before}{fill(caption)}{self.after}" for caption in captions]
