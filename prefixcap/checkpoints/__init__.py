"""The files that captioners are kept in: training checkpoints, exported folders, the weights that ClipCap published."""

from prefixcap import renamed

__getattr__ = renamed.attributes(__name__)
