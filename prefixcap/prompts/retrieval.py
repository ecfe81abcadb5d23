"""Retrieved captions as a prompt (Ramos et al., "SmallCap: Lightweight Image Captioning Prompted with Retrieval
Augmentation", CVPR 2023).

The k captions of a datastore that are nearest to the image by CLIP, 4 in the paper, are put into a template: "Similar
images show", the captions, "This image shows". In training, captions of the image itself are left out, as they will not
be there at inference. The template is that of the published code: captions are separated by an empty line, and a full
stop ends the last. The code also keeps captions of more than 25 tokens out of the datastore; here, that is left to who
makes it. A caption occurs once in a prompt.
"""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from prefixcap.encoders import Encoder
from prefixcap.errors import InputError
from prefixcap.prompts.datastore import Datastore
from prefixcap.prompts.protocol import FIELD, Prompt, check_template
from prefixcap.utils.options import Count


class RetrievedCaptions:
    """Retrieved captions (SmallCap).

    Args:
        encoder: of the embeddings.
        datastore: to retrieve from.
        k: captions in a prompt.
        template: of the prompt; {} is where the captions go.
        separator: between captions.

    Raises:
        InputError: the datastore is of another encoder or has fewer than k captions, or the template has no field.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> from prefixcap.textonly.memory import MemoryBank
        >>> encoder, captions = load_encoder("demo"), ["a red circle", "a blue star", "a red ring"]
        >>> datastore = Datastore(MemoryBank(encoder.encode_texts(captions), captions), encoder.identity)
        >>> provider = RetrievedCaptions(encoder, datastore, k=2, template="Similar: {}", separator=", ")
        >>> provider.prompts(encoder.encode_texts(["a red circle in the snow"]))[0].text
        'Similar: a red circle, a red ring.'
    """

    name = "retrieved_captions"
    needs_datastore = True

    def __init__(
        self,
        encoder: Encoder,
        datastore: Datastore,
        k: Count = 4,
        template: str = "Similar images show\n\n{}\n\nThis image shows",
        separator: str = "\n\n",
    ) -> None:
        datastore.require_encoder(encoder.identity)
        require_size(datastore, k)
        self.datastore, self.k = datastore, k
        self.template, self.separator = check_template("template", template), separator

    def prompts(
        self,
        embeddings: Tensor,
        leave_out: Sequence[Collection[str]] | None = None,
        images: Sequence[int | str] | None = None,
    ) -> list[Prompt]:
        """(n, dim) embeddings -> n prompts, whose items are captions with their cosines; see `PromptProvider`."""
        nearest = self.datastore.nearest(embeddings, self.k, leave_out, images)
        return [Prompt(self.compose([item.text for item in items]), tuple(items)) for items in nearest]

    def compose(self, items: Sequence[str]) -> str:
        """The text of a prompt with these captions; "" without any."""
        captions = [" ".join(caption.split()) for caption in items]
        if not captions:
            return ""
        end = "" if captions[-1].endswith((".", "!", "?")) else "."
        return self.template.replace(FIELD, self.separator.join(captions) + end)

    def describe(self) -> dict[str, Any]:
        """Name, options, and where the datastore comes from; see `PromptProvider`."""
        return {
            "name": self.name,
            "k": self.k,
            "template": self.template,
            "separator": self.separator,
            "datastore": self.datastore.describe(),
        }


def require_size(datastore: Datastore, k: int) -> None:
    """Raise InputError if a datastore has fewer than k captions."""
    if k > len(datastore):
        raise InputError(
            f"k={k} captions are to be retrieved, and the datastore {datastore.source} has {len(datastore)}: give a "
            "smaller k or a larger datastore"
        )
