"""Captions a second by beam search, over the published loop (at least 12 on a CPU) and over `transformers.generate` (at
least 1.2, on a GPU 4).

The language model has GPT-2 small's architecture with random weights; prefixes of 10 random vectors; 5 beams; 12 new
tokens. The published loop is ClipCap's `generate_beam`: one image at a time, reading the whole sequence again for every
token. On a GPU also our searches without CUDA graphs, and the memory that each takes. All in turns, in one process.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from prefixcap.decoding import decode
from prefixcap.language import LanguageModel, load_language_model

PREFIX, BEAMS, NEW_TOKENS = 10, 5, 12


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000 if on_gpu else 64, help="prefixes in each turn")
    parser.add_argument("--looped", type=int, default=20 if on_gpu else 3, help="of them for the published loop")
    parser.add_argument("--batch", type=int, default=250 if on_gpu else 32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    compare(arguments.images, arguments.looped, arguments.batch, arguments.turns, dtype, device)


def compare(images: int, looped: int, batch: int, turns: int, dtype: torch.dtype, device: torch.device) -> None:
    """Print captions a second, ratios, and on a GPU the peak memory, of all ways to decode so many images."""
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval().to(device, dtype)
    lm = LanguageModel(model, load_language_model("demo").tokenizer, "GPT-2 small, random")
    lm._without_token = None  # all 50,257 words may be chosen, not only those of the small tokenizer
    prefixes = torch.randn(images, PREFIX, lm.dim).to(device, dtype)
    batches = torch.split(prefixes, batch)
    attention = torch.ones(batch, PREFIX, dtype=torch.long, device=device)
    limits = {"max_new_tokens": NEW_TOKENS, "eos_token_id": lm.eos_token_id, "pad_token_id": lm.eos_token_id}

    def ours(method: str, cuda_graphs: bool = True) -> list[list[int]]:
        lm.cuda_graphs = cuda_graphs
        batches_captions = [decode(lm, batch, method, beams=BEAMS, max_tokens=NEW_TOKENS) for batch in batches]
        return [captions[0] for batch_captions in batches_captions for captions in batch_captions]

    def generate() -> list[list[int]]:
        batches_captions = [
            model.generate(inputs_embeds=batch, attention_mask=attention[: len(batch)], num_beams=BEAMS, **limits)
            for batch in batches
        ]
        return [caption for batch_captions in batches_captions for caption in batch_captions.tolist()]

    def loop() -> list[list[int]]:
        return [published(lm, prefix.unsqueeze(0)) for prefix in prefixes[:looped]]

    ways: dict[str, Callable[[], list[list[int]]]] = {
        "clipcap": lambda: ours("clipcap"),
        "published loop": loop,
        "beam": lambda: ours("beam"),
        "generate": generate,
    }
    if on_gpu:
        ways |= {"clipcap, eager": lambda: ours("clipcap", False), "beam, eager": lambda: ours("beam", False)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    captions: dict[str, list[list[int]]] = {}
    peaks = dict.fromkeys(ways, "")
    for _ in range(turns + 1):
        for name, way in ways.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            captions[name] = way()
            if on_gpu:
                torch.cuda.synchronize()
            speeds[name].append(len(captions[name]) / (time.perf_counter() - start))
            if on_gpu:
                peaks[name] = f", at most {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory"
    for name, turn_speeds in speeds.items():
        turn_speeds.pop(0)  # the first turn warms up
        print(f"{name:15} {np.median(turn_speeds):9.2f} captions a second{peaks[name]}")
    wanted = {("clipcap", "published loop"): "12", ("beam", "generate"): "4" if on_gpu else "1.2"}
    if on_gpu:  # a batch is captured once there was one like it
        wanted |= {("clipcap", "clipcap, eager"): "1", ("beam", "beam, eager"): "1"}
    for (one, other), ratio in wanted.items():
        ratios = [a / b for a, b in zip(speeds[one], speeds[other], strict=True)]
        same = np.mean([a == b for a, b in zip(captions[one], captions[other], strict=False)])
        text = f"of {one} over {other}, wanted {ratio}; {same:.0%} the same"
        print(f"ratio           {np.median(ratios):9.2f} {text}  ({', '.join(f'{value:.2f}' for value in ratios)})")


@torch.inference_mode()
def published(lm: LanguageModel, prefix: Tensor) -> list[int]:
    """The best caption of one (1, length, dim) prefix, as ClipCap's code finds it."""
    stop = lm.tokenizer.encode(".", add_special_tokens=False)[0]
    scores = tokens = None
    lengths = torch.ones(BEAMS, device=prefix.device)
    stopped = torch.zeros(BEAMS, dtype=torch.bool, device=prefix.device)
    for _ in range(NEW_TOKENS):
        log_probs = lm.model(inputs_embeds=prefix, use_cache=False).logits[:, -1].float().log_softmax(-1)
        if scores is None or tokens is None:
            scores, token = log_probs.topk(BEAMS, -1)
            prefix, token, scores = prefix.expand(BEAMS, -1, -1), token.view(-1, 1), scores.squeeze(0)
            tokens = token
        else:
            log_probs[stopped] = -torch.inf
            log_probs[stopped, 0] = 0
            lengths[~stopped] += 1
            means, token = ((scores[:, None] + log_probs) / lengths[:, None]).view(-1).topk(BEAMS, -1)
            source, token = token // log_probs.shape[1], (token % log_probs.shape[1]).unsqueeze(1)
            tokens = torch.cat((tokens[source], token), dim=1)
            lengths, prefix, stopped = lengths[source], prefix[source], stopped[source]
            scores = means * lengths
        prefix = torch.cat((prefix, lm.embed(token)), dim=1)
        stopped = stopped | (token.squeeze(1) == stop)
        if stopped.all():
            break
    assert scores is not None and tokens is not None
    best = int((scores / lengths).argmax())
    return [int(token) for token in tokens[best, : int(lengths[best])]]


if __name__ == "__main__":
    main()
