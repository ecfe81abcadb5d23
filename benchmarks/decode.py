"""Captions a second by beam search, over the published loop (at least 12 on a CPU) and over `transformers.generate` (at
least 1.2, on a GPU 4).

The language model has GPT-2 small's architecture with random weights; prefixes of 10 random vectors; 5 beams; 12 new
tokens. The published loop is ClipCap's `generate_beam`: one image at a time, reading the whole sequence again for every
token. On a GPU also our searches without CUDA graphs, and the memory that each takes. All in turns, in one process.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from prefixcap.decoding import decode
from prefixcap.language import LanguageModel, load_language_model

PREFIX, BEAMS, NEW_TOKENS = 10, 5, 12

Way = Callable[[Tensor], list[list[int]]]  # (B, P, E) prefixes -> the best caption of each


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
    lm = random_lm(dtype, device)
    prefixes = torch.randn(images, PREFIX, lm.dim).to(device, dtype)
    ways: dict[str, Way] = {"published loop": partial(published, lm), **ways_of_decoding(lm)}
    batches = {name: prefixes.split(batch) for name in ways} | {"published loop": prefixes[:looped].split(1)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    captions: dict[str, list[list[int]]] = {}
    peaks = dict.fromkeys(ways, "")
    for _ in range(turns + 1):
        for name, way in ways.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            captions[name] = [caption for some in batches[name] for caption in way(some)]
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


def random_lm(dtype: torch.dtype, device: torch.device, config: GPT2Config | None = None) -> LanguageModel:
    """GPT-2 small, or another of its kind, with random weights."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config or GPT2Config()).eval().to(device, dtype)
    lm = LanguageModel(model, load_language_model("demo").tokenizer, "GPT-2 small, random")
    lm._without_token = None  # all 50,257 words may be chosen, not only those of the small tokenizer
    return lm


def ways_of_decoding(lm: LanguageModel) -> dict[str, Way]:
    """Beam search by transformers and ours; on a GPU ours also without CUDA graphs."""

    def generate(prefix: Tensor) -> list[list[int]]:
        attention = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
        limits = {"max_new_tokens": NEW_TOKENS, "eos_token_id": lm.eos_token_id, "pad_token_id": lm.eos_token_id}
        found: Tensor = lm.model.generate(inputs_embeds=prefix, attention_mask=attention, num_beams=BEAMS, **limits)
        return found.tolist()

    def ours(method: str, cuda_graphs: bool, prefix: Tensor) -> list[list[int]]:
        lm.cuda_graphs = cuda_graphs
        return [captions[0] for captions in decode(lm, prefix, method, beams=BEAMS, max_tokens=NEW_TOKENS)]

    ways: dict[str, Way] = {"generate": generate}
    for method in ("beam", "clipcap"):
        if lm.model.device.type == "cuda":
            ways[f"{method}, eager"] = partial(ours, method, False)
        ways[method] = partial(ours, method, True)
    return ways


@torch.inference_mode()
def published(lm: LanguageModel, prefix: Tensor) -> list[list[int]]:
    """The best caption of one (1, length, dim) prefix, as ClipCap's code finds it, in a list."""
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
    return [[int(token) for token in tokens[best, : int(lengths[best])]]]


if __name__ == "__main__":
    main()
