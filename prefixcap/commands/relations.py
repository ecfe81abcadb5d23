"""`prefixcap relations`: the Visual Relations benchmark; see conf/relations.yaml."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from prefixcap.commands.common.checks import STEERED
from prefixcap.commands.common.hydra_main import run
from prefixcap.demo import language_model_beside
from prefixcap.demo.relations import write_relations
from prefixcap.errors import InputError, spell_options
from prefixcap.utils.deferred import deferred_imports
from prefixcap.utils.files import Journal, atomic_write_text
from prefixcap.utils.hardware import usable_device

with deferred_imports():  # what follows imports torch: it waits until the options are checked
    from prefixcap.captioner import Captioner, load
    from prefixcap.commands.common.steering import load_steered
    from prefixcap.zeroshot.arithmetic import encoder_of
    from prefixcap.zeroshot.magic import Magic
    from prefixcap.zeroshot.relations import Relation, answer, read_relations, recalled, score, table
    from prefixcap.zeroshot.zerocap import ZeroCap


def main(config: DictConfig) -> None:
    out, method = Path(config.out), config.get("method")
    if out.is_file():
        raise InputError(f"out={out} is a file: name a folder for the results")
    if bool(config.ckpt) == bool(method):
        raise InputError("give the captioner that answers, ckpt=PATH or method=NAME, e.g. method=zerocap_arithmetic")
    file = Path(config.relations or write_relations(Path(config.root)))
    relations = choose(read_relations(file), config)
    captioner = load_captioner(config)
    encoder, options = encoder_of(captioner), {}
    job: dict[str, Any] = {"relations": str(file.resolve()), "encoder": encoder.identity.digest}
    job["language model"] = captioner.language_model.name
    if method:
        job["method"] = OmegaConf.to_container(method)
    else:
        options = {("decode" if name == "method" else name): value for name, value in config.decode.items()}
        job |= {"checkpoint": str(Path(config.ckpt).resolve()), "decode": OmegaConf.to_container(config.decode)}
    journal = Journal(out / "written.jsonl", job)
    with spell_options("decode.{}".format):
        captions = answer(captioner, relations, file.parent, journal, config.batch_size, True, **options)
    scores = score(relations, captions, encoder)
    answers = [
        {
            "relation": relation.name,
            "expression": relation.expression,
            "answer": relation.answer,
            "caption": caption,
            "recalled": recalled(caption, relation.answer),
        }
        for relation, caption in zip(relations, captions, strict=True)
    ]
    atomic_write_text(out / "relations.json", json.dumps({"scores": scores, "job": job, "answers": answers}, indent=1))
    print(f"{len(relations):,} relations\n\n{table(scores)}\n")
    if skipped := getattr(captioner, "skipped", 0):
        print(f"{skipped:,} steps of gradient descent were left out: the gradient was not finite\n")
    print(f"results: {out}/ (relations.json, written.jsonl)")


def load_captioner(config: DictConfig) -> ZeroCap | Magic | Captioner:
    """The captioner that answers: a trained one, or a language model that CLIP steers."""
    if config.ckpt:
        return load(config.ckpt, usable_device(config.device))
    method, is_demo = config.method, not config.relations
    if method.name not in STEERED:
        raise InputError(f"method={method.name} cannot answer: give a method that CLIP steers, or ckpt=PATH")
    encoder = method.encoder or ("demo" if is_demo else "clip:ViT-B/32")
    lm = method.lm or language_model_beside(encoder, "demo" if is_demo else "gpt2-medium")
    return load_steered(method, encoder, lm, config.device)


def choose(relations: list[Relation], config: DictConfig) -> list[Relation]:
    """The first relations of each chosen name."""
    available = list(dict.fromkeys(relation.name for relation in relations))
    names = available if config.names is None else [config.names] if isinstance(config.names, str) else config.names
    if unknown := [name for name in names if name not in available]:
        raise InputError(f"there are no relations '{unknown[0]}': choose from {', '.join(available)}")
    if config.first is not None and config.first < 1:
        raise InputError(f"first must be at least 1, or null for all relations, not {config.first}")
    return [
        relation
        for name in names
        for relation in [relation for relation in relations if relation.name == name][: config.first]
    ]


if __name__ == "__main__":
    run(main, "relations")
