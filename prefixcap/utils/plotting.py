"""What all figures share: matplotlib, atomic PNG files, and how their commands start."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raise InputError if matplotlib is not installed; call it before anything is computed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('drawing needs matplotlib: pip install "prefixcap[plot]"')


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG with 150 pixels per inch. Raises InputError as `atomic_write` does."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
