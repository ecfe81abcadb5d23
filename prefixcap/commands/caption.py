"""`prefixcap caption`."""

import itertools
import re
import signal
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefixcap.commands.common.decoders import SEED, CommandWithDecoders, complete_decoder
from prefixcap.commands.common.inputs import find_images, read_ahead
from prefixcap.commands.common.options import Checkpoint, Device
from prefixcap.commands.common.outputs import Format, Row, open_output
from prefixcap.errors import InputError, spell_options
from prefixcap.utils.files import no_space

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner

app = typer.Typer()

SHOWN = 5  # of the images that were skipped

EXAMPLES = """One photograph:

  prefixcap caption photo.jpg --ckpt best.ckpt

All below a folder, a text file beside each:

  prefixcap caption photos --ckpt best.ckpt --format sidecar

Of ten captions that are drawn, the three that CLIP finds closest:

  prefixcap caption 'photos/**/*.png' --ckpt best.ckpt --format json \\
      --out captions.json --decode nucleus --set top_p=0.9 seed=0 \\
      --rerank 10 --count 3

Status 0: all images have captions. 1: some could not be read; they are listed on stderr. \
2: none could be read, or a mistake. 130: stopped by Ctrl-C. What was written by then is whole."""

WRITTEN, SEARCH = "What is written", "How captions are found"


@app.command("caption", rich_help_panel="Caption", epilog=EXAMPLES, cls=CommandWithDecoders)
def run(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Image files, folders with all below them, quoted patterns such as '*.jpg', URLs."
        ),
    ],
    ckpt: Checkpoint,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch http and https URLs: 50 MB and 30 s each at most.")
    ] = False,
    form: Annotated[
        Format,
        typer.Option(
            "--format", metavar="NAME", rich_help_panel=WRITTEN,
            help="text (IMAGE<tab>CAPTION), json, jsonl, csv, coco (COCO results), sidecar (photo.txt beside it).",
        ),
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=WRITTEN, help="Write to a file.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=WRITTEN, help="Replace files that are there.")
    ] = False,
    count: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=WRITTEN, help="Captions for each image, the best first.")
    ] = 1,
    decode: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=SEARCH, help="A decoder, see below.", autocompletion=complete_decoder
        ),
    ] = "beam",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", rich_help_panel=SEARCH, help="Options of the decoder, see below.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT", rich_help_panel=SEARCH, help='How every caption begins: "a photo of".', show_default=False
        ),
    ] = "",
    rerank: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", rich_help_panel=SEARCH, show_default=False,
            help="Find N captions, and take those that CLIP finds closest to the image.",
        ),
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images captioned together.")] = 32,
    device: Device = "auto",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="GPT-2's, for a .pt of ClipCap.", show_default=False
        ),
    ] = None,
) -> None:  # fmt: skip
    """Caption images: files, folders, patterns or URLs."""
    if form == "coco" and count > 1:
        raise InputError(
            f"--format coco has one caption an image: leave --count {count} out, or choose another --format"
        )
    # `--set beams=10 max_tokens=20` gives the second word here.
    images = find_images([word for word in inputs if not _is_setting(word)], allow_urls)
    options = read_options(decode, [*(settings or []), *filter(_is_setting, inputs)])
    stop, skipped, written = Stop(), list[str](), 0
    try:
        with stop, open_output(form, out, images, overwrite) as output:
            captioner = _load(ckpt, device, tokenizer)
            options |= {"decode": decode, "prompt": prompt}
            found = captions_of(captioner, images, batch_size, count, rerank, options, skipped)
            with closing(found):
                for rows in found:
                    with stop.deferred():
                        output.add(rows)
                        written += len(rows)
            if not written:
                raise InputError(f"none of {len(images):,} images could be read: {skipped[0]}")
    except KeyboardInterrupt:
        pass
    except OSError as error:
        if not no_space(error):
            raise
        there = f"{out or 'the output'} has the captions of {written:,} of {len(images):,} images"
        raise InputError(f"no space left on the disk: {there}; free some, and caption the others") from error
    if skipped:
        lines = [*skipped[:SHOWN], *([f"and {len(skipped) - SHOWN:,} more"] if len(skipped) > SHOWN else [])]
        told = "".join(f"\n  {' '.join(line.split())}" for line in lines)
        print(f"skipped {len(skipped):,} of {len(images):,} images:{told}", file=sys.stderr)
    if stop.signal is not None:
        print(f"stopped: {written:,} of {len(images):,} images have captions", file=sys.stderr)
        raise typer.Exit(128 + stop.signal)
    if skipped:
        raise typer.Exit(1)


