"""Where the configuration files are."""

from pathlib import Path


def config_folder() -> Path:
    """`conf/`: next to the package in a clone and an editable install of it, inside the package in a wheel."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
