"""Caption images with exported models: python caption.py a.jpg b.png

Needs numpy, pillow, tokenizers, and onnxruntime for models in .onnx or torch for models in .pt2. Decoding is greedy.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent


def open_model(name: str) -> Callable[..., Any]:
    """A function from arrays, in the order of the model's inputs, to a list of its outputs."""
    if (FOLDER / f"{name}.onnx").exists():
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would tell its makers of each use
        import onnxruntime

        session = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx")
        inputs = [given.name for given in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(inputs, arrays, strict=True)))
    import torch

    # Guards would allow only the lengths that were traced; the models work for all.
    program = torch.export.load(FOLDER / f"{name}.pt2").module(check_guards=False)

    def run(*arrays: Any) -> list[Any]:
        outputs = program(*map(torch.tensor, arrays))
        return [output.detach().numpy() for output in (outputs if isinstance(outputs, tuple) else [outputs])]

    return run


def read_pixels(path: str, resize: Any, resample: str, crop: list[int] | None, crop_rounds_down: bool) -> Any:
    """(1, 3, height, width) uint8; the arguments are "image" in export.json."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:  # on a white background
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if isinstance(resize, int):  # the shorter side
        resize = [int(resize * side / min(image.size)) for side in (image.height, image.width)]
    image = image.resize((resize[1], resize[0]), Image.Resampling[resample.upper()])
    if crop:
        gaps = [(resize[0] - crop[0]) / 2, (resize[1] - crop[1]) / 2]
        top, left = [int(gap) if crop_rounds_down else round(gap) for gap in gaps]
        image = image.crop((left, top, left + crop[1], top + crop[0]))
    return np.asarray(image).transpose(2, 0, 1)[None]


def main(images: list[str], prompt: str = "", max_tokens: int = 67) -> None:
    about = json.loads((FOLDER / "export.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a prompt is plain text
    encoder, mapper, language_model = map(open_model, ("image_encoder", "mapper", "language_model"))
    for image in images:
        (embedding,) = encoder(read_pixels(image, **about["image"]))
        (prefix,) = mapper(embedding)
        new = tokenizer.encode(prompt.strip(), add_special_tokens=False).ids if prompt.strip() else []
        caption, past = list(new), np.zeros(about["empty_past"], np.float32)
        for _ in range(max_tokens):
            logits, past = language_model(prefix, np.array([new], np.int64).reshape(1, -1), past)
            token = int(logits[0].argmax())
            if token == about["end_token"]:
                break
            caption.append(token)
            prefix, new = prefix[:, :0], [token]  # the past has the rest
        print(image, " ".join(tokenizer.decode(caption).split()), sep="\t")


if __name__ == "__main__":
    main(sys.argv[1:])
