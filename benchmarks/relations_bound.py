"""How many of the small world's visual relations can be recalls within five words, if the search for words is perfect.

In place of a captioner: the sentence closest to C + B - A by CLIP's cosine, of all that the world's grammar makes in
one of its forms, for each form alone. The answer has to be among its first five words ("anywhere": at any place); the
prompt "A", which ZeroCap is given, is none of them.
"""

import argparse
from collections import Counter
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from prefixcap.demo.relations import ASKED, write_relations
from prefixcap.demo.scenes import ATTRIBUTES, FULL, SHORT, Scene, fill
from prefixcap.encoders import load_encoder
from prefixcap.zeroshot.arithmetic import embed_expressions
from prefixcap.zeroshot.relations import read_relations, recalled

PROMPT = "A"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    encoder = load_encoder("demo")
    with TemporaryDirectory() as name:
        file = write_relations(Path(name) / "relations")
        relations = read_relations(file)
        directions = embed_expressions([relation.expression for relation in relations], encoder, file.parent)
    scenes = [Scene(*values) for values in product(*ATTRIBUTES.values())]
    print("".join(f"{asked:>10}" for asked in ASKED) + f"{'all':>10}{'anywhere':>10}")
    for form in (*FULL, *SHORT):
        sentences = sorted({fill(scene, [form])[0] for scene in scenes})
        embeddings = torch.cat([encoder.encode_texts(sentences[i : i + 1000]) for i in range(0, len(sentences), 1000)])
        closest = (directions.float() @ F.normalize(embeddings.float(), dim=-1).T).argmax(1).tolist()
        recalls, anywhere = Counter[str](), 0
        for relation, place in zip(relations, closest, strict=True):
            recalls[relation.name] += recalled(sentences[place].removeprefix(f"{PROMPT} "), relation.answer)
            anywhere += relation.answer in sentences[place].lower()
        shares = [recalls[asked] / sum(relation.name == asked for relation in relations) for asked in ASKED]
        shares += [recalls.total() / len(relations), anywhere / len(relations)]
        print("".join(f"{share:10.2f}" for share in shares) + f"   {form}", flush=True)


if __name__ == "__main__":
    main()
