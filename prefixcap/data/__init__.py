"""From a feature store to batches of features and caption tokens."""

from prefixcap.data.dataset import CaptionDataset
from prefixcap.data.module import CaptionData, require_match
from prefixcap.data.prompts import PromptFunction

__all__ = ["CaptionData", "CaptionDataset", "PromptFunction", "require_match"]
