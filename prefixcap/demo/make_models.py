"""Make the two small models of the small world: `python -m prefixcap.demo.make_models [--out FOLDER]`.

Writes `clip.pt`, a CLIP that `clip.load` opens, trained contrastively on pictures of the whole world, and
`language_model/`, a GPT-2 with its own tokenizer, trained on text of that world. Both see every colour, shape and
pair, as OpenAI's CLIP and GPT-2 have seen more than COCO. About an hour on two CPU cores; same seed, same models.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.clip import _transform
from clip.model import CLIP
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm, trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefixcap.demo import ASSETS
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import Scene, captions, random_scene

RESOLUTION = 112
END = "<|endoftext|>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--scenes", type=int, default=24_000, help="pictures to train the CLIP on")
    parser.add_argument("--epochs", type=int, default=20, help="passes over them")
    parser.add_argument("--lm-steps", type=int, default=1500, help="training steps of the language model")
    parser.add_argument("--only", choices=["clip", "lm"], help="make only this one")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only != "clip":
        make_language_model(arguments.out / "language_model", arguments.lm_steps)
    if arguments.only != "lm":
        make_clip(arguments.out / "clip.pt", arguments.scenes, arguments.epochs)


def picture_and_captions(seed: int) -> tuple[np.ndarray, list[str], Scene]:
    """One random scene of the whole world: its pixels as the CLIP will see them (uint8), five captions, the truth."""
    generator = np.random.default_rng([seed, 1])
    scene = random_scene(generator)
    small = draw(scene, generator).resize((RESOLUTION, RESOLUTION), resample=3)  # bicubic, as clip's preprocessing
    return np.asarray(small), captions(scene, generator), scene


def make_clip(path: Path, scenes: int, epochs: int, batch_size: int = 256, peak: float = 1e-3) -> None:
    """Train the small CLIP and write its state dict (half precision, as OpenAI's files are) to `path`."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    with multiprocessing.Pool() as pool:
        drawn = list(tqdm(pool.imap(picture_and_captions, range(scenes), 64), "drawing", scenes, unit=" scenes"))
    pixels = torch.from_numpy(np.stack([picture for picture, _, _ in drawn])).permute(0, 3, 1, 2)
    tokens = torch.stack([clip.tokenize(sentences) for _, sentences, _ in drawn])
    tokens = tokens[..., : int((tokens > 0).sum(-1).max())]
    normalize = _transform(RESOLUTION).transforms[-1]

    model = CLIP(
        embed_dim=128,
        image_resolution=RESOLUTION, vision_layers=4, vision_width=128, vision_patch_size=16,
        context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=3,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = epochs * (scenes // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    progress = trange(steps, desc="clip", mininterval=5)
    for step in progress:
        if step % (scenes // batch_size) == 0:
            order = torch.from_numpy(generator.permutation(scenes))
        rows = order[:batch_size]
        order = order[batch_size:]
        which = torch.from_numpy(generator.integers(0, 5, batch_size))
        images = normalize(pixels[rows].float() / 255)
        loss = contrastive_loss(model, images, tokens[rows, which])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % (4 * (scenes // batch_size)) == 0:
            save_clip(model, path)
    save_clip(model, path)


def save_clip(model: CLIP, path: Path) -> None:
    """Write the state dict in OpenAI's precision: linear layers and embeddings as fp16."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    torch.save(state, path)


def contrastive_loss(model: CLIP, images: Tensor, texts: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over the similarities of a batch (Radford et al. 2021, figure 3)."""
    per_image, per_text = model(images, texts)
    target = torch.arange(len(images))
    return (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2


def documents(seed: int) -> Iterator[str]:
    """Texts of the small world without end, a few lines each, all about one scene.

    As in any real text, earlier lines tell what later ones will say. From single sentences a language model would
    learn that nothing before a sentence matters, and no prefix could steer it.
    """
    generator = np.random.default_rng(seed)
    while True:
        scene = random_scene(generator)
        lines = [str(line) for line in generator.permutation(captions(scene, generator))]
        if generator.random() < 0.2:
            prompt = str(generator.choice(["Image of a", "A picture of a", "A photo of a"]))
            lines = [prompt + line[1:] if line.startswith("A ") else line for line in lines]
        if generator.random() < 0.2:
            question, answer = _question(scene, generator)
            lines.insert(int(generator.integers(1, 4)), f"{lines[0]} Question: {question} Answer: {answer}.")
        yield "\n".join(lines[: generator.integers(1, 6)])


def _question(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    asked = [
        (f"What colour is the {scene.shape}?", scene.colour),
        (f"What shape is {scene.colour}?", scene.shape),
        (f"How large is the {scene.shape}?", scene.size),
        (f"What texture has the {scene.shape}?", scene.texture),
        (f"Where is the {scene.shape}?", scene.position),
    ]
    return asked[generator.integers(len(asked))]


def make_language_model(folder: Path, steps: int, batch_size: int = 16, length: int = 128, peak: float = 3e-3) -> None:
    """Train the small GPT-2 and its byte-level BPE tokenizer and write both to `folder` as transformers does."""
    torch.manual_seed(0)
    source = documents(seed=0)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1024, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator((next(source) for _ in range(8_000)), trainer)
    bpe.add_special_tokens([END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, unk_token=END)
    end = tokenizer.eos_token_id

    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=128, n_layer=4, n_head=4, bos_token_id=end, eos_token_id=end,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    stream: list[int] = [end]
    progress = trange(steps, desc="language model", mininterval=5)
    for step in progress:
        while len(stream) < batch_size * length:
            stream += [*tokenizer(next(source))["input_ids"], end]
        batch = torch.tensor(stream[: batch_size * length]).view(batch_size, length)
        stream = stream[batch_size * length :]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Version 5 of transformers names a class of its own; this one exists in version 4 too.
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
