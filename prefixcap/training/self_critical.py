"""The old name of self-critical training, which is an objective now: `prefixcap.training.objectives.SelfCritical`."""

from typing import Any

from prefixcap import renamed
from prefixcap.captioner import Captioner
from prefixcap.store import StoreSplit
from prefixcap.training.module import CaptionTraining
from prefixcap.training.objectives import SelfCritical
from prefixcap.training.rewards import Reward


class SelfCriticalTraining(CaptionTraining):
    """`CaptionTraining` with the objective `SelfCritical`, whose arguments come after `val_split`."""

    def __init__(
        self,
        captioner: Captioner,
        val_split: StoreSplit,
        reward: Reward,
        draws: int = 5,
        sample_tokens: int = 30,
        temperature: float = 1.0,
        **options: Any,
    ) -> None:
        renamed.warn("SelfCriticalTraining(...)", "CaptionTraining(..., objective=SelfCritical(...))")
        objective = SelfCritical(captioner, None, reward, draws, sample_tokens, temperature)
        super().__init__(captioner, val_split, objective=objective, **options)
