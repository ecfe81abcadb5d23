"""The CLIPs of PAC-S, from the files that its authors published.

Sarto et al., "Positive-Augmented Contrastive Learning for Image and Video Captioning Evaluation", CVPR 2023: the
projections of OpenAI's ViT-B/32 and of OpenCLIP's ViT-L/14, trained further. The files are named at
https://github.com/aimagelab/pacscore: `clip_ViT-B-32.pth` and `openClip_ViT-L-14.pth`.
"""

import warnings
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.transforms import Normalize

from prefixcap.encoders.openai_clip import OpenAIClipEncoder
from prefixcap.errors import InputError, first_line
from prefixcap.weights import open_weights, require_tensors

WEIGHTS = "state_dict"  # the entry of the file that holds them


class PacScoreEncoder(OpenAIClipEncoder):
    """A CLIP that its authors published for PAC-S; see `Encoder` for the methods.

    Both files have the names and shapes of OpenAI's CLIP, which do not say how the model computes. Patches of 14 pixels
    mean OpenCLIP's ViT-L/14 (GELU, pixels from -1 to 1), others OpenAI's (QuickGELU, CLIP's mean and deviation).

    Args:
        checkpoint: the file, whose entry "state_dict" has the weights.
        name: for the identity and for error messages.
        device: of the model.
        dtype: of the weights, as for `OpenAIClipEncoder`.

    Raises:
        InputError: `clip` cannot be imported, or there is no such file, or it has another form.
    """

    def _load(self, clip: Any, checkpoint: str, name: str) -> tuple[Any, Any]:
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            raise InputError(f"encoder {name!r}: there is no file {checkpoint}: give clip_ViT-B-32.pth, as published")
        try:
            content = open_weights(path)
            if not isinstance(content, dict) or WEIGHTS not in content:
                raise InputError(f"it has no entry {WEIGHTS!r}")
            weights = require_tensors(content[WEIGHTS], path.name)
            if "visual.proj" not in weights:
                raise InputError("it has no weight 'visual.proj', which ViTs have")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = clip.model.build_model(dict(weights)).float()
            model.load_state_dict(weights)  # once more, as build_model rounds them to fp16, which OpenAI's are
        except Exception as error:  # a malformed file makes torch and clip raise almost anything
            reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
            raise InputError(
                f"encoder {name!r} cannot be loaded ({reason}): give a file that was published for PAC-S, e.g. "
                "clip_ViT-B-32.pth; other CLIPs are clip:PATH"
            ) from error
        *steps, normalization = clip.clip._transform(model.visual.input_resolution).transforms
        if model.visual.conv1.kernel_size == (14, 14):
            for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
                block.mlp.gelu = nn.GELU()
            normalization = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
            self._mean_and_deviation = "mean and deviation 0.5"
        return model, clip.clip.Compose([*steps, normalization])
