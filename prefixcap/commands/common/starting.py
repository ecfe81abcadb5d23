"""`start=` of `prefixcap train`: a new run begins with the parts of another captioner, unless the command line chooses
others."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from prefixcap.checkpoints.paths import LANGUAGE_MODEL
from prefixcap.errors import InputError
from prefixcap.utils.deferred import deferred_imports

with deferred_imports():  # what follows imports torch
    from prefixcap.captioner import Captioner, load
    from prefixcap.checkpoints.files import captioner_state_dict, read_checkpoint
    from prefixcap.language import LanguageModel, rebuild_language_model
    from prefixcap.language.quantization import checkpoint_layers
    from prefixcap.weights import shapes_of

if TYPE_CHECKING:
    from torch import Tensor

    from prefixcap.weights import Shapes


class Start:
    """The captioner from which a run starts.

    Args:
        name: of the captioner, as `prefixcap.load` takes it.

    Attributes:
        captioner: the captioner.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.captioner = load(name)

    def adopt(self, config: DictConfig, overrides: Collection[str]) -> None:
        """Set encoder, mapper, language model and prompts of a configuration to the captioner's, but for what the
        command line chooses.

        Raises:
            InputError: its language model was tuned, and could not be found again after another tuning.
        """
        given = {override.lstrip("+~").partition("=")[0] for override in overrides}
        chosen = given | ({"encoder", "model", "lm", "prompts"} if "experiment" in given else set())
        captioner, own = self.captioner, self.captioner.language_model
        if not chosen & {"encoder", "encoder.name"}:
            config.encoder.name = captioner.encoder_identity.name
        OmegaConf.set_struct(config, False)  # a mapper has other options than the one in its place
        if "model" not in chosen:
            others = {name: value for name, value in config.model.items() if name != "mapper"}
            config.model = _merged(
                others,
                overrides,
                "model",
                mapper=captioner.mapper_options,
                normalize_embeddings=captioner.normalize_embeddings,
                start_token=captioner.start_token,
                lm_tuning=own.tuning,
            )
        if "prompts" not in chosen and not config.get("prompts"):
            config.prompts = captioner.prompts
        if not chosen & {"lm", "lm.name", "lm.scratch"}:
            name = self._where_weights_are(config.model.lm_tuning)
            tuned = config.model.lm_tuning == "full"
            config.lm = _merged(
                config.lm,
                overrides,
                "lm",
                name=name,
                scratch=None,
                dtype="float32" if tuned else own.dtype,
                quantization=None if tuned else own.quantization,
                lora={} if own.lora is None else asdict(own.lora),
            )

    def _where_weights_are(self, tuning: str) -> str:
        """The name by which checkpoints with this tuning find the weights of the language model that they do not hold.

        Raises:
            InputError: there is no such name.
        """
        own = self.captioner.language_model
        if own.tuning in (tuning, "frozen"):
            return own.name
        if own.tuning == "full" and (folder := self._folder_of_language_model()):
            return str(folder)
        raise InputError(
            f"with model.lm_tuning={tuning} a checkpoint would lack weights of the language model that {self.name} "
            f"brings: set model.lm_tuning={own.tuning}, or give start=FOLDER after prefixcap export {self.name} FOLDER"
        )

    def _folder_of_language_model(self) -> Path | None:
        """The language model in the folder that the captioner came from; None: there is none."""
        source = self.captioner.source
        return source / LANGUAGE_MODEL if source is not None and (source / LANGUAGE_MODEL).is_dir() else None

    def language_model(self, options: Mapping[str, Any]) -> LanguageModel | None:
        """The captioner's language model, to be trained further with these options of `load_language_model`; None: they
        are those of another."""
        own = self.captioner.language_model
        same: dict[str, Any] = {
            "name": own.name,
            "tuning": own.tuning,
            "quantization": own.quantization,
            "scratch": None,
        }
        if own.tuning == "lora":
            same["lora"] = own.lora
        if own.tuning != "full":
            same["dtype"] = own.dtype
        if {option: options.get(option) for option in same} != same:
            return None
        if own.tuning == "full":
            own.float()
            own.dtype = "float32"
        if options.get("gradient_checkpointing"):
            checkpoint_layers(own.model)
        return own

    def load_into(self, captioner: Captioner) -> str:
        """Load the captioner's weights into that of the run, as far as they fit it.

        Returns:
            A line that says what is kept and what is new.

        Raises:
            InputError: nothing is kept, or the encoder has other weights.
        """
        old, before = self.captioner, self.captioner.checkpoint_state_dict()
        after = captioner.checkpoint_state_dict()
        encoder, known = captioner.encoder_identity, old.encoder_identity
        if encoder.name == known.name and not encoder.agrees_with(known):
            raise InputError(
                f"the images were embedded by an encoder '{encoder.name}' of other weights ({encoder.digest[:8]}) than "
                f"the one that {self.name} learned with ({known.digest[:8]}): embed them again by that one"
            )
        fits = {part: _shapes(before, part) == _shapes(after, part) for part in ("mapper", "language_model")}
        lm, own = captioner.language_model, old.language_model
        mapper, same_mapper = (each.mapper_options["name"] for each in (captioner, old))
        keeps_encoder = encoder.agrees_with(known)
        keeps_lm = lm.name == str(self._folder_of_language_model()) or (
            lm.name == own.name and (own.tuning == "frozen" or fits["language_model"])
        )
        keeps_mapper = keeps_encoder and keeps_lm and mapper == same_mapper and fits["mapper"]
        parts = [
            (f"encoder {encoder.name}", keeps_encoder),
            (f"mapper {mapper}", keeps_mapper),
            (f"language model {lm.name}", keeps_lm),
        ]
        kept, new = ([part for part, is_kept in parts if is_kept is wanted] for wanted in (True, False))
        if not keeps_mapper and (not keeps_lm or own.tuning == "frozen"):
            raise InputError(f"nothing that {self.name} learned is kept (new: {', '.join(new)}): leave start= out")
        loaded = ["mapper."] * keeps_mapper + ["language_model."] * (keeps_lm and fits["language_model"])
        weights = {name: tensor for name, tensor in before.items() if name.startswith(tuple(loaded))}
        captioner.load_checkpoint_state_dict(after | weights, self.name)
        if keeps_mapper:
            captioner.rerank = old.rerank
        return f"starting from {self.name}: keeps {', '.join(kept)}" + (f"; new: {', '.join(new)}" if new else "")


