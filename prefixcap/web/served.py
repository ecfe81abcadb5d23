"""The captioners of a server, by name, each with the requests that wait for it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from prefixcap.captioner import Captioner
from prefixcap.errors import InputError
from prefixcap.web.batcher import Batcher
from prefixcap.web.jobs import Job

MOST_CHARACTERS = 60  # of a captioner's name


class Served(NamedTuple):
    """A captioner that is served, and what gives it work."""

    name: str
    captioner: Captioner
    batcher: Batcher[Job, Any, Any]


def serve_each(captioners: Mapping[str, Captioner]) -> dict[str, Served]:
    """Captioners by name, the first by default. Equal encoders are kept in memory once.

    All work in one thread: encoders are shared, and tokenizers are not made for several at once. Two batches beside
    each other would not be done sooner.

    Raises:
        InputError: a name is empty, too long, or has characters that cannot be shown; an encoder cannot be loaded.
    """
    thread, encoders = ThreadPoolExecutor(1, "model"), dict[tuple[str, str], Captioner]()
    for name, captioner in captioners.items():
        if not 0 < len(name) <= MOST_CHARACTERS or not name.isprintable():
            raise InputError(f"{name!r:.100} is no name of a captioner: give 1 to {MOST_CHARACTERS} characters")
        first = encoders.setdefault((captioner.encoder_identity.name, str(captioner.device)), captioner)
        if first is not captioner:
            captioner.use_encoder(first.encoder())
    return {name: Served(name, each, Batcher(_work_of(each), thread=thread)) for name, each in captioners.items()}


def _work_of(captioner: Captioner) -> Any:
    def work(job: Job, items: list[Any]) -> Any:
        try:
            return job.run(captioner, items)
        except InputError as error:
            if len(items) == 1:
                return [error]
        return [work(job, [item])[0] for item in items]  # the mistake, e.g. a long prompt, may be in one of them only

    return work
