"""Commands that are modules of their own: all that follows the command's name goes to them, `--help` included."""

import runpy
import sys

import typer

app = typer.Typer()
DATA_AND_TRAINING = "Data and training"
STORES = "Feature stores"

_SCRIPTS = (
    ("embed", "data_prep.embed", DATA_AND_TRAINING, "Embed the images of a data set once, with CLIP: embed data=coco"),
    ("train", "prefixcap.scripts.train", DATA_AND_TRAINING, "Train a captioner: train data=coco model=mlp"),
    ("eval", "prefixcap.scripts.eval", DATA_AND_TRAINING, "Score a checkpoint or captions: eval ckpt=best.ckpt"),
    (
        "train-lm",
        "prefixcap.scripts.train_lm",
        DATA_AND_TRAINING,
        "Train a language model on captions alone, for MAGIC",
    ),
    ("vqa", "prefixcap.scripts.vqa", DATA_AND_TRAINING, "Answer questions about images, zero-shot (MacCap, Table 4)"),
    ("relations", "prefixcap.scripts.relations", DATA_AND_TRAINING, "Visual relations (ZeroCap, Table 2)"),
    (
        "compare-systems",
        "prefixcap.scripts.compare_systems",
        DATA_AND_TRAINING,
        "Train and score all text-only systems, beside the published numbers (MacCap, Tables 2 and 3)",
    ),
    ("verify", "data_prep.verify", STORES, "Check a feature store: verify STORE"),
    ("import-features", "data_prep.import_features", STORES, "Make a feature store of embeddings made elsewhere"),
    ("export-features", "data_prep.export_features", STORES, "Write a feature store as clip-retrieval's files"),
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


for script in _SCRIPTS:
    _add(*script)
