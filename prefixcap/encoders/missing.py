"""How to get an encoder by hand, where the network cannot be reached."""

from prefixcap.utils.hub import TOKENIZER, WEIGHTS, by_hand, is_here


def missing_encoder(name: str) -> str | None:
    """As `missing_language_model`, of an encoder by its name, see `prefixcap.encoders.load_encoder`."""
    kind, _, checkpoint = name.partition(":")
    if kind == "clip":
        from prefixcap.encoders.openai_clip import missing_checkpoint

        return missing_checkpoint(checkpoint)
    if kind != "transformers" or is_here(checkpoint):
        return None
    files = f"config.json, preprocessor_config.json, {WEIGHTS}, {TOKENIZER}"
    return f"for encoder '{name}', fetch {by_hand(checkpoint, files)} (encoder.name=transformers:FOLDER)"
