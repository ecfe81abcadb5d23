"""Caption images: files, folders, patterns or URLs."""

import itertools
import re
import signal
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefixcap.commands.common.decoders import SEED, CommandWithDecoders, complete_decoder
from prefixcap.commands.common.inputs import find_images, read_ahead
from prefixcap.commands.common.options import Checkpoint, Device, load_captioner
from prefixcap.commands.common.outputs import WITHOUT_SIMILARITY, Format, Row, open_output
from prefixcap.errors import InputError, spell_options
from prefixcap.evaluation.caption_files import read_prompts
from prefixcap.utils.files import no_space

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner

MAX_LISTED = 5  # skipped images

EXAMPLES = """One photograph, by the captioner that comes with the package:

  prefixcap caption photo.jpg

By another one:

  prefixcap caption photo.jpg --ckpt best.ckpt

All images below a folder, a text file next to each:

  prefixcap caption photos --ckpt best.ckpt --format sidecar

Ten sampled captions per image, of which the three closest to the image, by CLIP:

  prefixcap caption 'photos/**/*.png' --ckpt best.ckpt --format json \\
      --out captions.json --decode nucleus --set top_p=0.9 seed=0 \\
      --rerank 10 --count 3

Exit status 0: all images were captioned. 1: some could not be read; they are listed on stderr. \
2: none could be read, or a mistake in the command. 130: stopped by Ctrl-C; the output is complete up to then."""

OUTPUT, DECODING = "Output", "Decoding"
COMMAND_CLASS = CommandWithDecoders  # whose help lists the decoders


def main(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Image files, folders (with their subfolders), quoted patterns such as '*.jpg', URLs.",
        ),
    ],
    ckpt: Checkpoint = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch http and https URLs, each at most 50 MB and 30 s.")
    ] = False,
    form: Annotated[
        Format,
        typer.Option(
            "--format", metavar="NAME", rich_help_panel=OUTPUT,
            help="text (IMAGE<tab>CAPTION), json, jsonl, csv, coco (COCO results) or sidecar (photo.txt by photo.jpg).",
        ),
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=OUTPUT, show_default=False,
            help="The output file (default: standard output).",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace existing files.")
    ] = False,
    count: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=OUTPUT, help="Captions per image, best first.")
    ] = 1,
    similarity: Annotated[
        bool | None,
        typer.Option(
            "--similarity/--no-similarity", rich_help_panel=OUTPUT, show_default=False,
            help="Add the cosine of caption and image, by the encoder (default: if the captioner knows which is low, "
            "as photos does, and the format is text, json, jsonl or csv).",
        ),
    ] = None,
    decode: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=DECODING, help="A decoder, see below.", autocompletion=complete_decoder
        ),
    ] = "beam",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", rich_help_panel=DECODING, help="Options of the decoder, see below.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT", rich_help_panel=DECODING, show_default=False,
            help='How every caption begins, e.g. "a photo of".',
        ),
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=DECODING, show_default=False,
            help="A text for each image, e.g. what is known of it, which the language model reads before the caption: "
            "JSON {image: text}, or CSV or JSONL with image and caption (default: the captioner's own, if it was "
            "trained with any).",
        ),
    ] = None,
    datastore: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", rich_help_panel=DECODING, show_default=False,
            help="A feature store with captions to retrieve from, for a captioner that reads such captions.",
        ),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", rich_help_panel=DECODING, show_default=False,
            help="Generate N captions, and keep those closest to the image by the encoder (default: as many as the "
            "captioner asks for, as photos does: 5 for beam search; otherwise 0, the decoder chooses).",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images per batch.")] = 32,
    device: Device = "auto",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="GPT-2's tokenizer, for a .pt that ClipCap published.", show_default=False
        ),
    ] = None,
) -> None:  # fmt: skip
    """Write the captions, batch by batch."""
    if form == "coco" and count > 1:
        raise InputError(f"--format coco has one caption per image: omit --count {count}, or choose another --format")
    if similarity and form in WITHOUT_SIMILARITY:
        raise InputError(f"--format {form} has no similarities: omit --similarity, or choose another --format")
    # `--set beams=10 max_tokens=20`: the second word arrives among the inputs.
    images = find_images([word for word in inputs if not _is_setting(word)], allow_urls)
    options = read_options(decode, [*(settings or []), *filter(_is_setting, inputs)])
    texts = dict(zip(images, read_prompts(prompts, images), strict=True)) if prompts else None
    stop, skipped, written = Stop(), list[str](), 0
    try:
        with stop, open_output(form, out, images, overwrite) as output:
            warnings.filterwarnings("ignore", module="PIL")  # about damaged metadata and large images
            from prefixcap.reranking import default_candidates  # imports torch: after the options are checked

            captioner = load_captioner(ckpt, device, tokenizer)
            if datastore:
                captioner.use_datastore(datastore)
            if rerank is None:
                rerank = default_candidates(captioner.rerank, decode, options)
            options |= {"decode": decode, "prompt": prompt}
            if similarity is None:
                similarity = captioner.low_similarity is not None and form not in WITHOUT_SIMILARITY
            batches = caption_batches(captioner, images, batch_size, count, rerank, options, skipped, similarity, texts)
            with closing(batches):
                for rows in batches:
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
        done = f"{out or 'the output'} has the captions of {written:,} of {len(images):,} images"
        raise InputError(f"no space left on the disk: {done}; free some, and caption the others") from error
    if skipped:
        more = [f"and {len(skipped) - MAX_LISTED:,} more"] if len(skipped) > MAX_LISTED else []
        reasons = "".join(f"\n  {' '.join(line.split())}" for line in [*skipped[:MAX_LISTED], *more])
        print(f"skipped {len(skipped):,} of {len(images):,} images:{reasons}", file=sys.stderr)
    if stop.signal is not None:
        print(f"stopped: {written:,} of {len(images):,} images have captions", file=sys.stderr)
        raise typer.Exit(128 + stop.signal)
    if skipped:
        raise typer.Exit(1)


