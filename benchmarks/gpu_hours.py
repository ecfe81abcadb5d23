"""How many GPU hours the runs of the papers take, estimated from their sizes: `python benchmarks/gpu_hours.py`.

A token costs 6 floating-point operations for each parameter that is trained (2 forward, 4 backward) and 4 for each that
is frozen, as gradients pass through it to the prefix. Tokens are those of the prefix and of the caption, for batches
have no padding. A GPU is taken to compute OPERATIONS of these a second in bfloat16, a sixth of what an A100 is sold
for, and no step to be quicker than LEAST. No run was made; validation, evaluation and downloads come on top.
"""

from dataclasses import dataclass

OPERATIONS = 50e12  # a second
LEAST = 0.035  # seconds a step; an H200 took 0.028 to 0.039 for 40 captions with GPT-2 small (train_steps.py)
CAPTION = 14  # tokens: some eleven words, one of them in two pieces, the full stop, and the end

COCO, COCO_TEXT, FLICKR30K_TEXT, CC3M = 566_747, 566_747, 144_998, 3_302_783  # captions to train on
GPT2, OPT = 124.4e6, 1315.8e6  # parameters


@dataclass(frozen=True)
class Run:
    """Attributes:
    name: of the experiment, and what is changed.
    trained, frozen: parameters.
    captions: seen in all epochs, or steps times the batch.
    prefix: its length.
    batch: captions a step.
    """

    name: str
    trained: float
    frozen: float
    captions: int
    prefix: int
    batch: int

    @property
    def hours(self) -> float:
        """Of one GPU."""
        operations = (6 * self.trained + 4 * self.frozen) * (self.prefix + CAPTION) * self.captions
        return max(operations / OPERATIONS, LEAST * self.captions / self.batch) / 3600


RUNS = [
    Run("clipcap_coco_transformer", 41.7e6, GPT2, 10 * COCO, 10, 40),
    Run("clipcap_coco_mlp_gpt2_tuning", 155.9e6, 0, 10 * COCO, 10, 40),
    Run("clipcap_coco_transformer_gpt2_tuning", 166.2e6, 0, 10 * COCO, 10, 40),
    Run("clipcap_coco_mlp", 31.5e6, GPT2, 10 * COCO, 10, 40),
    Run("clipcap_conceptual_mlp_gpt2_tuning", 155.9e6, 0, 10 * CC3M, 10, 40),
    Run("clip_gpt2_web", 182.0e6, 0, 12 * 5 * 80_000, 40, 40),
    Run("maccap", 5.8e6, OPT, 8 * COCO_TEXT, 32, 128),
    Run("maccap data=cc3m_text trainer.max_epochs=4", 5.8e6, OPT, 4 * CC3M, 32, 128),
    Run("maccap data=flickr30k_text", 5.8e6, OPT, 8 * FLICKR30K_TEXT, 32, 128),
    Run("capdec_frozen, decap_frozen", 1.6e6, OPT, 8 * COCO_TEXT, 1, 128),
    Run("capdec_frozen, decap_frozen data=cc3m_text trainer.max_epochs=4", 1.6e6, OPT, 4 * CC3M, 1, 128),
    Run("capdec_frozen, decap_frozen data=flickr30k_text", 1.6e6, OPT, 8 * FLICKR30K_TEXT, 1, 128),
    Run("capdec", 182.0e6, 0, 10 * COCO_TEXT, 40, 34),
    Run("decap", 68e6, 0, 10 * COCO_TEXT, 1, 128),
    Run("train-lm data=coco lm=gpt2", GPT2, 0, 20_000 * 128, 0, 128),
]


def table() -> str:
    """The runs as a table in Markdown."""
    lines = ["| run | trained | frozen | captions | tokens | GPU hours |", "|---|---:|---:|---:|---:|---:|"]
    for run in RUNS:
        counts = f"{run.trained / 1e6:.1f}M | {run.frozen / 1e6:,.0f}M | {run.captions / 1e6:.1f}M"
        lines.append(f"| `{run.name}` | {counts} | {run.prefix + CAPTION} | {run.hours:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
