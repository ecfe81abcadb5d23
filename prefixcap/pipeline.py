"""Translate options of transformers' image-to-text pipeline and of `generate` to those of this package."""

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
    """The options of `Captioner.candidates` that correspond to those of a pipeline.

    Some of them may be in `generate_kwargs`. `do_sample=True` selects the nucleus decoder, `penalty_alpha` the
    contrastive one, and `num_beams=1` the greedy one; the default is beam search, as everywhere in this package.
    Options with the same name here (`top_p`, `batch_size`, …) and this package's own (`decode`, `prompt`, …) stay as
    they are.

    Raises:
        InputError: an option is given twice.

    Examples:
        >>> own_options({"max_new_tokens": 20, "generate_kwargs": {"do_sample": True, "top_p": 0.9}})
        {'decode': 'nucleus', 'count': 1, 'max_tokens': 20, 'top_p': 0.9}
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