def caption_batches(
    captioner: "Captioner",
    images: Sequence[str],
    batch_size: int,
    count: int,
    rerank: int,
    options: dict[str, Any],
    skipped: list[str],
    similarity: bool = False,
    prompts: Mapping[str, str] | None = None,
) -> Generator[list[Row]]:
    """Caption images, batch by batch, while the next images are read.

    Args:
        captioner: the captioner, whose own encoder reads the images.
        images: paths and URLs.
        batch_size: images per batch.
        count: captions per image.
        rerank: generate this many candidates per image, and keep those closest to it by the encoder; 0: the decoder's
            best.
        options: further arguments of `Captioner.candidates`.
        skipped: a list that "NAME: reason" is appended to for each image that cannot be read.
        similarity: also give the cosines of captions and image.
        prompts: the text of each image that is read before its caption; None: the captioner's own.

    Raises:
        InputError: `Captioner.candidates` raises it, or a batch does not fit into memory.
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
                    embeddings, cosines = None, None
                    if rerank or similarity or captioner.prompts:
                        features, embeddings = encode_for_reranking(encoder, pixels, captioner.features)
                    else:
                        features = encode_feature(encoder, pixels, captioner.features)
                    own = None if prompts is None else [prompts[name] for name in names]
                    with spell_options("--set {}".format, "give"):
                        captions = captioner.candidates(
                            features, max(count, rerank), batch_size=len(names), by_similarity=rerank > 0,
                            embeddings=embeddings, prompts=own, **options,
                        )  # fmt: skip
                    captions = [candidates[:count] for candidates in captions]
                    if similarity and embeddings is not None:
                        cosines = captioner.similarities(embeddings, captions)
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    raise InputError(f"out of memory: give a smaller --batch-size than {batch_size}") from error
                # On a terminal the bar makes room for the captions.
                with tqdm.external_write_mode(sys.stdout) if sys.stderr.isatty() else nullcontext():
                    yield [
                        Row(
                            names[row],
                            captions[row],
                            None if cosines is None else cosines[row],
                            captioner.low_similarity,
                        )
                        for row in range(len(names))
                    ]
            bar.update(len(part))


def read_options(decode: str, settings: Sequence[str]) -> dict[str, Any]:
    """The options of a decoder in words NAME=VALUE.

    Raises:
        InputError: the decoder has no such option, or a value has the wrong type.
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
            raise InputError(f"--set {setting}: {name} must be {kind}, not '{value}'") from error
    if "seed" in options:
        options["seed"] = random_generator(options["seed"])  # all batches draw from it
    return options


def _is_setting(word: str) -> bool:
    return re.fullmatch(r"[a-z_]+=[^/]*", word) is not None and not Path(word).exists()


class Stop:
    """A context in which Ctrl-C and SIGTERM raise KeyboardInterrupt, but not before a `deferred` block has ended.

    Attributes:
        signal: the number of the signal that was received; None: none was.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._is_deferring = False

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context that a signal does not interrupt; it is raised at the end."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
        if self.signal is not None:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._is_deferring:
            raise KeyboardInterrupt
