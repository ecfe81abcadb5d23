"""What a captioner was trained on, as its files say it: for the page, and for /v1/info."""

from collections.abc import Sequence
from typing import NamedTuple

from prefixcap.captioner import Captioner
from prefixcap.checkpoints.model_card import text_on_card
from prefixcap.checkpoints.pretrained import card_beside

SPLITS = {"train": "training", "val": "validation", "test": "test"}
MOST_CHARACTERS, MOST_SPLITS = 100, 10  # of a name, and in number
LIMITS = ("What it cannot do", "Limitations")  # sections of model cards


class About(NamedTuple):
    """What is known of a captioner's training. All of it comes from its files, and may be anything.

    Attributes:
        data: the data set, where the captioner says it.
        images: how many images each of its splits has.
        before: the data sets that it had learned from already.
        training: paragraphs of the model card on the training data.
        limitations: those on what the captioner cannot do.
    """

    data: str | None
    images: dict[str, int]
    before: Sequence[str] = ()
    training: Sequence[str] = ()
    limitations: Sequence[str] = ()

    @property
    def summary(self) -> str:
        """One sentence.

        Examples:
            >>> About("flickr8k", {"train": 6000, "val": 1000}).summary
            'Trained on flickr8k: 6,000 images for training, 1,000 for validation.'
            >>> About("folder", {"train": 40}, ["flickr8k"]).summary
            'Trained on flickr8k, then on folder: 40 images for training.'
            >>> About(None, {}).summary
            'What it was trained on is not known: its files do not say.'
        """
        if not self.data:
            return "What it was trained on is not known: its files do not say."
        first, *others = [(count, SPLITS.get(split, split)) for split, count in self.images.items()] or [(0, "")]
        counts = [f"{first[0]:,} images for {first[1]}", *(f"{count:,} for {split}" for count, split in others)]
        data = ", then on ".join([*self.before, self.data])
        return f"Trained on {data}" + (f": {', '.join(counts)}." if self.images else ".")


def about(captioner: Captioner) -> About:
    """What the captioner's description and the model card beside it say."""
    trained_on, card = captioner.trained_on, card_beside(captioner.source)
    known = sorted(trained_on.get("images", {}).items(), key=lambda split: [*SPLITS, split[0]].index(split[0]))
    images = {split[:MOST_CHARACTERS]: count for split, count in known[:MOST_SPLITS]}
    before = [name[:MOST_CHARACTERS] for name in trained_on.get("before", [])[:MOST_SPLITS]]
    training = text_on_card(card, "Training") if card else []
    limitations = next(filter(None, (text_on_card(card, title) for title in LIMITS)), []) if card else []
    return About((trained_on.get("data") or "")[:MOST_CHARACTERS] or None, images, before, training, limitations)
