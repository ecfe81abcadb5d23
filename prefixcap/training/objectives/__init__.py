"""Training objectives: what is minimized, by the names that `model.objective` chooses from."""

from typing import Any

from prefixcap.captioner import Captioner
from prefixcap.data import CaptionData
from prefixcap.errors import InputError
from prefixcap.training.objectives.base import Objective
from prefixcap.training.objectives.cross_entropy import CrossEntropy
from prefixcap.training.objectives.self_critical import SelfCritical
from prefixcap.utils.options import check_options

OBJECTIVES: dict[str, type[Objective]] = {
    "cross_entropy": CrossEntropy,
    "scst": SelfCritical,
}

__all__ = ["OBJECTIVES", "CrossEntropy", "Objective", "SelfCritical", "build_objective"]


def build_objective(name: str, captioner: Captioner, data: CaptionData, **options: Any) -> Objective:
    """The objective called `name` in `OBJECTIVES`, for a captioner and its data.

    Args:
        name: "cross_entropy", "scst", or one that was added to the dictionary.
        captioner: the model to train.
        data: its training data.
        options: of the objective.

    Raises:
        InputError: no objective has this name, or it does not take one of the options.
    """
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective '{name}': choose one of {', '.join(OBJECTIVES)}")
    options = check_options(f"objective '{name}'", OBJECTIVES[name], options, positional=2)
    return OBJECTIVES[name](captioner, data, **options)
