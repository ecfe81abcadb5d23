"""Which reader is the fastest for an encoder, and how near the embeddings of images that are decoded fast are."""

import torch
from torch.nn.functional import cosine_similarity

from data_prep.device_loading import DeviceReader
from data_prep.loading import PixelReader
from data_prep.records import Dataset, Sample
from data_prep.resizing import is_supported
from prefixcap.encoders import Encoder
from prefixcap.encoders.protocol import ExportableEncoder

SCALED = (
    2  # the size to decode at least, over the encoder's input: at 1, EfficientNet-Lite2's mean cosine is below 0.996
)
SAMPLE = 64  # images that are decoded both ways
NEAR = 0.999  # a mean cosine that scores of captions do not notice


def choose_reader(encoder: Encoder, scaled_size: int | None, num_workers: int) -> PixelReader:
    """The fastest reader for an encoder.

    Args:
        encoder: to read images for.
        scaled_size: as in `PixelReader`: None unless images are decoded fast.
        num_workers: processes that read; 0: this one.
    """
    on_gpu = num_workers > 0 and encoder.device.type == "cuda"
    if on_gpu and isinstance(encoder, ExportableEncoder) and is_supported(encoder.geometry):
        return DeviceReader(encoder.preprocess, scaled_size, encoder.geometry, decode=scaled_size is not None)
    return PixelReader(encoder.preprocess, scaled_size)


def cosines(dataset: Dataset, encoder: Encoder, reader: PixelReader, num_workers: int) -> torch.Tensor:
    """(images,) float32 cosines of the first images' embeddings as `reader` reads them to those of the encoder's own
    pixels; of at most `SAMPLE` images, those that can be read."""
    samples: list[Sample] = []
    for shard in dataset.shards:
        samples += shard.read()[0][: SAMPLE - len(samples)]
        if len(samples) == SAMPLE:
            break
    reference = PixelReader(encoder.preprocess).read(samples)
    if num_workers:
        (fast,) = reader.in_processes([samples], num_workers, encoder.device)
    else:
        fast = reader.read(samples)
    rows = []
    for pixels in (reference, fast):
        kept = [
            row for row, position in enumerate(pixels.positions) if position not in {*reference.reasons, *fast.reasons}
        ]
        batches = [encoder.encode_images(pixels.images[row : row + 1]).float().cpu() for row in kept]
        rows.append(torch.cat(batches or [torch.empty(0, 1)]))
    return cosine_similarity(rows[0], rows[1])


def describe_cosines(values: torch.Tensor) -> str:
    """One line for the user, with advice."""
    if not len(values):
        return "fast_decode: none of the first images can be read, so it is not known how near their embeddings are"
    mean = values.mean().item()
    advice = "" if mean >= NEAR else f"; the mean is below {NEAR}: better without fast_decode"
    return (
        f"fast_decode: cosine to the embeddings without it, of {len(values)} images: mean {mean:.5f}, "
        f"lowest {values.min().item():.5f}{advice}"
    )