def resumed_language_model(checkpoint: Path) -> LanguageModel:
    """The tuned language model of a run to continue, which no name may load; its weights are still to be loaded."""
    content = read_checkpoint(checkpoint)
    shapes = shapes_of(captioner_state_dict(content))
    return rebuild_language_model(content["prefixcap"]["language_model"], shapes, checkpoint)


def learned_before(config: DictConfig, start: Start | None) -> list[str]:
    """The data sets from which the captioner had learned before this run, first the first."""
    if start:
        trained_on = start.captioner.trained_on
        return [*trained_on.get("before", []), *filter(None, [trained_on.get("data")])]
    if config.ckpt and config.start:
        before: list[str] = read_checkpoint(Path(config.ckpt))["prefixcap"]["trained_on"].get("before", [])
        return before
    return []


def _merged(group: Any, overrides: Collection[str], prefix: str, **adopted: Any) -> DictConfig:
    """A group of the configuration with values that are adopted, and those of the command line over them."""
    own = [override.lstrip("+") for override in overrides if override.lstrip("+").startswith(f"{prefix}.")]
    return cast(DictConfig, OmegaConf.merge(group, adopted, OmegaConf.from_dotlist(own).get(prefix, {})))


def _shapes(weights: Mapping[str, "Tensor"], part: str) -> "Shapes":
    """The shapes of the weights of a part."""
    return shapes_of({name: tensor for name, tensor in weights.items() if name.startswith(f"{part}.")})
