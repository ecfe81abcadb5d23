"""Where the configuration lies."""

from pathlib import Path


def config_folder() -> Path:
    """`conf/`: beside the package in a clone and in what is installed from it as editable, within the package in a
    wheel."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
