"""Caption images: files, folders, patterns or URLs."""

import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prefixcap.commands.common.batches import BatchCaptioner, plan_batches, with_bar
from prefixcap.commands.common.cluster import ClusterCaptioner, shape_for
from prefixcap.commands.common.decoders import SEED, CommandWithDecoders, complete_decoder
from prefixcap.commands.common.formats import WITHOUT_SIMILARITY, Format
from prefixcap.commands.common.inputs import find_images, read_list
from prefixcap.commands.common.options import Checkpoint, Device
from prefixcap.commands.common.outputs import Destination, Existing
from prefixcap.commands.common.stopping import Stop
from prefixcap.commands.common.wording import Wording
from prefixcap.errors import InputError
from prefixcap.evaluation.caption_files import read_prompts
from prefixcap.utils.files import no_space
from prefixcap.utils.options import Dtype, Quantization, Seed, check_value

MAX_LISTED = 5  # skipped images

EXAMPLES = """One photograph, by the captioner that comes with the package:

  prefixcap caption photo.jpg

By another one:

  prefixcap caption photo.jpg --ckpt best.ckpt

All images below a folder, a text file next to each, with a trigger word. Images that have one are left out, so that the
same command goes on where it was stopped:

  prefixcap caption photos --format sidecar --before 'ohwx, '

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
        list[str] | None,
        typer.Argument(
            metavar="INPUT", show_default=False,
            help="Image files, folders (with their subfolders), quoted patterns such as '*.jpg', URLs.",
        ),
    ] = None,
    ckpt: Checkpoint = None,
    filelist: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=False,
            help="A text file that names further images or folders, one a line (or with a zero byte between, as find "
            "-print0 writes); -: the standard input.",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive/--no-recursive", help="Look into the subfolders of folders.")
    ] = True,
    allow_urls: Annotated[
        bool,
        typer.Option("--allow-urls", help="Fetch URLs, also of object storage (s3, gs, …); at most 50 MB, 30 s each."),
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
    existing: Annotated[
        Existing,
        typer.Option(
            metavar="WHAT", rich_help_panel=OUTPUT,
            help="If there are captions already: skip (keep them, caption only other images), overwrite, error, or, "
            "for sidecars, append or prepend (add lines).",
        ),
    ] = "skip",
    overwrite: Annotated[bool, typer.Option("--overwrite", hidden=True)] = False,
    caption_extension: Annotated[
        str, typer.Option(metavar="SUFFIX", rich_help_panel=OUTPUT, help="The end of the names of sidecars.")
    ] = ".txt",
    separate: Annotated[
        bool,
        typer.Option(
            "--separate", rich_help_panel=OUTPUT,
            help="With --count, a sidecar for each caption (photo.txt, photo_2.txt) in place of a line.",
        ),
    ] = False,
    before: Annotated[
        str,
        typer.Option(
            metavar="TEXT", rich_help_panel=OUTPUT, show_default=False,
            help="Put this before each caption as it is, e.g. a trigger word: 'ohwx, '. Unlike --prompt it does not "
            "change what the captioner says.",
        ),
    ] = "",
    after: Annotated[
        str,
        typer.Option(metavar="TEXT", rich_help_panel=OUTPUT, show_default=False, help="Put this after each caption."),
    ] = "",
    template: Annotated[
        str,
        typer.Option(
            metavar="TEXT", rich_help_panel=OUTPUT,
            help="What is written for a caption; {name} is the name of the image's file without suffix, {folder} "
            "that of its folder.",
        ),
    ] = "{caption}",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=OUTPUT,
            help="Print which images would be captioned, and write nothing.",
        ),
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
    forbid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD", rich_help_panel=DECODING, show_default=False,
            help="A word or phrase that no caption has; several: --forbid photo --forbid image.",
        ),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD", rich_help_panel=DECODING, show_default=False,
            help="A word or phrase that every caption has, as it is given or with a capital; several: --force dog "
            "--force ball. With --decode beam.",
        ),
    ] = None,
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
    consensus: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", rich_help_panel=DECODING, show_default=False,
            help="A feature store with captions by people, made with the captioner's encoder: of the candidates, keep "
            "those that agree most with the captions of it that are nearest to the image; e.g. with --rerank 20 "
            "--set beams=20.",
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
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", show_default=False, help="Threads that read images (default: one a core, at most 8)."
        ),
    ] = None,
    device: Device = "auto",
    engine: Annotated[
        Literal["ray"] | None,
        typer.Option(
            metavar="NAME", show_default=False,
            help="ray: caption on a Ray cluster, that of $RAY_ADDRESS or else of this machine's processors, by a "
            "captioner for each GPU or core, each with --workers of its own; the output is the same.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="NAME", show_default=False,
            help="Of the language model's weights: float32, or bfloat16 or float16 for half the memory (default: "
            "as saved).",
        ),
    ] = None,
    quantization: Annotated[
        Quantization | None,
        typer.Option(
            metavar="NAME", show_default=False,
            help="Of the language model's weights: 8bit or 4bit, of a large one (default: as saved).",
        ),
    ] = None,
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
    if overwrite:
        print("warning: --overwrite is now --existing overwrite", file=sys.stderr)
        existing = "overwrite"
    wording = Wording(before, after, template)
    # `--set beams=10 max_tokens=20`: the second word arrives among the inputs.
    words = [word for word in inputs or () if not _is_setting(word)] + (read_list(filelist) if filelist else [])
    images = find_images(words, allow_urls, recursive)
    options = read_options(decode, [*(settings or []), *filter(_is_setting, inputs or ())])
    if force:
        check_force(force, forbid or (), decode)
    texts = dict(zip(images, read_prompts(prompts, images), strict=True)) if prompts else None
    destination = Destination(images, form, out, existing, count, caption_extension, separate)
    left = [image for image in images if image not in destination.done]
    if len(left) < len(images):
        have = f"{len(images) - len(left):,} of {len(images):,} images have captions already"
        print(f"{have}; --existing overwrite replaces them", file=sys.stderr)
    if dry_run:
        for image in left:
            print(image, *(destination.sidecars(image) if form == "sidecar" else ()), sep="\t")
        return
    if not left:
        return
    batches = plan_batches(images, batch_size, destination.done, "seed" in options, texts)
    how: dict[str, Any] = {
        "ckpt": ckpt, "device": device, "tokenizer": tokenizer,
        "precision": {"dtype": dtype, "quantization": quantization}, "decode": decode, "options": options,
        "count": count, "rerank": rerank, "similarity": False if form in WITHOUT_SIMILARITY else similarity,
        "prompt": prompt, "forbid": forbid or (), "force": force or (), "datastore": datastore,
        "consensus": consensus, "batch_size": batch_size, "workers": workers,
    }  # fmt: skip
    shape = shape_for(device, workers) if engine else None  # before `Stop`: Ray has a handler of SIGTERM of its own
    stop, skipped, written = Stop(), list[str](), 0
    try:
        # On standard output are captions and nothing else: not what Ray prints of a worker that died.
        with stop, destination.open() as output, redirect_stdout(sys.stderr):
            warnings.filterwarnings("ignore", module="PIL")  # about damaged metadata and large images
            # imports torch: after the options are checked
            captioner: BatchCaptioner | ClusterCaptioner
            captioner = ClusterCaptioner(shape, how) if shape else BatchCaptioner(**how)
            results = with_bar(captioner.caption(batches), len(images), len(images) - len(left))
            with closing(results):
                for rows, unreadable in results:
                    skipped += unreadable
                    if not rows:
                        continue
                    worded = [row._replace(captions=wording.of(row.captions, row.image)) for row in rows]
                    with stop.deferred():
                        output.add(worded)
                        written += len(rows)
            if not written:
                raise InputError(f"none of {len(left):,} images could be read: {skipped[0]}")
    except KeyboardInterrupt:
        pass
    except OSError as error:
        if not no_space(error):
            raise
        done = (
            f"{out or 'the output'} has the captions of {len(images) - len(left) + written:,} of {len(images):,} images"
        )
        raise InputError(f"no space left on the disk: {done}; free some, and caption the others") from error
    if skipped:
        more = [f"and {len(skipped) - MAX_LISTED:,} more"] if len(skipped) > MAX_LISTED else []
        reasons = "".join(f"\n  {' '.join(line.split())}" for line in [*skipped[:MAX_LISTED], *more])
        print(f"skipped {len(skipped):,} of {len(images):,} images:{reasons}", file=sys.stderr)
    if stop.signal is not None:
        have = f"{len(images) - len(left) + written:,} of {len(images):,} images have captions"
        print(f"stopped: {have}", file=sys.stderr)
        raise typer.Exit(128 + stop.signal)
    if skipped:
        raise typer.Exit(1)


def read_options(decode: str, settings: Sequence[str]) -> dict[str, Any]:
    """The options of a decoder in words NAME=VALUE.

    Raises:
        InputError: the decoder has no such option, or a value has the wrong type.
    """
    from prefixcap.decoding import decoder_options, draws

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
        check_value("seed", options["seed"], Seed)
    return options


def check_force(force: Sequence[str], forbid: Sequence[str], decode: str) -> None:
    """Raise InputError unless words can be forced: by this decoder, and if none is forbidden."""
    from prefixcap.decoding import own_options

    if "force_words_ids" not in own_options(decode):
        raise InputError(f"--force needs beam search, and --decode {decode} is none: give --decode beam")
    for word in forbid:
        for forced in force:
            if word.strip() and re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", forced, re.IGNORECASE):
                raise InputError(f"--force '{forced}' has '{word.strip()}', which --forbid rules out: omit one of them")


def _is_setting(word: str) -> bool:
    return re.fullmatch(r"[a-z_]+=[^/]*", word) is not None and not Path(word).exists()
