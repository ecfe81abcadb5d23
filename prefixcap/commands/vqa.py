"""`prefixcap vqa`: zero-shot visual question answering; see conf/vqa.yaml."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from omegaconf import DictConfig, OmegaConf

from data_prep.stores import open_store
from prefixcap.commands.common.hydra_main import run
from prefixcap.errors import InputError
from prefixcap.evaluation.caption_files import read_captions
from prefixcap.store import StoreSplit
from prefixcap.textonly.vqa_files import about, frequent_answers, read_questions, sample
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.hardware import usable_device
from prefixcap.utils.hub import naming

with deferred_imports():  # what follows imports torch: it waits until the options are checked
    from prefixcap.captioner import Captioner, load
    from prefixcap.commands.common.captioning import needed_feature, open_images, write_captions
    from prefixcap.encoders import Encoder, load_encoder
    from prefixcap.encoders.missing import missing_encoder
    from prefixcap.language import LanguageModel, load_language_model
    from prefixcap.textonly.vqa import ask


def main(config: DictConfig) -> None:
    if config.captions and config.get("data"):
        raise InputError("data= names images to caption, captions= their captions: give one of the two")
    if config.caption and not config.captions and not (config.ckpt and config.get("data")):
        raise InputError(
            "give ckpt=PATH and data=NAME to caption images, or captions=FILE, or caption=false to ask without captions"
        )
    if Path(config.out).is_file():
        raise InputError(f"out={config.out} is a file: name a folder for the results")
    questions = read_questions(config.questions, config.annotations)
    candidates = frequent_answers(config.train_annotations, config.candidates)
    captioner, language_model, encoder = load_models(config)
    captions = read_captions(config.captions) if config.captions else {}
    splits = open_splits(config, captioner, encoder) if config.get("data") else []
    left_out = None
    if config.captions or splits:  # also without captions, so that the questions are the same with and without
        images = captions or [image_id for split in splits for image_id in split.ids]
        questions, left_out = about(images, questions)
        if left_out:
            print(left_out)
    questions = sample(questions, config.sample, config.seed)
    if captioner is not None and config.caption and not config.captions:
        asked = {question.image_id for question in questions}
        for split in splits:
            rows = np.array([row for row, image_id in enumerate(split.ids) if image_id in asked], np.int64)
            with TemporaryDirectory() as folder:
                captions |= write_captions(config, captioner, split, Path(folder), rows)

    question_captions = [captions[question.image_id] if config.caption else None for question in questions]
    answered = ask(
        language_model, encoder, questions, question_captions, candidates, config.batch_size, True, **config.answers
    )
    settings = {
        "left out": left_out,
        "language model": language_model.name,
        "encoder": encoder.identity.name,
        "settings": OmegaConf.to_container(config, resolve=True),
    }
    files = answered.write(Path(config.out), settings)
    print(
        f"{len(questions):,} questions, {len(candidates):,} candidates; {100 * answered.reachable:.2f}% of the true "
        f"answers are candidates\n\n{answered.table()}\n\nresults: {config.out}/ ({', '.join(files)})"
    )


def load_models(config: DictConfig) -> tuple[Captioner | None, LanguageModel, Encoder]:
    """The captioner, if there is one, with the language model that answers and the encoder that compares answers: those
    of the captioner, unless others are named."""
    device = usable_device(config.device)
    captioner = load(config.ckpt, device) if config.ckpt else None
    language_model = captioner.language_model if captioner is not None else None
    encoder = None
    name = config.encoder.name if config.get("encoder") else None
    if config.get("lm"):
        lm = config.lm
        with naming(missing_encoder, name or "demo"):
            language_model = load_language_model(lm.name, dtype=lm.dtype, quantization=lm.quantization).to(device)
    elif language_model is None and name == "demo":
        language_model = load_language_model("demo").to(device)
    if name:
        encoder = load_encoder(name, device)
    elif captioner is not None:
        encoder = captioner.encoder()
    if language_model is None or encoder is None:
        raise InputError(
            "give the models that answer: ckpt=PATH, or lm=NAME encoder=NAME, e.g. lm=opt_1_3b encoder=clip_vit_b32"
        )
    return captioner, language_model, encoder


def open_splits(config: DictConfig, captioner: Captioner | None, encoder: Encoder) -> list[StoreSplit]:
    """The splits whose images questions may be about."""
    # Without captions any store that has the images will do.
    if captioner is None:
        store = open_store(config.data, encoder.identity.name)
    else:
        store = open_images(config.data, captioner, config.regions)
    splits = [store.split(name) for name in ([config.split] if config.split else store.splits)]
    if captioner is not None:
        for split in splits:
            split.feature(needed_feature(captioner, config.regions))  # reports a mistake before questions are read
    return splits


if __name__ == "__main__":
    run(main, "vqa")
