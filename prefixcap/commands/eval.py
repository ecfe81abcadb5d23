"""`prefixcap eval`: caption a split and score the captions, or score captions from a file; see conf/eval.yaml."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from data_prep.stores import open_store
from prefixcap.commands.common.hydra_main import run
from prefixcap.demo import language_model_beside
from prefixcap.demo.scenes import attribute_accuracy
from prefixcap.demo.world import ANNOTATIONS, read_scenes
from prefixcap.errors import InputError, listed, name_rows
from prefixcap.evaluation import Evaluation, evaluate
from prefixcap.evaluation.caption_files import read_candidates, read_references
from prefixcap.evaluation.comparison import compare
from prefixcap.evaluation.instances import read_instances
from prefixcap.metrics import check_metrics
from prefixcap.metrics.metric import Captions, ImageId
from prefixcap.metrics.pairwise import TESTS
from prefixcap.metrics.registry import needed_inputs
from prefixcap.metrics.tokenizers import check_tokenizer
from prefixcap.store import FeatureStore
from prefixcap.store.named import open_training_store
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.hardware import usable_device
from prefixcap.utils.hub import missing_language_model, naming
from prefixcap.utils.image_ids import by_image
from prefixcap.vocabulary import Vocabulary

with deferred_imports():  # what follows imports torch: it waits until the options are checked
    import torch

    from prefixcap.captioner import Captioner, load
    from prefixcap.commands.common.captioning import (
        leak_notes,
        open_images,
        open_memory,
        remove_kept,
        write_captions,
        write_resumably,
    )
    from prefixcap.commands.common.prompting import change_prompts
    from prefixcap.commands.common.steering import load_steered
    from prefixcap.data import require_match
    from prefixcap.encoders import Encoder, load_encoder
    from prefixcap.language import LanguageModel, load_language_model
    from prefixcap.metrics.text_encoder import load_text_encoder

# What `evaluate` takes besides the captions, the images and the models of the captioner.
Inputs: TypeAlias = dict[str, Any]

# What a metric may need, and the options that give it.
_REMEDIES = {
    "embeddings": "the images' embeddings: give ckpt=PATH, or captions=FILE with data=…",
    "candidates": "several captions of each image: give captions=FILE with them",
    "text_encoder": "an encoder of texts: name one with text_encoder=…, e.g. roberta-large",
    "language_model": "a language model: name one with perplexity_lm=…, e.g. gpt2",
    "vocabulary": "the names to look for: give vocabulary=FILE, one name a line",
}


def main(config: DictConfig) -> None:
    method = config.get("method")
    if sum(bool(given) for given in (config.ckpt, method, config.captions, config.compare)) != 1:
        raise InputError(
            "give one of: ckpt=PATH or method=NAME, to caption and score; captions=FILE, to score existing captions; "
            "compare=[FOLDER,FOLDER,…], to compare evaluations"
        )
    if config.references and (config.ckpt or method or config.compare or config.get("data")):
        raise InputError(
            "references= is for captions=FILE without data=, which has its own references: leave references= out"
        )
    if config.instances is not None and config.compare:
        raise InputError("instances= is for scoring captions, not for compare=: leave it out")
    if config.test != "bootstrap" and not config.compare:
        raise InputError("test= is for compare=[FOLDER,FOLDER,…]: leave it out")
    if config.limit is not None and not (method and method.name != "clipre"):
        raise InputError("limit= is for method=zerocap or magic, which are slow: leave it out")
    if config.out and Path(config.out).is_file():
        raise InputError(f"out={config.out} is a file: name a folder for the results")
    if config.compare:
        compare_folders(config)
        return
    if config.subset and not config.captions:
        raise InputError(
            "subset=true is for captions=FILE, which may have captions for only some of the images: leave it out"
        )
    check_tokenizer(str(config.metric_tokenizer), "metric_tokenizer")
    config.metrics = _names(config, "metrics")
    given = {
        "embeddings": not config.captions or config.get("data"),
        "candidates": config.captions,
        "text_encoder": config.text_encoder,
        "vocabulary": config.vocabulary,
        "language_model": config.perplexity_lm or config.ckpt or (method and method.name != "clipre"),
    }
    check_metrics(config.metrics, [need for need, is_given in given.items() if is_given], _REMEDIES)
    inputs = read_inputs(config)
    evaluate_fn = evaluate_checkpoint if config.ckpt else evaluate_file
    if method:
        evaluate_fn = evaluate_retrieval if method.name == "clipre" else evaluate_zero_shot
    evaluation, folder, title = evaluate_fn(config, inputs)
    folder = Path(config.out or folder)
    evaluation.write(folder, title)
    if config.ckpt:
        remove_kept(folder)
    print(evaluation.table())
    print(f"\nresults: {folder}/ (metrics.json, captions.json, per_image.csv, report.html, statistics.npz)")


def read_inputs(config: DictConfig) -> Inputs:
    """What metrics read besides captions, references and images; refuses what no metric reads."""
    needed = needed_inputs(config.metrics)
    if config.instances is not None and "objects" not in needed:
        raise InputError("instances= is for metrics=[CHAIR]: leave it out, or name CHAIR in metrics=")
    if config.vocabulary is not None and "vocabulary" not in needed:
        raise InputError("vocabulary= is for metrics=[entities]: leave it out, or name entities in metrics=")
    if config.text_encoder and "text_encoder" not in needed:
        raise InputError(
            "text_encoder= is for metrics=[BERTScore], BERTScore-idf or sentence-similarity: leave it out, or name one"
        )
    if config.text_encoder_layer is not None and not config.text_encoder:
        raise InputError("text_encoder_layer= is a layer of text_encoder=NAME: leave it out, or name that")
    inputs: Inputs = {"tokenizer": str(config.metric_tokenizer)}
    if config.instances is not None:
        inputs["objects"] = read_instances(_names(config, "instances"))
    if config.vocabulary is not None:
        inputs["vocabulary"] = Vocabulary.read(config.vocabulary)
    if config.text_encoder:
        device = usable_device(config.device)
        inputs["text_encoder"] = load_text_encoder(config.text_encoder, config.text_encoder_layer, device)
    return inputs


def compare_folders(config: DictConfig) -> None:
    """Print which of several evaluations are better, and write it to `out=`."""
    given = config.compare if isinstance(config.compare, ListConfig) else [config.compare]
    systems = [[Path(str(run)) for run in (system if isinstance(system, ListConfig) else [system])] for system in given]
    if len(systems) < 2:
        raise InputError(f"compare takes two or more folders of evaluations, not {len(systems)}: compare=[A,B]")
    if config.test not in TESTS:
        raise InputError(f"unknown test={config.test}: choose from {', '.join(TESTS)}")
    if config.test == "randomization" and any(len(runs) > 1 for runs in systems):
        raise InputError("test=randomization exchanges captions, not runs: give one folder a system, or test=bootstrap")
    comparison = compare(*systems, test=config.test)
    if config.out:  # before it is printed, to what may end early
        comparison.write(Path(config.out))
    print(comparison.table())
    if config.out:
        print(f"\nresults: {config.out}/ (comparison.json, systems.csv, pairs.csv)")


def evaluate_checkpoint(config: DictConfig, inputs: Inputs) -> tuple[Evaluation, Path, str]:
    """Caption a split with a checkpoint and score it: the evaluation, its folder and its title."""
    captioner = load(config.ckpt, usable_device(config.device), config.tokenizer)
    if config.get("data"):
        store = open_images(config.data, captioner, config.regions)
    else:
        store = open_training_store(captioner.trained_on, config.ckpt)
        require_match(store, captioner)
    split = store.split(config.split)
    # What the metrics need is loaded first: generating captions takes long.
    encoder = _encoder(config, captioner)
    language_model = _language_model(config) or captioner.language_model
    change_prompts(captioner, config.prompts)
    if config.datastore:
        captioner.use_datastore(config.datastore)
    folder, title = _folder_and_title(config, store)
    captions = write_captions(config, captioner, split, Path(config.out or folder))
    training_store = None
    if "store" in captioner.trained_on:
        training_store = partial(open_training_store, captioner.trained_on, config.ckpt, store)
    evaluation = evaluate_split(config, store, captions, inputs, encoder, language_model, training_store)
    evaluation.notes += leak_notes(config, list(evaluation.references.values()))
    return evaluation, folder, title


def evaluate_retrieval(config: DictConfig, inputs: Inputs) -> tuple[Evaluation, Path, str]:
    """Retrieve for each image of a split the closest caption of a corpus (CLIPRe), and score these captions."""
    if not config.memory or not config.get("data"):
        raise InputError(
            "method=clipre needs memory=STORE, the captions to choose from, and the images, e.g. data=coco"
        )
    training_store = FeatureStore(config.memory)
    store = open_store(config.data, training_store.encoder.name)
    encoder = _encoder(config, store)
    language_model = _language_model(config)
    split, memory = store.split(config.split), open_memory(config, store.encoder)
    assert memory is not None
    with name_rows(split.ids):
        retrieved = memory.retrieve(torch.from_numpy(split.embeddings[:]))
    captions = dict(zip(split.ids, retrieved, strict=True))
    evaluation = evaluate_split(config, store, captions, inputs, encoder, language_model, lambda: training_store)
    name = re.sub(r"[^\w.]+", "-", f"{store.path.name}-{config.split}-from-{training_store.path.name}")
    return evaluation, Path("runs/eval/clipre") / name, name


def evaluate_zero_shot(config: DictConfig, inputs: Inputs) -> tuple[Evaluation, Path, str]:
    """Caption a split with a language model that CLIP steers, and score it; captions of an earlier start are kept."""
    if not config.get("data"):
        raise InputError(f"method={config.method.name} needs images, e.g. data=coco")
    encoder_name = config.method.encoder or config.data.default_encoder
    default_lm = "demo" if config.data.default_lm == "demo" else "gpt2-medium"
    lm_name = config.method.lm or language_model_beside(encoder_name, default_lm)
    with naming(missing_language_model, lm_name):
        store = open_store(config.data, encoder_name)
    captioner = load_steered(config.method, store.encoder.name, lm_name, config.device)
    encoder, lm = captioner.encoder.identity, captioner.language_model
    store.require_encoder(encoder)
    hydra = HydraConfig.get()
    chosen = [override for override in hydra.overrides.task if override.startswith(("method.", "limit="))]
    words = [store.path.name, config.split, *(override.removeprefix("method.") for override in chosen)]
    title = re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-")
    folder = Path(config.out or Path("runs/eval") / hydra.runtime.choices["method"] / title)
    job = {"method": config.method.name, "encoder": encoder.digest, "language model": lm.name, "images": store.location}
    job |= {"split": config.split, "limit": config.limit, "options": OmegaConf.to_container(config.method)}
    captions = write_resumably(captioner, store.split(config.split), config.limit, config.batch_size, folder, job)
    language_model = _language_model(config) or lm
    evaluation = evaluate_split(config, store, captions, inputs, _encoder(config, store), language_model)
    if skipped := getattr(captioner, "skipped", 0):
        evaluation.notes.append(f"{skipped:,} steps of gradient descent were left out: the gradient was not finite")
    return evaluation, folder, title


def _add_attribute_accuracy(evaluation: Evaluation, store: FeatureStore, captions: Captions) -> None:
    """In the small world, check whether what captions say is true."""
    if store.image_root is not None and (store.image_root / ANNOTATIONS).exists():
        scenes = read_scenes(store.image_root)
        if captions.keys() <= scenes.keys():
            accuracy = attribute_accuracy(list(captions.values()), [scenes[int(image_id)] for image_id in captions])
            evaluation.extra["right attributes"] = accuracy


def evaluate_file(config: DictConfig, inputs: Inputs) -> tuple[Evaluation, Path, str]:
    """Score the captions in a file against a file of references or a split of a data set."""
    file = Path(config.captions)
    candidates = read_candidates(file)
    captions = {image: texts[0] for image, texts in candidates.items()}
    several = sum(len(texts) > 1 for texts in candidates.values())
    notes = [f"{several:,} images have several captions: the first, the best, of each is scored"] if several else []
    if several and "candidates" in needed_inputs(config.metrics):
        notes[0] += ", except by set-diversity and mBLEU-4, which read all"
    language_model = _language_model(config)
    if config.get("data"):
        store = open_store(config.data, config.data.default_encoder)
        encoder = _encoder(config, store)
        if encoder is not None:
            store.require_encoder(encoder.identity)
        evaluation = evaluate_split(config, store, captions, inputs, encoder, language_model, candidates=candidates)
    else:
        references = read_references(config.references or file, config.split)
        captions, references, left_out = _same_images(config, captions, references)
        evaluation = evaluate(
            captions,
            references,
            config.metrics,
            language_model=language_model,
            candidates=by_image(candidates, references),
            **inputs,
        )
        evaluation.notes += left_out
        if "training_captions" in needed_inputs(config.metrics):
            evaluation.notes.append("Novel is missing: the training captions are not known; name them by data=")
    evaluation.notes += notes
    return evaluation, _below_runs(file), file.name


def _same_images(
    config: DictConfig,
    captions: dict[ImageId, str],
    references: dict[ImageId, list[str]],
    files: dict[ImageId, Path] | None = None,
) -> tuple[dict[ImageId, str], dict[ImageId, list[str]], list[str]]:
    """Captions and references by the same ids and in the same order, and notes on images that are left out."""
    captions = by_image(captions, references, files)
    missing = [repr(image) for image in references if image not in captions]
    notes: list[str] = []
    if missing and len(missing) < len(references):
        if not config.subset:
            raise InputError(
                f"no caption in {config.captions} for {len(missing):,} of {len(references):,} images "
                f"({listed('image', missing)}): caption these, too, or give subset=true to score only the others"
            )
        notes.append(f"subset: {len(references) - len(missing):,} of {len(references):,} images have a caption")
        references = {image: texts for image, texts in references.items() if image in captions}
    # As the COCO tools do, which read captions in the order of the images.
    ordered = {image: captions[image] for image in references if image in captions}
    return ordered | captions, references, notes


def evaluate_split(
    config: DictConfig,
    store: FeatureStore,
    captions: dict[ImageId, str],
    inputs: Inputs,
    encoder: Encoder | None,
    language_model: LanguageModel | None,
    training_store: Callable[[], FeatureStore] | None = None,
    candidates: dict[ImageId, list[str]] | None = None,
) -> Evaluation:
    """Score captions of a split of a store; `training_store` opens the store that the captioner was trained on."""
    split = store.split(config.split)
    training_captions, notes = _training_captions(config, store, training_store)
    # With limit= some images have no captions; otherwise that is a mistake, which `evaluate` reports.
    rows = [row for row, image_id in enumerate(split.ids) if config.limit is None or image_id in captions]
    references = split.references()
    files = {image_id: file for image_id, file in zip(split.ids, split.files, strict=True) if file is not None}
    if config.captions:
        captions, references, left_out = _same_images(config, captions, references, files)
        notes += left_out
        rows = [row for row in rows if split.ids[row] in references]
    evaluation = evaluate(
        captions,
        {split.ids[row]: references[split.ids[row]] for row in rows},
        config.metrics,
        files=files,
        domains={split.ids[row]: split.domains[row] for row in rows} if any(split.domains) else None,
        encoder=encoder,
        embeddings=torch.from_numpy(split.embeddings[rows]) if encoder is not None else None,
        language_model=language_model,
        training_captions=training_captions,
        candidates=None if candidates is None else by_image(candidates, references, files),
        **inputs,
    )
    evaluation.notes += notes
    _add_attribute_accuracy(evaluation, store, captions)
    return evaluation


def _training_captions(
    config: DictConfig, store: FeatureStore, training_store: Callable[[], FeatureStore] | None
) -> tuple[list[str] | None, list[str]]:
    """The training captions, against which diversity counts novel ones, and notes about them."""
    if "diversity" not in config.metrics:
        return None, []
    notes = []
    try:
        if training_store is not None:
            store = training_store()
        else:
            notes.append(f"Novel: not in the split 'train' of {store.location}; the training captions are not known")
        return store.split("train").captions[:], notes
    except InputError as error:
        return None, [f"Novel is missing: {error}"]


def _folder_and_title(config: DictConfig, store: FeatureStore) -> tuple[Path, str]:
    """The folder of a checkpoint's results, and their title: one for each checkpoint, split and way of decoding."""
    ckpt, hydra = Path(config.ckpt), HydraConfig.get()
    in_run = ckpt.resolve().parent.name == "checkpoints"
    options = [override.lstrip("+") for override in hydra.overrides.task]
    words = [store.path.name, config.split, hydra.runtime.choices["decode"]]
    words += [word.removeprefix("decode.") for word in options if word.startswith(("decode.", "prompts."))]
    words += [f"regions-{config.regions}"] if config.regions is not None else []
    for option in ("memory", "datastore", "consensus", "prompts_file"):
        words += [f"{option}-{Path(config[option]).name}"] if config[option] else []
    if in_run and ckpt.stem != "best":
        words.append(ckpt.stem)
    title = re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-")
    return (ckpt.resolve().parent.parent / "eval" if in_run else _below_runs(ckpt)) / title, title


