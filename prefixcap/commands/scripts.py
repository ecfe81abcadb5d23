"""Commands that are modules of their own: all that follows the command's name goes to them, `--help` included."""

import runpy
import sys

import typer

app = typer.Typer()
TRAINING = "Data and training"
STORES = "Feature stores"

SCRIPTS = (  # name, module, panel of the help, help
    ("embed", "prefixcap.commands.embed", TRAINING, "Embed the images of a data set once, with CLIP (data=coco)."),
    ("train", "prefixcap.commands.train", TRAINING, "Train a captioner (data=coco model=mlp)."),
    ("eval", "prefixcap.commands.eval", TRAINING, "Score a checkpoint (ckpt=best.ckpt), or captions."),
    ("train-lm", "prefixcap.commands.train_lm", TRAINING, "Train a language model on captions alone, for MAGIC."),
    ("vqa", "prefixcap.commands.vqa", TRAINING, "Answer questions about images, zero-shot (MacCap, Table 4)."),
    ("relations", "prefixcap.commands.relations", TRAINING, "Name visual relations by arithmetic (ZeroCap, Table 2)."),
    ("compare-systems", "prefixcap.commands.compare_systems", TRAINING, "Train and score what learns from text alone."),
    ("verify", "prefixcap.commands.verify", STORES, "Check a feature store, every byte."),
    (
        "import-features",
        "prefixcap.commands.import_features",
        STORES,
        "Turn embeddings made elsewhere into a store.",
    ),
    (
        "export-features",
        "prefixcap.commands.export_features",
        STORES,
        "Write a store as files of clip-retrieval.",
    ),
)


def _add(name: str, module: str, panel: str, about: str) -> None:
    @app.command(
        name,
        help=about,
        rich_help_panel=panel,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    )
    def run(context: typer.Context) -> None:
        # Under `-m` the script is its process's main module: the further processes of a run are started like that, too.
        sys.argv = [sys.argv[0], *context.args]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


for script in SCRIPTS:
    _add(*script)
