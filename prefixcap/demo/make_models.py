"""Train the two models of the small world: `python -m prefixcap.demo.make_models [--out FOLDER]`.

Writes `clip.pt`, a CLIP that `clip.load` opens, trained contrastively on pictures of the whole world, and
`language_model/`, a GPT-2 with its own tokenizer, trained on text of that world. Both see every colour, shape and
pair, as OpenAI's CLIP and GPT-2 have seen more than COCO. Three quarters of an hour on two CPU cores.
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
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm, trange
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefixcap.demo import ASSETS
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import ATTRIBUTES, Scene, captions, random_scene

RESOLUTION = 112
END = "<|endoftext|>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--scenes", type=int, default=48_000, help="pictures to train the CLIP on")
    parser.add_argument("--clip-steps", type=int, default=6400, help="training steps of the CLIP")
    parser.add_argument("--lm-steps", type=int, default=4500, help="training steps of the language model")
    parser.add_argument("--only", choices=["clip", "lm"], help="make only this one")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.only != "clip":
        make_language_model(arguments.out / "language_model", arguments.lm_steps)
    if arguments.only != "lm":
        make_clip(arguments.out / "clip.pt", arguments.scenes, arguments.clip_steps)


def picture_and_captions(seed: int) -> tuple[np.ndarray, list[str], Scene]:
    """One random scene of the whole world: its pixels as the CLIP will see them (uint8), five captions, the truth."""
    generator = np.random.default_rng([seed, 1])
    scene = random_scene(generator)
    small = draw(scene, generator).resize((RESOLUTION, RESOLUTION), resample=3)  # bicubic, as clip's preprocessing
    return np.asarray(small), captions(scene, generator), scene


def make_clip(path: Path, scenes: int, steps: int, batch_size: int = 64, peak: float = 2e-3) -> None:
    """Train the small CLIP and write its state dict (half precision, as OpenAI's files are) to `path`.

    Pictures are contrasted with the captions of the batch, and with phrases that name one attribute each. In a batch,
    colour and place alone nearly always tell which caption is meant; the phrases see to it that shapes are learned too.
    So that this takes minutes, not hours, linear heads, thrown away afterwards, read the attributes from the embedding.
    """
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    with multiprocessing.Pool() as pool:
        drawn = list(tqdm(pool.imap(picture_and_captions, range(scenes), 64), "drawing", scenes, unit=" scenes"))
    pixels = torch.from_numpy(np.stack([picture for picture, _, _ in drawn])).permute(0, 3, 1, 2)
    tokens = torch.stack([clip.tokenize(sentences) for _, sentences, _ in drawn])
    tokens = tokens[..., : int((tokens > 0).sum(-1).max())]
    truth = {
        name: torch.tensor([values.index(getattr(scene, name)) for _, _, scene in drawn])
        for name, values in ATTRIBUTES.items()
    }
    phrases = {name: clip.tokenize([f"{value}." for value in values])[:, :8] for name, values in ATTRIBUTES.items()}
    normalize = _transform(RESOLUTION).transforms[-1]

    model = CLIP(
        embed_dim=128,
        image_resolution=RESOLUTION, vision_layers=4, vision_width=128, vision_patch_size=16,
        context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=3,
    )  # fmt: skip
    whiten_patches(model, normalize(pixels[:2000].float() / 255))
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(128, len(values)) for name, values in ATTRIBUTES.items()})
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    progress = trange(steps, desc="clip", mininterval=5)
    for step in progress:
        rows = torch.from_numpy(generator.integers(0, scenes, batch_size))
        which = torch.from_numpy(generator.integers(0, 5, batch_size))
        embeddings = model.encode_image(normalize(pixels[rows].float() / 255))
        images = F.normalize(embeddings, dim=1)
        texts = F.normalize(model.encode_text(tokens[rows, which]), dim=1)
        scale = model.logit_scale.exp()
        contrast = contrastive_loss(scale * images @ texts.T)
        naming = {
            name: F.cross_entropy(scale * images @ F.normalize(model.encode_text(phrase), dim=1).T, truth[name][rows])
            for name, phrase in phrases.items()
        }
        reading = sum(F.cross_entropy(head(embeddings), truth[name][rows]) for name, head in heads.items())
        optimizer.zero_grad()
        torch.autograd.backward(contrast + sum(naming.values()) + reading)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        if step % 20 == 0:
            losses = {name: f"{loss.item():.2f}" for name, loss in naming.items()}
            progress.set_postfix(contrast=f"{contrast.item():.2f}", **losses)
    save_clip(model, path)


def whiten_patches(model: CLIP, images: Tensor) -> None:
    """Start the patch embedding at the principal components of real patches, all brought to about one variance.

    A patch is nearly all flat colour. From a random start, edges drown in it, and shapes are learned late or never.
    """
    convolution = model.visual.conv1
    width, _, side, _ = convolution.weight.shape
    patches = F.unfold(images, side, stride=side).transpose(1, 2).flatten(0, 1)[::5]  # (patches, 3 * side * side)
    variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
    variances, components = variances[-width:], components[:, -width:]  # in rising order
    with torch.no_grad():
        convolution.weight.copy_(0.5 * (components / (variances + 0.9).sqrt()).T.reshape(convolution.weight.shape))
        torch.nn.init.normal_(model.visual.positional_embedding)


def contrastive_loss(similarity: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over the similarities of a batch (Radford et al. 2021, figure 3)."""
    target = torch.arange(len(similarity))
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def save_clip(model: CLIP, path: Path) -> None:
    """Write the state dict in OpenAI's precision: linear layers and embeddings as fp16."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    torch.save(state, path)


def documents(seed: int) -> Iterator[str]:
    """Texts of the small world without end, a few lines each, all about one scene.

    As in any real text, earlier lines tell what later ones will say. From single sentences a language model would
    learn that nothing before a sentence matters, and no prefix could steer it.
    """
    generator = np.random.default_rng(seed)
    while True:
        scene = random_scene(generator)
        lines = [str(line) for line in generator.choice(captions(scene, generator), 5)]  # some come twice
        if generator.random() < 0.2:
            prompt = str(generator.choice(["Image of a", "A picture of a", "A photo of a"]))
            lines = [prompt + line[1:] if line.startswith("A ") else line for line in lines]
        if generator.random() < 0.2:
            question, answer = _question(scene, generator)
            lines.insert(int(generator.integers(1, 4)), f"{lines[0]} Question: {question} Answer: {answer}.")
        yield "\n".join(lines[: generator.integers(2, 6)])


def _question(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    asked = [
        (f"What colour is the {scene.shape}?", scene.colour),
        (f"What shape is {scene.colour}?", scene.shape),
        (f"How large is the {scene.shape}?", scene.size),
        (f"What texture has the {scene.shape}?", scene.texture),
        (f"Where is the {scene.shape}?", scene.position),
    ]
    return asked[generator.integers(len(asked))]


def make_language_model(folder: Path, steps: int, batch_size: int = 32, length: int = 128, peak: float = 3e-3) -> None:
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
    progress = trange(steps, desc="language model", mininterval=5)
    for step in progress:
        texts = tokenizer([next(source) for _ in range(batch_size)])["input_ids"]
        # One text a row: nothing of another scene stands before a line, so that what it repeats is soon learned.
        rows = [torch.tensor([end, *text[: length - 2], end]) for text in texts]
        labels = pad_sequence(rows, batch_first=True, padding_value=-100)
        loss = model(input_ids=labels.clamp(min=0), labels=labels).loss
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
