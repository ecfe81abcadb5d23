"""Sample captions beside their images: what people look at to see how far training has come."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from prefixcap.training.loggers import TrackioLogger
from prefixcap.utils.files import atomic_write_text
from prefixcap.utils.images import data_url

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif }}
body {{ margin: 1rem }}
h1 {{ font-size: 1.2rem }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1.5rem 1rem }}
figure {{ margin: 0 }}
img {{ display: block; margin-bottom: .4rem; border-radius: 4px }}
small {{ display: block; margin-top: .3rem; opacity: .65 }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
</html>
"""


@dataclass(frozen=True)
class Sample:
    """A caption of an image. The picture is None if its file cannot be read."""

    image_id: int | str
    caption: str
    references: Sequence[str]
    picture: Image.Image | None


def samples_page(title: str, samples: Sequence[Sample]) -> str:
    """An HTML page with each image, its caption, and a reference below. It holds the images: it needs no network."""
    figures = []
    for sample in samples:
        picture = f'<img src="{data_url(sample.picture)}" alt="">' if sample.picture is not None else ""
        reference = html.escape(sample.references[0])
        caption = f"{html.escape(sample.caption)}<small>{reference}</small>"
        figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return _PAGE.format(title=html.escape(title), figures="\n".join(figures))


def write_samples(folder: Path, samples: Sequence[Sample], step: int, loggers: Sequence[Logger]) -> None:
    """Write captions to `folder`, as JSON and as a page with the images, and give them to the loggers.

    Args:
        folder: of all samples of a run; the files are named by the step.
        samples: captions with their images.
        step: steps of training so far.
        loggers: of the run, see `log_samples`.
    """
    page = samples_page(f"Captions after step {step:,}", samples)
    file = folder / f"step-{step:07d}"
    entries = [
        {"image_id": sample.image_id, "caption": sample.caption, "references": sample.references} for sample in samples
    ]
    atomic_write_text(file.with_suffix(".json"), json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    atomic_write_text(file.with_suffix(".html"), page)
    log_samples(loggers, samples, page, step - 1)  # the step that this validation's metrics are logged at


def log_samples(loggers: Sequence[Logger], samples: Sequence[Sample], page: str, step: int) -> None:
    """Show captions with their images in each tracker. MLflow, whose images have no captions, gets the page."""
    shown = [sample for sample in samples if sample.picture is not None]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for sample in shown:
                tag, pixels = f"samples/{sample.image_id}", np.asarray(sample.picture)
                logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
                logger.experiment.add_text(tag, sample.caption, step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, page, f"samples/step-{step:07d}.html")
        elif isinstance(logger, WandbLogger | TrackioLogger) and shown:
            captions = [sample.caption for sample in shown]
            logger.log_image("samples", [sample.picture for sample in shown], step, caption=captions)
