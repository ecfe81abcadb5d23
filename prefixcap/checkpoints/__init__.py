"""Files of captioners: training checkpoints, exported folders, and the weights that ClipCap's authors published."""

from prefixcap import renamed

__getattr__ = renamed.attributes(__name__)
