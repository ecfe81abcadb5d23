"""The text files of a language model that a checkpoint may hold."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from prefixcap.errors import OptionError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
TEXTS = (
    *VOCABULARIES, "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "merges.txt", "emoji.json", "chat_template.jinja",
)  # fmt: skip
"""Files of a configuration and a tokenizer that a checkpoint may hold."""


def text_files(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase", name: str) -> dict[str, str]:
    """The contents of a configuration's and a tokenizer's files, by name.

    Raises:
        InputError: the tokenizer, of the language model called `name`, is not in text files.
    """
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files = {file.name: file for file in sorted(Path(folder).iterdir())}
        if files.keys().isdisjoint(VOCABULARIES):
            raise OptionError(
                f"the tokenizer of language model '{name}' is kept in {', '.join(files)}, which a checkpoint cannot "
                "hold", tuning="lora",
            )  # fmt: skip
        return {name: file.read_text(encoding="utf-8") for name, file in files.items() if name in TEXTS}
