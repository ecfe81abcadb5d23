"""How long runs take on a GPU, computed from measured rates: tables of docs/use/gpus.md and docs/reproduce/index.md.

A token costs 6 floating-point operations for each parameter that is trained (2 forward, 4 backward) and 4 for each that
is frozen, as gradients pass through it to the prefix. Tokens are those of the prefix and of the caption, for batches
have next to no padding. A step takes some time for each transformer layer, whatever the batch: that in which its
kernels are launched; and the time of its operations, which overlaps with the launching unless the step is captured.
Measured are only the numbers in MEASURED, and the rates of DATA; all others follow. Validation, evaluation and
downloads come on top.
"""

from dataclasses import dataclass

CARD = "H200"
MEASURED = {  # ms a step of (a), ClipCap's frozen GPT-2 small and transformer mapper, with 40, 320 and 1,280 captions
    "published recipe, fp32": ("56", "341", "1,285"),
    "published recipe, TF32": ("63", "135", "512"),
    "ours, launched one by one": ("60 to 73", "53 to 99", "96 to 106"),
    "ours, captured (prototype)": ("6.3", "21", "72"),
}
COUNTED = 8.46e9  # operations a caption of ours in these steps, five captions to an image, by `train_steps.py`
LAYERS = 20  # of GPT-2 small and the mapper
READ = 997  # photographs embedded a second, with 16 cores
DECODED = 2505  # captions a second: beam search, 5 beams, 12 tokens, 250 images together, bf16

LAUNCHED_LAYER, LAUNCHED_RATE = 0.060 / LAYERS, 1280 * COUNTED / 0.100  # seconds; operations a second
CAPTURED_LAYER, CAPTURED_RATE = 0.0042 / LAYERS, (1280 - 40) * COUNTED / (0.072 - 0.0063)

CAPTION = 14  # tokens: some eleven words, one of them in two pieces, the full stop, and the end
PROMPT = 9  # tokens: "There are dog, grass in image." and the like
COCO, FLICKR30K, CC3M, CC12M = 566_747, 144_998, 3_302_783, 12_423_374  # captions to train on
PHOTOGRAPHS = {"COCO": 123_287, "Conceptual Captions 3M": 3_302_783, "Conceptual Captions 12M": 12_423_374}
NVLINK, PCIE, ETHERNET = 300e9, 20e9, 10e9  # bytes a second of an all-reduce, assumed


@dataclass(frozen=True)
class Mapper:
    """Attributes:
    parameters: their number.
    work: that number, each multiplied by the positions that it reads.
    """

    parameters: float
    work: float


@dataclass(frozen=True)
class Run:
    """Attributes:
    name: of the experiment, and what is changed.
    mapper: None if there is none: a language model that is trained on captions, without images.
    lm: parameters of the language model.
    tuned: it is trained, too.
    layers: transformer layers of both.
    captions: seen in all epochs, or steps times the batch.
    prefix: its length, with that of a prompt.
    batch: captions a step, of one GPU.
    """

    name: str
    mapper: Mapper | None
    lm: float
    tuned: bool
    layers: int
    captions: int
    prefix: int
    batch: int

    @property
    def trained(self) -> float:
        """Parameters."""
        return (self.mapper.parameters if self.mapper else 0) + self.lm * self.tuned

    @property
    def operations(self) -> float:
        """A step."""
        mapper = 6 * self.mapper.work if self.mapper else 0
        return self.batch * ((6 if self.tuned else 4) * self.lm * (self.prefix + CAPTION) + mapper)

    def hours(self, captured: bool = True, gpus: int = 1) -> float:
        """Of each of these GPUs; several launch their steps one by one, and exchange gradients over NVLink."""
        if captured and gpus == 1:
            seconds = CAPTURED_LAYER * self.layers + self.operations / CAPTURED_RATE
        else:
            seconds = max(LAUNCHED_LAYER * self.layers, self.operations / LAUNCHED_RATE)
        exchanged = all_reduce_seconds(self.trained, gpus, NVLINK)
        return (seconds + exchanged) * self.captions / self.batch / gpus / 3600


