"""Any causal language model of transformers: embeddings in, logits out, with a key/value cache."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor, nn

from prefixcap.demo import ASSETS
from prefixcap.errors import InputError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

Tuning = Literal["frozen", "full"]


class LanguageModel(nn.Module):
    """A causal language model, its tokenizer, and whether training may change it.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer; must have an end token, with which every caption ends.
        name: where it came from: a name on the hub, a folder, or "demo".
        tuning: "frozen": its weights take no gradient and it stays in eval mode; "full": it is trained.

    Attributes:
        dim: width of its word embeddings.
        context: most positions that it can read; None if it knows no limit.
        end_token: id of the end token.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        name: str,
        tuning: Tuning = "frozen",
    ) -> None:
        super().__init__()
        if tuning not in get_args(Tuning):
            raise InputError(f"unknown lm_tuning '{tuning}': choose one of {', '.join(get_args(Tuning))}")
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of language model '{name}' has no end token (eos_token): captions need one"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.tuning: Tuning = tuning
        self.dim: int = model.get_input_embeddings().embedding_dim
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.end_token: int = tokenizer.eos_token_id
        self.model.requires_grad_(tuning == "full")
        self.train(tuning == "full")

    def train(self, mode: bool = True) -> "LanguageModel":
        """As `nn.Module.train`, but a frozen model stays in eval mode."""
        return super().train(mode and self.tuning == "full")

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """Token ids of each caption, with the end token and no other special token."""
        return tokenize_captions(self.tokenizer, captions)

    def detokenize(self, tokens: list[int]) -> str:
        """The caption that the tokens spell, on one line, without special tokens."""
        return " ".join(self.tokenizer.decode(tokens, skip_special_tokens=True).split())

    def embed(self, tokens: Tensor) -> Tensor:
        """(…) token ids -> (…, dim) word embeddings."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def forward(self, embeddings: Tensor, last: int) -> Tensor:
        """(batch, length, dim) embeddings -> (batch, last, vocabulary) logits at the last positions only."""
        logits: Tensor = self.model(inputs_embeds=embeddings, logits_to_keep=last, use_cache=False).logits
        return logits[:, -last:]  # not every model knows logits_to_keep

    def step(self, embeddings: Tensor, cache: "Cache") -> Tensor:
        """Read (batch, length, dim) more embeddings -> (batch, vocabulary) float32 logits of the next token.

        `cache` holds the keys and values of all that was read before and takes in those of `embeddings`.
        """
        output = self.model(inputs_embeds=embeddings, past_key_values=cache, logits_to_keep=1, use_cache=True)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def step_with_states(self, embeddings: Tensor, cache: "Cache") -> tuple[Tensor, Tensor]:
        """As `step`, and the (batch, length, dim) last hidden states of `embeddings`, float32."""
        output = self.model(
            inputs_embeds=embeddings, past_key_values=cache, logits_to_keep=1, use_cache=True, output_hidden_states=True
        )
        return output.logits[:, -1].float(), output.hidden_states[-1].float()

    def describe(self) -> dict[str, Any]:
        """What a checkpoint needs to rebuild the model: its name if frozen; if tuned, all but the weights."""
        description: dict[str, Any] = {"name": self.name, "tuning": self.tuning}
        if self.tuning != "frozen":
            with tempfile.TemporaryDirectory() as folder:
                self.model.config.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
                description["files"] = {
                    file.name: file.read_text(encoding="utf-8")
                    for file in sorted(Path(folder).iterdir())
                    if file.is_file()
                }
        return description


def tokenize_captions(tokenizer: "PreTrainedTokenizerBase", captions: list[str]) -> list[list[int]]:
    """Token ids of each caption, with the end token and no other special token."""
    return [[*row, tokenizer.eos_token_id] for row in tokenizer(captions, add_special_tokens=False)["input_ids"]]


def load_language_model(name: str, tuning: Tuning = "frozen") -> LanguageModel:
    """The causal LM called `name`: a folder, a name on the model hub, or "demo" for the small world's own. In fp32.

    Raises:
        InputError: there is no such model, or it is no causal LM.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one for each shard says little and tears the page
    try:
        model = AutoModelForCausalLM.from_pretrained(_source(name)).float()
    except (OSError, ValueError) as error:
        raise _cannot_load("language model", name, error) from error
    return LanguageModel(model, load_tokenizer(name), name, tuning)


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of the causal LM called `name`, see `load_language_model`.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(_source(name))
    except (OSError, ValueError) as error:
        raise _cannot_load("the tokenizer of language model", name, error) from error
    return tokenizer


def _source(name: str) -> str:
    """What transformers is to open for a name."""
    return str(ASSETS / "language_model") if name == "demo" else name


def _cannot_load(what: str, name: str, error: Exception) -> InputError:
    return InputError(
        f"cannot load {what} '{name}': {' '.join(str(error).split())[:300]}; "
        "give a folder saved with save_pretrained, or the name of a causal LM on the model hub"
    )


def rebuild_language_model(description: dict[str, Any]) -> LanguageModel:
    """The model that `LanguageModel.describe` described; if it was tuned, with weights still to be loaded."""
    if description["tuning"] == "frozen":
        return load_language_model(description["name"], "frozen")

    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, text in description["files"].items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return LanguageModel(model, tokenizer, description["name"], description["tuning"])
