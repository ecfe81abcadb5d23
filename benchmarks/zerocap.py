"""Seconds a caption takes ZeroCap, over the published way of doing it (at least 10 times as long on a CPU).

ViT-B/32's text tower and GPT-2 medium's architecture with random weights, and a tokenizer of GPT-2's size whose tokens
are CLIP's word pieces in ASCII, as nearly all are that a trained model would propose here; 5 beams, 512 candidates, 5
iterations, 15 tokens. The published way is that of the tests' plain implementation (`tests/zeroshot/plain_zerocap.py`),
with CLIP as published too: `encode_text` of `clip.tokenize`, 77 tokens for each candidate. A caption takes it hours. So
one iteration of one beam is timed at the first token and one at the last, with some of the candidates, whose time in
CLIP is multiplied accordingly; and their mean counts for every iteration of every beam that ours had open. What else it
does counts nothing.

    python -m benchmarks.zerocap
    python -m benchmarks.zerocap --photographs FOLDER    # captions these, with a full ViT-B/32: says how long it takes
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import clip
import torch
from clip.model import CLIP
from clip.simple_tokenizer import SimpleTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefixcap.encoders import load_encoder
from prefixcap.language import LanguageModel
from prefixcap.zeroshot.continuations import Continuations
from prefixcap.zeroshot.zerocap import ZeroCap, ZeroCapOptions
from tests.zeroshot.plain_zerocap import PlainZeroCap

VOCABULARY = 50257


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8 if on_gpu else 1, help="captioned together")
    parser.add_argument("--tokens", type=int, default=15)
    parser.add_argument("--timed", type=int, default=512 if on_gpu else 64, help="candidates of the published way")
    parser.add_argument(
        "--busy", action="store_true", help="count a processor's seconds, of all threads, not a clock's"
    )
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="caption its JPEG files instead")
    arguments = parser.parse_args()
    now = time.process_time if arguments.busy else clock
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        layers = 12 if arguments.photographs else 1  # of the image tower
        torch.save(CLIP(512, 224, layers, 768, 32, 77, 49408, 512, 8, 12).state_dict(), Path(folder) / "clip.pt")
        encoder = load_encoder(f"clip:{folder}/clip.pt", "cuda" if on_gpu else "cpu")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=1024, n_layer=24, n_head=16))
    lm = LanguageModel(model.to(encoder.device), word_pieces(), "GPT-2 medium, random")
    zerocap = ZeroCap(encoder, lm, max_tokens=arguments.tokens)
    if arguments.photographs:
        caption_photographs(zerocap, sorted(arguments.photographs.glob("*.jpg")), arguments.images)
        return
    embeddings = torch.randn(arguments.images, 512, device=encoder.device)

    seconds: dict[str, float] = {}
    counts: Counter[str] = Counter()
    watch = partial(timed, now, seconds)
    watch(Continuations, "encode", "CLIP's texts", lambda _, texts, text_of, pieces: counts.update(read=len(pieces)))
    watch(LanguageModel, "step", "the language model")
    watch(torch.autograd, "grad", "its gradients")
    watch(ZeroCap, "_next", "all", lambda _, directions, *others: counts.update(beams=len(directions)))
    if on_gpu:
        zerocap.caption(embeddings)  # warms up
        seconds.clear()
        counts.clear()
    start = now()
    zerocap.caption(embeddings, batch_size=arguments.images)
    ours = (now() - start) / arguments.images
    iterations = counts["beams"] * zerocap.options.iterations
    looked_at = iterations * zerocap.options.candidates
    print(f"ours                {ours:8.1f} s a caption, {arguments.images} at a time, on {encoder.device}")
    rest = ours - sum(spent for what, spent in seconds.items() if what != "all") / arguments.images
    for what, spent in [*seconds.items(), ("the rest", rest * arguments.images)]:
        if what != "all":
            print(f"  {what:18}{spent / arguments.images:8.1f} s")
    print(f"  texts that CLIP read: {counts['read']}, of {looked_at} looked at")
    seconds.clear()
    embedded: dict[str, Tensor] = {}

    def encode_texts(texts: list[str]) -> Tensor:
        embeddings: Tensor = encoder._model.encode_text(clip.tokenize(texts, truncate=True).to(encoder.device))  # type: ignore[attr-defined]
        embedded.update(zip(texts, embeddings, strict=True))
        return embeddings

    watch(PlainZeroCap, "cosines", "CLIP's texts")
    plain = PlainZeroCap(encode_texts, lm, ZeroCapOptions(candidates=arguments.timed))
    spent = []
    for length in (0, arguments.tokens - 1):
        text = [*plain.prompt, *torch.randint(VOCABULARY - 1, (length,)).tolist()]
        before = torch.full((VOCABULARY,), 1 / VOCABULARY, device=encoder.device).log()
        start = now()
        plain.moved(text, None, before, embeddings[0] / embeddings[0].norm())
        in_clip = seconds.pop("CLIP's texts")
        spent.append(now() - start - in_clip + in_clip * zerocap.options.candidates / arguments.timed)
    theirs = iterations / arguments.images * sum(spent) / 2
    print(f"the published way   {theirs:8.1f} s a caption: {iterations / arguments.images:.0f} iterations of a beam")
    print(f"  of {spent[0]:.1f} s at the first token and {spent[1]:.1f} s at the last")
    print(f"ratio               {theirs / ours:8.1f}, wanted 10")
    texts = list(embedded)
    expected = torch.nn.functional.normalize(torch.stack([embedded[text] for text in texts]), dim=-1)
    parts = [text.rpartition(" ") for text in texts]
    contexts = list(dict.fromkeys(head for head, _, _ in parts))
    embeddings = zerocap._continuations.encode(
        contexts, [contexts.index(head) for head, _, _ in parts], [space + tail for _, space, tail in parts]
    )
    print(f"embeddings differ by {(embeddings - expected).abs().max():.1e} at most")


def caption_photographs(zerocap: ZeroCap, files: list[Path], together: int) -> None:
    """Caption photographs from their files, so many together, and print each caption as it comes."""
    start = clock()
    for first in range(0, len(files), together):
        part = files[first : first + together]
        for file, caption in zip(part, zerocap.caption(part, together), strict=True):
            print(f"{file.name}\t{caption}", flush=True)
    taken = clock() - start
    print(f"{len(files)} photographs: {taken:.0f} s, {taken / len(files):.1f} s each; {zerocap.skipped} steps left out")


def timed(
    now: Callable[[], float],
    seconds: dict[str, float],
    owner: Any,
    name: str,
    what: str,
    seen: Callable[..., None] = lambda *_: None,
) -> None:
    """Let a function of `owner` add the time that it takes to `seconds[what]`."""
    function = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        seen(*arguments)
        start = now()
        result = function(*arguments, **options)
        seconds[what] = seconds.get(what, 0.0) + now() - start
        return result

    setattr(owner, name, watched)


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def word_pieces() -> PreTrainedTokenizerFast:
    """CLIP's word pieces as GPT-2 spells its own, with a space before a word, not an end behind it."""
    pieces = [piece for piece in SimpleTokenizer().encoder if piece.isascii() and not piece.startswith("<|")]
    spelled = ["Ġ" + piece.removesuffix("</w>") if piece.endswith("</w>") else piece for piece in pieces]
    capitals = [word[:1] + word[1:].capitalize() for word in spelled if word[1:].isascii() and word[1:].isalpha()]
    words = list(dict.fromkeys([*spelled, "Image", *capitals]))[: VOCABULARY - 1]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)


if __name__ == "__main__":
    main()