def all_reduce_seconds(parameters: float, gpus: int, rate: float) -> float:
    """For fp32 gradients in a ring: each GPU sends, and receives, nearly twice their bytes."""
    return 2 * (gpus - 1) / gpus * 4 * parameters / rate


TRANSFORMER = Mapper(
    41.74e6, 20 * 37.8e6 + 3.9e6
)  # eight layers read the 10 + 10 vectors, a linear layer the embedding
# The fusion layer: ten vectors attend to five, each through a linear layer first.
FUSION = Mapper(46.86e6, TRANSFORMER.work + 10 * 3.5e6 + 5 * 1.6e6)
LONG_TRANSFORMER = Mapper(57.6e6, 80 * 37.8e6 + 19.7e6)
MLP = Mapper(31.5e6, 31.5e6)
MACCAP = Mapper(5.8e6, 32 * 5.8e6)
LINEAR = Mapper(1.6e6, 1.6e6)
RETRIEVED = 61  # tokens before a caption: the start token, and a prompt of four captions
# Queries and outputs of each token, and keys and values of 50 vectors of an image.
SMALLCAP = Mapper(7.1e6, (RETRIEVED + CAPTION) * 3.55e6 + 50 * 3.54e6)
SMALLCAP_LARGE = Mapper(47.3e6, (RETRIEVED + CAPTION) * 29.5e6 + 50 * 17.7e6)
GPT2, OPT = 124.44e6, 1315.8e6

SYSTEMS = {  # COCO in ten epochs
    "(a) ClipCap, frozen GPT-2": Run("clipcap_coco_transformer", TRANSFORMER, GPT2, False, 20, 10 * COCO, 10, 40),
    "(b) ClipCap, tuned GPT-2": Run("clipcap_coco_mlp_gpt2_tuning", MLP, GPT2, True, 12, 10 * COCO, 10, 40),
    "CapDec, tuned GPT-2": Run("capdec", LONG_TRANSFORMER, GPT2, True, 20, 10 * COCO, 40, 34),
    "DeCap, own language model": Run("decap", Mapper(0.4e6, 0.4e6), 67.7e6, True, 4, 10 * COCO, 1, 128),
    "CapDec and DeCap, frozen OPT-1.3B": Run("capdec_frozen", LINEAR, OPT, False, 24, 10 * COCO, 1, 128),
    "MacCap, frozen OPT-1.3B": Run("maccap", MACCAP, OPT, False, 25, 10 * COCO, 32, 128),
}  # fmt: skip
RUNS = [
    SYSTEMS["(a) ClipCap, frozen GPT-2"],
    SYSTEMS["(b) ClipCap, tuned GPT-2"],
    Run("clipcap_coco_transformer_gpt2_tuning", TRANSFORMER, GPT2, True, 20, 10 * COCO, 10, 40),
    Run("clipcap_coco_mlp", MLP, GPT2, False, 12, 10 * COCO, 10, 40),
    Run("clipcap_conceptual_mlp_gpt2_tuning", MLP, GPT2, True, 12, 10 * CC3M, 10, 40),
    Run("clip_gpt2_web", LONG_TRANSFORMER, GPT2, True, 20, 12 * 5 * 80_000, 40, 40),
    Run("maccap", MACCAP, OPT, False, 25, 8 * COCO, 32, 128),
    Run("maccap data=cc3m_text trainer.max_epochs=4", MACCAP, OPT, False, 25, 4 * CC3M, 32, 128),
    Run("maccap data=flickr30k_text", MACCAP, OPT, False, 25, 8 * FLICKR30K, 32, 128),
    Run("capdec_frozen, decap_frozen", LINEAR, OPT, False, 24, 8 * COCO, 1, 128),
    Run("capdec_frozen, decap_frozen data=cc3m_text trainer.max_epochs=4", LINEAR, OPT, False, 24, 4 * CC3M, 1, 128),
    Run("capdec_frozen, decap_frozen data=flickr30k_text", LINEAR, OPT, False, 24, 8 * FLICKR30K, 1, 128),
    SYSTEMS["CapDec, tuned GPT-2"],
    SYSTEMS["DeCap, own language model"],
    Run("viecap", TRANSFORMER, GPT2, True, 20, 15 * COCO, 10 + PROMPT, 80),
    Run(
        "viecap data=flickr30k_text trainer.max_epochs=30", TRANSFORMER, GPT2, True, 20, 30 * FLICKR30K, 10 + PROMPT, 80
    ),
    Run("ifcap", FUSION, GPT2, True, 21, 5 * COCO, 10 + PROMPT, 80),
    Run("ifcap data=flickr30k_text trainer.max_epochs=30", FUSION, GPT2, True, 21, 30 * FLICKR30K, 10 + PROMPT, 80),
    Run("smallcap", SMALLCAP, GPT2, False, 12, 10 * COCO, RETRIEVED, 64),
    Run("smallcap lm=gpt2_large", SMALLCAP_LARGE, 774.03e6, False, 36, 10 * COCO, RETRIEVED, 64),
    Run("train-lm data=coco lm=gpt2", None, GPT2, True, 12, 20_000 * 128, 0, 128),
]


