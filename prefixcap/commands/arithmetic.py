"""Describe a sum of images and texts in words (ZeroCap, Tewel et al. 2022, section 5).

Nothing is trained: CLIP steers a language model towards the sum of the embeddings, token by token.
"""

from typing import Annotated

import typer

from prefixcap.commands.common.options import existing_captioner

EXAMPLES = """  prefixcap arithmetic "img:king.jpg - img:man.jpg + txt:'a woman'"

  prefixcap arithmetic "img:circle.png - txt:'red' + txt:'blue'" \\
      --encoder demo"""


def main(
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPRESSION",
            help="A sum of img:PATH, txt:'TEXT' and emb:STORE#ID, with weights (0.5*...) and parentheses.",
        ),
    ],
    encoder: Annotated[str, typer.Option(metavar="NAME", help="The CLIP model.")] = "clip:ViT-B/32",
    lm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The language model, a name on the model hub or a folder "
            "(default: gpt2-medium; with --encoder demo: demo).",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="How ZeroCap's caption begins.")] = "Image of a",
    ckpt: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A captioner: it describes the sum, too, and its encoder replaces --encoder.",
            show_default=False,
            callback=existing_captioner,
        ),
    ] = None,
) -> None:
    """Print ZeroCap's caption of the expression, and the captioner's, if there is one."""
    from prefixcap.captioner import load
    from prefixcap.demo import language_model_beside
    from prefixcap.encoders import load_encoder
    from prefixcap.language import load_language_model
    from prefixcap.utils.hub import missing_language_model, naming
    from prefixcap.zeroshot import arithmetic
    from prefixcap.zeroshot.zerocap import ZeroCap

    arithmetic.parse(expression)  # reports a mistake before models are loaded
    captioner = load(ckpt) if ckpt else None
    lm = lm or language_model_beside(captioner.encoder_identity.name if captioner else encoder, "gpt2-medium")
    with naming(missing_language_model, lm):
        clip = arithmetic.encoder_of(captioner) if captioner is not None else load_encoder(encoder)
    zerocap = ZeroCap(clip, load_language_model(lm), prompt=prompt, end_factor=1.06, end_from=1)
    print(arithmetic.arithmetic(expression, zerocap))
    if captioner is not None:
        print(f"{ckpt}: {arithmetic.arithmetic(expression, captioner)}")
