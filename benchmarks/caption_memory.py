"""Highest memory after captioning 5,000 images, over that after the first 500: at most 1.05.

The small world's language model, 5 beams, batches of 32. With the number of images only their embeddings and captions
grow.
"""

import argparse

import torch
from measure import in_own_process, memory

from prefixcap.captioner import Captioner
from prefixcap.features import EncoderIdentity
from prefixcap.language import load_language_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    in_own_process(compare, parser.parse_args().images)


def compare(images: int) -> None:
    """Print the highest memory so far, in MB, after a tenth of the images and after all."""
    torch.manual_seed(0)
    encoder = EncoderIdentity("random", "0" * 64, "none", 512)
    captioner = Captioner(load_language_model("demo"), encoder, {"name": "mlp", "prefix_length": 10})
    embeddings = torch.randn(images, 512)
    peaks = []
    for count in (images // 10, images):
        captioner.caption(embeddings[:count], "beam", max_tokens=20)
        peaks.append(memory("VmHWM"))
        print(f"{count:6} images   {peaks[-1] / 1e6:8.1f} MB")
    print(f"ratio           {peaks[1] / peaks[0]:8.3f}   (at most 1.05)")


if __name__ == "__main__":
    main()
