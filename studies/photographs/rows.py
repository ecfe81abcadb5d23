"""The rows of the table as data: how each captioner is trained, and how it is evaluated.

In options, RUN stands for the folder of the row's own run. The recipes are `conf/experiment/flickr8k_*.yaml`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

FLICKR8K, COCO = Path("stores/flickr8k-photo"), Path("stores/coco_text-photo")
FLICKR30K = Path("stores/flickr30k_text-photo")  # only captions are retrieved from it
OBJECTS = Path("objects.txt")  # the vocabulary of entities
SMALL, SMOLLM2 = Path("language_models/small"), Path("language_models/smollm2")

IMAGES = ("data=flickr8k", f"data.store={FLICKR8K}", "data.default_encoder=photo")
SEEDS = (0, 1, 2)

VARIANCES, TEMPERATURES, CANDIDATES = (0.001, 0.004, 0.016, 0.064), (0.01, 0.02, 0.04, 0.08), (1, 5, 10, 20)
NEAREST = (50, 100, 200)
# What a supervised captioner is trained with, one change from the recipe each.
CHANGES = {
    "rate-5e-4": "optimizer.learning_rate=5e-4",
    "rate-2e-3": "optimizer.learning_rate=2e-3",
    "warmup-400": "optimizer.warmup_steps=400",
    "dropout-0": "lm.scratch={n_layer: 4, embd_pdrop: 0.0, resid_pdrop: 0.0, attn_pdrop: 0.0}",
    "dropout-0.2": "lm.scratch={n_layer: 4, embd_pdrop: 0.2, resid_pdrop: 0.2, attn_pdrop: 0.2}",
    "attention-dropout-0": "lm.scratch={n_layer: 4, embd_pdrop: 0.1, resid_pdrop: 0.1, attn_pdrop: 0.0}",
    "prefix-4": "model.mapper.prefix_length=4",
    "prefix-16": "model.mapper.prefix_length=16",
    "length-1": "model.normalize_embeddings=true",
    "epochs-8": "trainer.max_epochs=8",
}
NOISE = "model.noise={kind: dimensions, share: 0.1, variance: 0.016}"  # for embeddings of length one

# The weighted mean of the training captions that are nearest to a photograph, as in DeCap, in place of its embedding.
PROJECTION = (f"memory={FLICKR8K}", "memory_temperature=0.04")
PROJECTED = (*PROJECTION, "decode.beams=10", "decode.rerank=10")
# Of twenty captions the one that agrees most with the training captions that are nearest to the photograph.
TWENTY = ("decode.beams=20", "decode.rerank=20")
CONSENSUS = (*TWENTY, f"consensus={FLICKR8K}")

SELF_CRITICAL = "model.objective=scst"

METRICS = ("BLEU", "METEOR", "CIDEr", "SPICE")

Part = Literal[
    "supervised", "text only, of Flickr8k", "text only, of COCO", "zero-shot", "with prompts", "chosen on validation"
]


@dataclass(frozen=True)
class Row:
    """How a row of the table is computed.

    Attributes:
        part: of the table.
        label: its name in it.
        train: options of the training; rows with the same options share a run. Empty: nothing is trained.
        evaluate: options of `eval`, besides those of the images and the metrics.
        command: what trains: train; or train-lm, a language model.
        start: the row from whose best checkpoint the training starts.
        same_as: score the captions of this row, and nothing else, ...
        images_of: ... for the images that this row captions.
        needs: the stores, vocabularies and language models that it reads, besides the store of Flickr8k.
        seeds: random seeds, unless --seeds gives others; one where nothing is random.
        split: whose photographs are captioned.
    """

    part: Part
    label: str
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    command: Literal["train", "train-lm"] = "train"
    start: str | None = None
    same_as: str | None = None
    images_of: str | None = None
    needs: tuple[Path, ...] = ()
    seeds: tuple[int, ...] = (0,)
    split: Literal["test", "val"] = "test"


def supervised() -> dict[str, Row]:
    """Captioners that learn from photographs with captions."""

    def row(label: str, experiment: str, lm: Path) -> Row:
        return Row("supervised", label, (f"experiment=flickr8k_{experiment}",), needs=(lm,))

    # The mapper reads embeddings of length one, as it did when it learned from COCO's captions.
    further = (
        "experiment=flickr8k_mlp", "model.normalize_embeddings=true", "optimizer.learning_rate=7e-4",
        "trainer.max_epochs=8", "trainer.check_val_every_n_epoch=2",
    )  # fmt: skip
    scst = (
        SELF_CRITICAL, "data.group_captions=true", "optimizer.learning_rate=5e-5", "optimizer.warmup_steps=20",
        "trainer.max_epochs=2",
    )  # fmt: skip
    photos = Row("supervised", "MLP, after COCO's captions", further, start="coco-capdec", needs=(COCO, SMALL))
    self_critical = Row("supervised", "that, then self-critical training", scst, start="photos", needs=(COCO, SMALL))
    of_five, projected = "that, the nearest of five captions", "that, photographs projected, the nearest of ten"
    return {
        "mlp": row("MLP, language model from scratch", "mlp", SMALL),
        "transformer": row("transformer, language model from scratch", "transformer", SMALL),
        "smollm2-frozen": row("MLP, SmolLM2 frozen", "smollm2_frozen", SMOLLM2),
        "smollm2-lora": row("MLP, SmolLM2 with adapters", "smollm2_lora", SMOLLM2),
        "smollm2-full": row("MLP, SmolLM2 tuned", "smollm2_full", SMOLLM2),
        "photos": photos,
        "photos-of-five": replace(photos, label=of_five, evaluate=("decode.rerank=5",)),
        "photos-projected": replace(photos, label=projected, evaluate=PROJECTED),
        "photos-consensus": replace(
            photos, label="that, photographs projected, the consensus of twenty", evaluate=(*PROJECTION, *CONSENSUS)
        ),
        "scst": self_critical,
        "scst-consensus": replace(
            self_critical,
            label="that, photographs projected, the consensus of twenty",
            evaluate=(*PROJECTION, *CONSENSUS),
        ),
    }


def text_only(part: Part, prefix: str, data: str, store: Path) -> dict[str, Row]:
    """Captioners that learn from captions alone; the same ones whichever captions these are."""
    from_text = (f"data={data}", f"data.store={store}")
    memory = f"memory={store}"

    def row(label: str, experiment: str, *evaluate: str, train: tuple[str, ...] = ()) -> Row:
        options = (f"experiment=flickr8k_{experiment}", *from_text, *train)
        return Row(part, label, options, evaluate, needs=(store, SMALL), seeds=SEEDS)

    maccap, consensus = ("decode=maccap", "regions=0"), (*TWENTY, f"consensus={store}")
    without_noise, papers_noise = ("model.noise.variance=0.0",), ("model.noise.variance=0.016",)
    less_noise, less = ("model.noise.variance=0.004",), (*maccap, "decode.noise=0.004")
    rows = {
        "clipre": Row(part, "CLIPRe: the nearest caption", (), ("method=clipre", memory), needs=(store,)),
        "baseline": row("Baseline: no noise", "baseline"),
        "capdec": row("CapDec: noise of variance 0.016", "capdec", train=papers_noise),
        "capdec-consensus": row("that, the consensus of twenty", "capdec", *consensus, train=papers_noise),
        "capdec-less-noise": row("CapDec: noise of variance 0.004", "capdec"),
        "capdec-less-noise-consensus": row("that, the consensus of twenty", "capdec", *consensus),
        "decap": row("DeCap: the Baseline, images projected", "baseline", memory),
        "maccap": row("MacCap, 20 candidates", "maccap", *maccap),
        "maccap-one": row("MacCap, one candidate", "maccap", *maccap, "decode.rerank=1"),
        "maccap-less-noise": row("MacCap, noise of variance 0.004, 20 candidates", "maccap", *less, train=less_noise),
        "maccap-less-noise-one": row(
            "MacCap, noise of variance 0.004, one candidate", "maccap", *less, "decode.rerank=1", train=less_noise
        ),
        "maccap-without-noise": row(
            "MacCap without noise", "maccap", "decode=beam", "decode.beams=4", "regions=0", train=without_noise
        ),
    }
    return {prefix + name: row for name, row in rows.items()}


def chosen() -> dict[str, Row]:
    """Rows of Flickr8k with other values of what the papers or the recipe choose, on validation photographs."""
    rows = text_only("chosen on validation", "", "flickr8k", FLICKR8K)
    for name in ("mlp", "photos", "photos-projected", "photos-consensus"):
        rows[name] = replace(supervised()[name], part="chosen on validation")

    def row(name: str, label: str, *evaluate: str, train: tuple[str, ...] = ()) -> Row:
        like = rows[name]
        train, evaluate = (*like.train, *train), (*like.evaluate, *evaluate)
        return replace(like, label=label, train=train, evaluate=evaluate, seeds=(0,), split="val")

    variances = {value: () if value == 0.004 else (f"model.noise.variance={value}",) for value in VARIANCES}
    return {
        **{
            f"capdec-{value}": row("capdec-less-noise", f"CapDec, variance {value}", train=option)
            for value, option in variances.items()
        },
        **{f"decap-{t}": row("decap", f"DeCap, temperature {t}", f"memory_temperature={t}") for t in TEMPERATURES},
        "photos-alone": row("photos", "photos, not projected"),
        **{
            f"photos-projected-{t}": row("photos-projected", f"photos, temperature {t}", f"memory_temperature={t}")
            for t in TEMPERATURES
        },
        **{
            f"photos-consensus-{n}": row("photos-consensus", f"photos, {n} nearest captions", f"consensus_nearest={n}")
            for n in NEAREST
        },
        "mlp-recipe": row("mlp", "MLP, by the recipe"),
        **{f"mlp-{change}": row("mlp", f"MLP, {option}", train=(option,)) for change, option in CHANGES.items()},
        "mlp-noise": row("mlp", f"MLP, embeddings of length one, {NOISE}", train=(CHANGES["length-1"], NOISE)),
        **{
            f"maccap-{number}": row("maccap", f"MacCap, candidates: {number}", f"decode.rerank={number}")
            for number in CANDIDATES
        },
    }


def zero_shot() -> dict[str, Row]:
    """What needs no training with images or their embeddings, on 100 photographs."""

    def row(label: str, *evaluate: str, train: tuple[str, ...] = (), needs: tuple[Path, ...] = (SMOLLM2,)) -> Row:
        command: Literal["train", "train-lm"] = "train-lm" if train else "train"
        options = ("method.encoder=photo", "limit=100", *evaluate)
        return Row("zero-shot", label, train, options, command, needs=needs)

    smollm2, prompt = f"method.lm={SMOLLM2}", "method.prompt=Image of a"
    # MiniLM reads each candidate anew: of 512, a photograph takes minutes. Captions are kept after each batch.
    zerocap = (smollm2, "method.candidates=128", "method.encoder_dtype=bfloat16", "batch_size=4")
    captions = (
        "data=flickr8k", f"data.store={FLICKR8K}", "encoder=photo", "lm=small",
        "optimizer.learning_rate=1e-3", "trainer.max_steps=940", "trainer.val_check_interval=235",
    )  # fmt: skip
    captions_lm = "method.lm=RUN/language_model"
    return {
        "language-model": row("language model alone", "method=magic", smollm2, prompt, "method.beta=0.0"),
        "magic": row("MAGIC", "method=magic", smollm2, prompt),
        "zerocap": row("ZeroCap", "method=zerocap", *zerocap),
        "arithmetic": row("ZeroCap as for arithmetic", "method=zerocap_arithmetic", *zerocap),
        "captions-model": row(
            "language model of captions alone", "method=magic", captions_lm, "method.beta=0.0",
            train=captions, needs=(SMALL,),
        ),
        "captions-magic": row(
            "MAGIC, language model of captions", "method=magic", captions_lm, train=captions, needs=(SMALL,)
        ),
        "clipre-100": Row(
            "zero-shot", "CLIPRe, the same photographs", same_as="clipre", images_of="language-model", needs=(SMOLLM2,)
        ),
    }  # fmt: skip


def with_prompts() -> dict[str, Row]:
    """Captioners that read captions like a photograph's, or the objects that these name, beside its embedding.

    Each is evaluated with several datastores: only what is retrieved changes, and the weights do not.
    """
    # The language model's context is of 128 tokens: the template is short, and COCO's longest caption has 57.
    captions = ("prompts=retrieved_captions", "prompts.template='{}'", "prompts.separator=' '")
    longest = {"flickr8k": 72, "coco": 63}
    objects = ("prompts=retrieved_entities", f"prompts.vocabulary={OBJECTS}", "prompts.least=3")
    stores = {"flickr8k": FLICKR8K, "coco": COCO, "flickr30k": FLICKR30K}
    from_coco = text_only("with prompts", "coco-", "coco_text", COCO)["coco-capdec"]
    rows = {
        "photos": ("flickr8k", supervised()["photos"]),
        "mlp": ("flickr8k", supervised()["mlp"]),
        "capdec": ("flickr8k", text_only("with prompts", "", "flickr8k", FLICKR8K)["capdec"]),
        "coco-capdec": ("coco", replace(from_coco, label="CapDec of COCO's captions")),
    }
    made = {}
    for name, (own, row) in rows.items():
        short = (*captions, f"prompts.max_prompt_tokens={longest[own]}")
        for kind, prompts, needs in (("captions", short, ()), ("objects", objects, (OBJECTS,))):
            train = (*row.train, *prompts, "val_max_tokens=40")
            for store, path in sorted(stores.items(), key=lambda pair: pair[0] != own):
                made[f"{name}-{kind}-{store}"] = replace(
                    row,
                    part="with prompts",
                    label=f"{row.label}; {kind} of {store}",
                    train=train,
                    evaluate=(f"datastore={path}", "decode.max_tokens=40"),
                    needs=tuple(dict.fromkeys((*row.needs, path, *needs))),
                )
    best = made["photos-captions-flickr8k"]
    return made | {
        f"photos-captions-{name}": replace(
            best,
            label=f"{best.label}, photographs projected, the {chosen} of {many}",
            evaluate=(*best.evaluate, *options),
        )
        for name, chosen, many, options in (
            ("projected", "nearest", "ten", PROJECTED),
            ("consensus", "consensus", "twenty", (*PROJECTION, *CONSENSUS)),
        )
    }


ROWS: dict[str, Row] = {
    **supervised(),
    **text_only("text only, of Flickr8k", "", "flickr8k", FLICKR8K),
    **text_only("text only, of COCO", "coco-", "coco_text", COCO),
    **zero_shot(),
    **with_prompts(),
    **chosen(),
}

PAIRS = (
    [
        (prefix + first, prefix + second)
        for prefix in ("", "coco-")
        for first, second in (
            ("capdec", "baseline"),  # noise over none
            ("capdec-less-noise", "baseline"),
            ("capdec-less-noise", "capdec"),
            ("maccap-one", "maccap-without-noise"),
            ("maccap", "capdec"),
            ("maccap", "capdec-less-noise"),
            ("maccap-less-noise", "maccap"),
            ("maccap-less-noise", "capdec-less-noise"),
            ("maccap-less-noise-one", "maccap-without-noise"),
            ("decap", "baseline"),  # a projection over none
            ("capdec-consensus", "capdec"),  # a choice over none
            ("capdec-less-noise-consensus", "capdec-less-noise"),
        )
    ]
    + [("photos-consensus", "photos-projected"), ("photos-captions-consensus", "photos-captions-projected")]
    + [(f"mlp-{change}", "mlp-recipe") for change in (*CHANGES, "noise")]
    + [(f"capdec-{variance}", "capdec-0.016") for variance in VARIANCES if variance != 0.016]
    + [
        (f"{name}-{kind}-{store}", other)
        for name, own in (("photos", "flickr8k"), ("mlp", "flickr8k"), ("capdec", "flickr8k"), ("coco-capdec", "coco"))
        for kind in ("captions", "objects")
        for store, other in (
            (own, name),  # something to read over nothing
            *((store, f"{name}-{kind}-{own}") for store in ("flickr8k", "coco", "flickr30k") if store != own),
        )
    ]
)
"""Which rows are compared: in most pairs the papers find the first one better."""

PUBLISHED: dict[str, dict[str, float]] = {
    "Karpathy and Fei-Fei 2015": {"BLEU-4": 0.160, "METEOR": 0.167, "CIDEr": 0.318},
    "Xu et al. 2015, hard attention": {"BLEU-4": 0.213, "METEOR": 0.203},
}
"""Published scores on the same 1,000 test photographs, 0 to 1."""