def _below_runs(path: Path) -> Path:
    """A folder below `runs/eval` named by the full path, so that files of the same name have different folders."""
    parts = (path if path.is_dir() else path.with_suffix("")).parts
    return Path("runs/eval", *(part for part in parts if part not in (path.anchor, "..")))


def _names(config: DictConfig, option: str) -> list[str]:
    """The list of names that an option holds; a single name needs no brackets."""
    given = config[option]
    if not isinstance(given, ListConfig | str):
        raise InputError(f"{option}={given} is not a list of names: give {option}=[A,B]")
    return [given] if isinstance(given, str) else [str(name) for name in given]


def _encoder(config: DictConfig, source: Captioner | FeatureStore) -> Encoder | None:
    """The encoder of a captioner or a store, if a metric needs it. Raises InputError if it reads no texts."""
    if "encoder" not in needed_inputs(config.metrics):
        return None
    device = usable_device(config.device)
    encoder = source.encoder() if isinstance(source, Captioner) else load_encoder(source.encoder.name, device)
    encoder.encode_texts(["a"])
    return encoder


def _language_model(config: DictConfig) -> LanguageModel | None:
    """The language model that `perplexity_lm=` names, if a metric needs one."""
    if "language_model" not in needed_inputs(config.metrics) or not config.perplexity_lm:
        return None
    return load_language_model(config.perplexity_lm).to(usable_device(config.device))


if __name__ == "__main__":
    run(main, "eval")
