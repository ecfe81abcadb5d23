"""What zero-shot captions of the small world say: the share of attribute words that are true, and perplexity.

Scenes are drawn evenly from the whole world; prompt "A", otherwise the papers' constants; perplexity under the small
world's language model, which also writes. Alone, it writes the same for each scene, by ClipCap's beam search.
"""

import argparse
import time

import numpy as np
import torch

from prefixcap.decoding import decode
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import Scene, is_right, named_attributes, random_scene
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model
from prefixcap.metrics.perplexity import negative_log_likelihood
from prefixcap.zeroshot.inputs import prompt_tokens
from prefixcap.zeroshot.magic import Magic
from prefixcap.zeroshot.zerocap import ZeroCap

PROMPT = "A"
GUIDED = {
    "ZeroCap": {},
    "A1: CLIP alone": {"guide": "clip"},
    "A2: CLIP and the language model": {"guide": "clip_and_lm"},
}
NAMES = ("language model alone", *GUIDED, "MAGIC")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--systems", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="; ".join(NAMES))
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    scenes = [random_scene(generator) for _ in range(given.scenes)]
    encoder, lm = load_encoder("demo"), load_language_model("demo")
    pixels = torch.stack([encoder.preprocess(draw(scene, generator)) for scene in scenes])
    embeddings = torch.cat([encoder.encode_images(part) for part in pixels.split(32)]).clone()
    print(f"{'':32} true words   all true   perplexity   seconds a scene")
    for name in given.systems:
        start = time.perf_counter()
        if name == "language model alone":
            prefix = lm.embed(torch.tensor([prompt_tokens(PROMPT, lm, encoder, max_tokens=67)]))
            captions = [lm.detokenize(decode(lm, prefix, "clipcap")[0][0])] * len(scenes)
        elif name == "MAGIC":
            captions = Magic(encoder, lm, prompt=PROMPT).caption(embeddings)
        else:
            captions = ZeroCap(encoder, lm, prompt=PROMPT, **GUIDED[name]).caption(embeddings)
        took = (time.perf_counter() - start) / len(scenes)
        true, right = true_words(captions, scenes)
        nats, tokens = negative_log_likelihood(lm, [f"{PROMPT} {caption}" for caption in captions])
        perplexity = (nats.sum() / tokens.sum()).exp()
        print(f"{name:32} {true:10.3f} {right:10.3f} {perplexity:12,.1f} {took:10.2f}   {captions[0]}", flush=True)


def true_words(captions: list[str], scenes: list[Scene]) -> tuple[float, float]:
    """Share of the attribute words that are true of their scene, and of captions in which all are."""
    words = [
        getattr(scene, name) == value
        for caption, scene in zip(captions, scenes, strict=True)
        for name, value in named_attributes(caption)
    ]
    return float(np.mean(words)), float(np.mean(list(map(is_right, captions, scenes))))


if __name__ == "__main__":
    main()
