"""An objective of your own: label smoothing (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7).

python docs/examples/add_objective.py model.objective=label_smoothing +objective.smoothing=0.2
"""

from torch import Tensor

from prefixcap.captioner import Captioner
from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.train import main
from prefixcap.data import CaptionData
from prefixcap.packing import Batch
from prefixcap.training.objectives import OBJECTIVES, Objective
from prefixcap.utils.options import Proportion


class LabelSmoothing(Objective):
    """Cross-entropy with a target distribution that gives a share of the probability to all tokens equally.

    Args:
        captioner: the model that is trained.
        data: its training data; not used here.
        smoothing: the share, between 0 and 1; 0 is cross-entropy.
    """

    capturable = True  # it computes with tensors alone

    def __init__(self, captioner: Captioner, data: CaptionData | None = None, smoothing: Proportion = 0.1) -> None:
        super().__init__(captioner, data)
        self.smoothing = smoothing

    def __call__(self, states: Tensor, batch: Batch) -> Tensor:
        """(T, H) last hidden states of T target tokens -> (T,) losses, in nats; V words are in the vocabulary."""
        logits = self.captioner.language_model.head(states)  # (T, V)
        log_probabilities = logits.float().log_softmax(-1)  # (T, V)
        target_log_probabilities = log_probabilities.gather(1, batch.targets.unsqueeze(1)).squeeze(1)  # (T,)
        losses: Tensor = -(1 - self.smoothing) * target_log_probabilities - self.smoothing * log_probabilities.mean(-1)
        return losses


OBJECTIVES["label_smoothing"] = LabelSmoothing

if __name__ == "__main__":
    run(main, "train")