def table() -> str:
    """The runs of the papers, in Markdown."""
    lines = [
        "| run | trained | frozen | captions | tokens | one by one | captured |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in RUNS:
        counts = f"{run.trained / 1e6:.1f}M | {run.lm * (not run.tuned) / 1e6:,.0f}M | {run.captions / 1e6:.1f}M"
        hours = f"{run.hours(captured=False):.1f} | {run.hours():.1f}"
        lines.append(f"| `{run.name}` | {counts} | {run.prefix + CAPTION} | {hours} |")
    return "\n".join(lines)


def measured_table() -> str:
    """Steps as measured, and COCO's ten epochs with them."""
    lines = [
        "| (a), ms a step | 40 captions | 320 | 1,280 | ten epochs of COCO, 40 a step |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, times in MEASURED.items():
        hours = [float(ms) / 1e3 * 10 * COCO / 40 / 3600 for ms in times[0].split(" to ")]
        lines.append(f"| {way} | {' | '.join(times)} | {' to '.join(duration(hour) for hour in hours)} |")
    return "\n".join(lines)


def systems_table() -> str:
    """Ten epochs of each data set, on one GPU and on eight."""
    sets = {"COCO": COCO, "CC3M": CC3M, "CC12M": CC12M}
    lines = [f"| system, captions a step | {' | '.join(f'{name}, 1 GPU | 8' for name in sets)} |"]
    lines.append("|---|" + "---:|" * 2 * len(sets))
    for name, run in SYSTEMS.items():
        for batch in (run.batch, *((320,) if run.batch == 40 else ())):
            runs = [Run(**vars(run) | {"captions": 10 * captions, "batch": batch}) for captions in sets.values()]
            cells = [duration(one.hours(gpus=gpus)) for one in runs for gpus in (1, 8)]
            lines.append(f"| {name}, {batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def images_table() -> str:
    """Embedding and captioning the photographs."""
    lines = [
        "| photographs | embedding, 1 GPU and 16 cores | 8 and 128 | captioning, 1 GPU | 8 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, images in PHOTOGRAPHS.items():
        cells = [duration(images / rate / gpus / 3600) for rate in (READ, DECODED) for gpus in (1, 8)]
        lines.append(f"| {name}, {images:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def exchange_table() -> str:
    """What a step of several GPUs adds."""
    lines = ["| trained | all-reduced a step | 8 GPUs, NVLink | 8 GPUs, PCIe 4 | 64 GPUs, 100 Gb Ethernet |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name in list(SYSTEMS)[:3]:
        trained = SYSTEMS[name].trained
        added = [all_reduce_seconds(trained, *to) for to in ((8, NVLINK), (8, PCIE), (64, ETHERNET))]
        cells = " | ".join(f"{1e3 * seconds:.1f} ms" for seconds in added)
        lines.append(f"| {name}: {trained / 1e6:.0f}M | {4 * trained / 1e6:.0f} MB | {cells} |")
    return "\n".join(lines)


def duration(hours: float) -> str:
    """Seconds, minutes or hours, to two digits or more."""
    minutes = 60 * hours
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h" if hours < 100 else f"{hours:.0f} h"


if __name__ == "__main__":
    print("\n\n".join((measured_table(), systems_table(), images_table(), exchange_table(), table())))
