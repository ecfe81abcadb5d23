"""The user API: load a captioner, caption images, save it again."""

from prefixcap.captioner.captioner import Captioner
from prefixcap.captioner.loading import load

__all__ = ["Captioner", "load"]