def captions_of(
    captioner: "Captioner",
    images: Sequence[str],
    batch_size: int,
    count: int,
    rerank: int,
    options: dict[str, Any],
    skipped: list[str],
) -> Generator[list[Row]]:
    """Caption images, batch by batch, while the next ones are read.

    Args:
        captioner: writes, by its own encoder.
        images: paths and URLs.
        batch_size: how many are captioned together.
        count: captions for each.
        rerank: write so many, and take those that the encoder finds closest; 0: the decoder's best.
        options: of `Captioner.candidates`.
        skipped: takes in why an image has no caption, "NAME: reason".

    Raises:
        InputError: as `Captioner.candidates`, or the memory is too small for a batch.
    """
    import torch
    from tqdm import tqdm

    from prefixcap.encoders import encode_feature
    from prefixcap.reranking import encode_for_reranking
    from prefixcap.utils.hardware import out_of_memory

    encoder = captioner.encoder()
    bar = tqdm(total=len(images), unit=" images", delay=1)
    with bar, closing(read_ahead(images, encoder.preprocess, 2 * batch_size)) as reading:
        while part := list(itertools.islice(reading, batch_size)):
            skipped += [str(pixels) for _, pixels in part if isinstance(pixels, InputError)]
            names = [name for name, pixels in part if not isinstance(pixels, InputError)]
            if names:
                pixels = torch.stack([pixels for _, pixels in part if not isinstance(pixels, InputError)])
                try:
                    if rerank:
                        features, embeddings = encode_for_reranking(encoder, pixels, captioner.features)
                    else:
                        features, embeddings = encode_feature(encoder, pixels, captioner.features), None
                    with spell_options("--set {}".format, "give"):
                        captions = captioner.candidates(
                            features, max(count, rerank), batch_size=len(names), by_similarity=rerank > 0,
                            embeddings=embeddings, **options,
                        )  # fmt: skip
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    raise InputError(f"out of memory: give a smaller --batch-size than {batch_size}") from error
                # On a terminal the bar makes room for the captions.
                with tqdm.external_write_mode(sys.stdout) if sys.stderr.isatty() else nullcontext():
                    yield [(name, found[:count]) for name, found in zip(names, captions, strict=True)]
            bar.update(len(part))


def read_options(decode: str, settings: Sequence[str]) -> dict[str, Any]:
    """The options of a decoder that the words NAME=VALUE give.

    Raises:
        InputError: the decoder has no such option, or a value is of another kind.
    """
    from prefixcap.decoding import decoder_options, draws, random_generator

    known = decoder_options(decode) | (SEED if draws(decode) else {})
    options: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise InputError(f"decoder '{decode}' has no option '{name}': it has {', '.join(known)}")
        try:
            options[name] = known[name].parse(value)
        except ValueError as error:
            kind = {int: "an integer", bool: "true or false"}.get(known[name].kind or str, "a number")
            raise InputError(f"--set {setting}: {name} is {kind}, not '{value}'") from error
    if "seed" in options:
        options["seed"] = random_generator(options["seed"])  # all batches draw from it
    return options


def _is_setting(word: str) -> bool:
    return re.fullmatch(r"[a-z_]+=[^/]*", word) is not None and not Path(word).exists()


def _load(path: Path, device: str, tokenizer: str | None) -> "Captioner":
    from prefixcap.captioner import load
    from prefixcap.utils.hardware import usable_device

    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata, and of large images, which are skipped
    return load(path, usable_device(device), tokenizer)


class Stop:
    """Within it, Ctrl-C and SIGTERM raise KeyboardInterrupt, but not in the middle of what is `deferred`.

    Attributes:
        signal: the number of the one that came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._holding = False

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let what is done within it come to its end first."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self.signal is not None:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._holding:
            raise KeyboardInterrupt
