"""A step of self-critical training, and the share that the reward would take if it were waited for: at most 15%.

GPT-2 small's architecture with random weights, fine-tuned, MLP; 8 images with 5 samples of 20 tokens each, judged by
CIDEr-D against COCO's captions. Samples of random weights are not words, so the reward is timed on captions
that are near the references. It runs on a thread of its own while the language model reads the samples.
"""

import argparse
import random
import time
from pathlib import Path
from statistics import median

import lightning as L
import torch
from reward import SAMPLES, SHARED, sampled, seconds
from torch import Tensor, nn
from torch.optim import AdamW
from train_steps import DIM, PREFIX, gpt2

from prefixcap.captioner import Captioner
from prefixcap.features import EncoderIdentity
from prefixcap.language import LanguageModel, load_language_model
from prefixcap.packing import pack
from prefixcap.training import CaptionTraining
from prefixcap.training.objectives import SelfCritical
from prefixcap.training.rewards import CiderReward
from prefixcap.utils.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=SHARED / "captions" / "coco_karpathy_val.json")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    references = [entry["captions"] for entry in read_json(given.file)]
    reward = CiderReward(references)
    device = torch.device(given.device)
    language_model = LanguageModel(gpt2(), load_language_model("demo").tokenizer, "random", "full")
    mapper = {"name": "mlp", "prefix_length": PREFIX}
    captioner = Captioner(language_model, EncoderIdentity("random", "", "", DIM), mapper).to(device).train()
    objective = SelfCritical(captioner, None, reward, SAMPLES, sample_tokens=20)
    training = CaptionTraining(captioner, None, objective=objective)  # type: ignore[arg-type]
    training.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    optimizer = AdamW(captioner.parameters(), lr=1e-5, fused=True)
    batch = pack(torch.randn(given.images, DIM), [], [], PREFIX, image_rows=range(given.images)).to(device)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = training.training_step(batch, 0)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step().item()
    start = time.perf_counter()
    for _ in range(given.steps):
        loss = step()
    loss.item()
    step_seconds = (time.perf_counter() - start) / given.steps
    generator = random.Random(0)
    images = [image for image in range(given.images) for _ in range(SAMPLES)]
    captions = [sampled(references[image], generator) for image in images]
    reward_seconds = median(seconds(reward, captions, images) for _ in range(20))
    print(f"a step of {len(images)} samples on {device}: {1000 * step_seconds:,.0f} ms; the reward of these captions: "
          f"{1000 * reward_seconds:.1f} ms, {reward_seconds / step_seconds:.2%}   (at most 15%)")  # fmt: skip


if __name__ == "__main__":
    main()
