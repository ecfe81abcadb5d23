"""From a feature store to batches of features and caption tokens."""

from prefixcap.data.dataset import CaptionDataset
from prefixcap.data.module import CaptionData, require_match

__all__ = ["CaptionData", "CaptionDataset", "require_match"]
