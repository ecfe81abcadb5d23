"""SPICE (Anderson et al., 2016: "SPICE: Semantic Propositional Image Caption Evaluation").

The F score of the objects, attributes and relations of a caption against those of all its references together, by
the Java program of the COCO caption tools and the parser of Stanford CoreNLP 3.6.0. Parsing takes nearly all of
the time, so that the parse of every text is kept, in the user's cache folder.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from functools import cache

from tqdm import tqdm

from prefixcap.errors import InputError
from prefixcap.metrics.cache import digest_of
from prefixcap.metrics.java import ASSETS, failure, run_java, tools_folder
from prefixcap.metrics.metric import Metric, MetricUnavailable, Statistics, mean_of
from prefixcap.metrics.spice_setup import CORENLP_FILES, is_set_up, spice_folder
from prefixcap.utils.hardware import cpu_count, memory_bytes

_MOST_HEAP = 8 << 30  # what the COCO tools ask for
# Images that one run of the program scores: fewer where texts are parsed, which takes minutes. Then the new parses are
# saved, so that a run that was interrupted continues there.
_IMAGES_AT_ONCE, _NEW_IMAGES_AT_ONCE = 2000, 500

_Parses = dict[str, list[list[str]]]


class Spice(Metric):
    """SPICE, 0 to 1: the mean over images of the F score of all tuples.

    Examples:
        >>> Spice().statistics(["a dog runs"], [["the dog runs", "a cat"]])  # doctest: +SKIP
        array([[0.8, 1. ]])
    """

    name = "SPICE"
    scores = ("SPICE",)
    runs_java = True
    english_only = True

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
        """(n, 2) = (F score, 1); see `prefixcap.metrics.Metric`."""
        try:
            ready = is_set_up()
        except InputError as error:
            raise MetricUnavailable(f"SPICE has no folder for its files: {error}, and score again") from error
        if not ready:
            raise MetricUnavailable(
                "SPICE needs Stanford CoreNLP 3.6.0: run `prefixcap setup-spice` once, and score again"
            )
        images = [
            [_well_formed(text) for text in (caption, *texts)]
            for caption, texts in zip(captions, references, strict=True)
        ]
        file = spice_folder() / f"parses-{_parser()}.sqlite"
        scores: list[float] = []
        # On a terminal, from ten seconds on: how far it is, and how long it will take.
        bar = tqdm(total=len(images), desc="SPICE", unit=" images", delay=10, disable=None)
        try:
            with closing(sqlite3.connect(file, timeout=600)) as kept, bar:
                kept.execute("CREATE TABLE IF NOT EXISTS parses (text TEXT PRIMARY KEY, tuples TEXT NOT NULL)")
                while len(scores) < len(images):
                    part, parses = _next_part(kept, images[len(scores) : len(scores) + _IMAGES_AT_ONCE])
                    part_scores, new = _run(part, parses)
                    scores += part_scores
                    bar.update(len(part))
                    with kept:  # one transaction; another process may have parsed the same texts meanwhile
                        rows = [(text, json.dumps(tuples)) for text, tuples in new.items()]
                        kept.executemany("INSERT OR IGNORE INTO parses VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise MetricUnavailable(
                f"SPICE cannot keep its parses in {file} ({error}): see that you may write to that folder, or delete "
                "the file if it is damaged, and score again"
            ) from error
        return mean_of(scores)


@cache
def _parser() -> str:
    """A digest of what parses: other code, or another release of CoreNLP, gives other parses."""
    code = digest_of(ASSETS.glob("SpiceScores*.class"))
    return hashlib.sha256(code + "".join(CORENLP_FILES).encode()).hexdigest()[:16]


def _run(images: Sequence[Sequence[str]], parses: _Parses) -> tuple[list[float], _Parses]:
    """F scores of images (a caption and its references each), and the parses of those texts that had none."""
    jars = tools_folder("spice")
    corenlp = [spice_folder() / file for file in CORENLP_FILES]
    classes = (ASSETS, *corenlp, jars / "spice-1.0.jar", jars / "lib" / "*")
    options = [
        "-XX:+UseParallelGC",
        f"-Xmx{min(_MOST_HEAP, memory_bytes() // 2)}",
        "-cp",
        os.pathsep.join(map(str, classes)),
    ]
    task = json.dumps({"images": images, "parses": parses})
    printed = run_java("SPICE", [*options, "SpiceScores", str(cpu_count())], task)
    try:
        result = json.loads(printed)
    except ValueError as error:
        raise failure("SPICE", "".join(printed.splitlines()[-1:])) from error
    return result["scores"], result["parses"]


def _next_part(kept: sqlite3.Connection, images: list[list[str]]) -> tuple[list[list[str]], _Parses]:
    """The images that are scored next, with those parses of their texts that are kept."""
    known = _known(kept, {text for image in images for text in image})
    if any(text not in known for image in images for text in image):
        images = images[:_NEW_IMAGES_AT_ONCE]
    return images, {text: known[text] for image in images for text in image if text in known}


def _known(kept: sqlite3.Connection, texts: Collection[str]) -> _Parses:
    parses = {}
    for text in texts:
        row = kept.execute("SELECT tuples FROM parses WHERE text = ?", (text,)).fetchone()
        if row is not None:
            parses[text] = json.loads(row[0])
    return parses


def _well_formed(text: str) -> str:
    """The text with ? in place of half a surrogate pair, which UTF-8 cannot encode."""
    return text.encode(errors="replace").decode()
