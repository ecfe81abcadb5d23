"""What all training objectives have in common.

Shapes: B images of a batch, D width of their embeddings, T target tokens, H width of the last hidden states.
"""

from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.packing import Batch


class Objective:
    """What training minimizes. A subclass defines `__call__`; the other methods are for losses that need more.

    For each batch, training calls `prepare`, the model for the hidden states, the objective, and `metrics`.

    Args:
        captioner: the model that is trained.
        data: its training data; None for objectives that do not use it. A subclass adds its own options after these
            two, with defaults: `objective.OPTION=VALUE` sets them on the command line.

    Attributes:
        fewest_steps: with fewer steps of training, a warning says that little is learned.
        max_positions: if `prepare` changes the captions, the most positions of an image: its prefix and all of its
            captions, without the last token of each, and without its prompt.
        capturable: whether a CUDA graph may replay the objective: it only computes with tensors on the batch's device,
            reads no value of one in Python, and gives all of them shapes that follow from the batch's. Moreover
            `caption_rows` and `image_rows` are those of another batch then.

    Examples:
        The focal loss (Lin et al. 2017): tokens that are predicted well count less.

        >>> from prefixcap.losses import plain_cross_entropy
        >>> class FocalLoss(Objective):
        ...     def __call__(self, states, batch):
        ...         head = self.captioner.language_model.head
        ...         losses = plain_cross_entropy(states, head.weight, head.bias, batch.targets)  # (T,)
        ...         return (1 - (-losses).exp()) ** 2 * losses
    """

    fewest_steps = 100  # a mapper with random weights has learned next to nothing by then
    max_positions = 0
    capturable = False

    def __init__(self, captioner: Captioner, data: CaptionData | None = None) -> None:
        self.captioner, self.data = captioner, data

    def prepare(self, batch: Batch, noisy: Batch) -> Batch:
        """The batch to learn from; by default the one from the data, with noise.

        Args:
            batch: from the data.
            noisy: the same with the noise of `CaptionTraining.noise` on its (B, D) embeddings.
        """
        return noisy

    def __call__(self, states: Tensor, batch: Batch) -> Tensor:
        """The loss of each target token.

        Args:
            states: (T, H) last hidden states, from which `captioner.language_model.head` predicts each target.
            batch: from `prepare`; its `targets` are (T,) token ids, caption by caption. Start tokens, if these are
                learned, come last.

        Returns:
            (T,) losses, which training multiplies by `batch.weights`; or their sum (), already weighted. Training
            divides the sum by the sum of the weights of the step, the number of its target tokens.
        """
        raise NotImplementedError

    def metrics(self, loss: Tensor) -> dict[str, Tensor]:
        """What is logged of the batch, by its column in `metrics.csv`.

        Args:
            loss: () mean loss of a target token of the batch, over all processes.
        """
        return {"train_loss": loss}
