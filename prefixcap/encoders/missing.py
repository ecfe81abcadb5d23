"""How to get an encoder by hand if the network cannot be reached."""

from importlib.util import find_spec

from prefixcap.utils.hub import TOKENIZER, WEIGHTS, by_hand, is_here


def missing_encoder(name: str) -> str | None:
    """Like `missing_language_model`, for an encoder by its name, see `prefixcap.encoders.load_encoder`."""
    kind, _, checkpoint = name.partition(":")
    if kind == "clip":
        from prefixcap.encoders.openai_clip import missing_checkpoint

        return missing_checkpoint(checkpoint)
    if kind == "open_clip" and find_spec("open_clip"):
        from prefixcap.encoders import openclip

        return openclip.missing_checkpoint(checkpoint)
    if kind == "timm" and find_spec("timm"):
        from prefixcap.encoders import timm_network

        return timm_network.missing_checkpoint(checkpoint)
    if kind != "transformers" or is_here(checkpoint):
        return None
    files = f"config.json, preprocessor_config.json, {WEIGHTS}, {TOKENIZER}"
    return f"for encoder '{name}', fetch {by_hand(checkpoint, files)} (then its name is transformers:FOLDER)"
