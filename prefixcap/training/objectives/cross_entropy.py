"""Cross-entropy (Mokady et al. 2021, ClipCap, equation 5).

Shapes: T target tokens, H width of the last hidden states.
"""

from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.losses import plain_cross_entropy, token_cross_entropy
from prefixcap.packing import Batch
from prefixcap.training.objectives.base import Objective


class CrossEntropy(Objective):
    """Negative log-probability of each caption token given its image's prefix and the tokens before it, in nats.

    Args:
        captioner: the model that is trained.
        data: not used.
        fused: compute the loss without the logits of all tokens at once: equal up to rounding, in less memory.
    """

    capturable = True

    def __init__(self, captioner: Captioner, data: CaptionData | None = None, fused: bool = True) -> None:
        super().__init__(captioner, data)
        self.fused = fused

    def __call__(self, states: Tensor, batch: Batch) -> Tensor:
        """(T, H) last hidden states -> the sum () over target tokens if fused, else (T,)."""
        head = self.captioner.language_model.head
        if self.fused:
            return token_cross_entropy(states, head.weight, head.bias, batch.targets, batch.weights)
        return plain_cross_entropy(states, head.weight, head.bias, batch.targets)
