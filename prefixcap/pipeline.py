"""The options of an image-to-text pipeline of transformers, and of its `generate`, in the words of this package."""

from collections.abc import Mapping
from typing import Any

from prefixcap.errors import InputError

RENAMED = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "count",
    "num_beams": "beams",
    "num_beam_groups": "groups",
    "diversity_penalty": "diversity",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "penalty_alpha": "penalty",
}


def own_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `Captioner.candidates` for those that a pipeline was called with.

    `generate_kwargs` may hold some of them. `do_sample=True` is the nucleus decoder, `penalty_alpha` the contrastive
    one, `num_beams=1` the greedy one; without them captions are written by beam search, as everywhere in this package.
    Names that mean the same here (`top_p`, `batch_size`, …) and this package's own (`decode`, `prompt`, …) stay.

    Raises:
        InputError: an option is given twice.
    """
    within: Mapping[str, Any] = given.get("generate_kwargs") or {}
    outside = {name: value for name, value in given.items() if name != "generate_kwargs" and value is not None}
    if twice := outside.keys() & within.keys():
        raise InputError(f"'{min(twice)}' is given twice, within generate_kwargs and beside it: leave one out")
    options = {**outside, **within}
    samples, greedy = options.pop("do_sample", False), options.get("num_beams") == 1
    if greedy:
        del options["num_beams"]
    decoder = "nucleus" if samples else "contrastive" if "penalty_alpha" in options else "greedy" if greedy else "beam"
    return {"decode": decoder, "count": 1} | {RENAMED.get(name, name): value for name, value in options.items()}
