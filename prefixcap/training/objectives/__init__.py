"""Training objectives: what is minimized, by the names that `model.objective` chooses from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefixcap.errors import InputError
from prefixcap.utils.deferred import deferred, deferred_attributes
from prefixcap.utils.options import check_options

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner
    from prefixcap.data import CaptionData
    from prefixcap.training.objectives.base import Objective
    from prefixcap.training.objectives.cross_entropy import CrossEntropy
    from prefixcap.training.objectives.self_critical import SelfCritical

# Imported when they are built: names and options are known without torch. One of your own is any `Objective` class.
OBJECTIVES: dict[str, "type[Objective]"] = {
    "cross_entropy": deferred("prefixcap.training.objectives.cross_entropy.CrossEntropy"),
    "scst": deferred("prefixcap.training.objectives.self_critical.SelfCritical"),
}

__all__ = ["OBJECTIVES", "CrossEntropy", "Objective", "SelfCritical", "build_objective", "check_objective"]

__getattr__ = deferred_attributes(
    __name__, {"CrossEntropy": "cross_entropy", "Objective": "base", "SelfCritical": "self_critical"}
)


def build_objective(name: str, captioner: "Captioner", data: "CaptionData", **options: Any) -> "Objective":
    """The objective called `name` in `OBJECTIVES`, for a captioner and its data.

    Args:
        name: "cross_entropy", "scst", or one that was added to the dictionary.
        captioner: the model to train.
        data: its training data.
        options: of the objective.

    Raises:
        InputError: no objective has this name, or it does not take one of the options.
    """
    options = check_objective(name, options)
    return OBJECTIVES[name](captioner, data, **options)


def check_objective(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The checked options of an objective. Raises InputError as `build_objective` does."""
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective '{name}': choose one of {', '.join(OBJECTIVES)}")
    return check_options(f"objective '{name}'", OBJECTIVES[name], options, positional=2)
