"""No program of the project opens what others made in a way that could run it."""

import ast
from collections.abc import Iterator

from tests.conftest import ROOT

FOLDERS = ("prefixcap", "data_prep", "benchmarks", "studies", "docs")
SOURCES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
OWN = ("Captioner", "cls")  # whose `from_pretrained` is the project's


def calls(source: str) -> Iterator[tuple[int, str, str, dict[str, object]]]:
    """Line, what the function is an attribute of, its name, and the keyword arguments that are constants."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            of = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            given = {word.arg or "": getattr(word.value, "value", None) for word in node.keywords}
            yield node.lineno, of, name, given


def dangers(source: str) -> list[str]:
    """Calls that would run, or ask to run, what a stranger wrote."""
    found = []
    for line, of, name, given in calls(source):
        opens_model = name in ("from_pretrained", "from_config") and of not in OWN
        if opens_model and given.get("trust_remote_code") is not False:
            found.append(f"{line}: {of}.{name} without trust_remote_code=False")
        elif (of, name) == ("torch", "load") and given.get("weights_only") is not True:
            found.append(f"{line}: torch.load without weights_only=True")
        elif (of, name) == ("np", "load") and given.get("allow_pickle") is not False:
            found.append(f"{line}: np.load without allow_pickle=False")
        elif name in ("eval", "exec") and not of:
            found.append(f"{line}: {name}")
        elif (of, name) in (("pickle", "load"), ("pickle", "loads"), ("torch.jit", "load"), ("yaml", "load")):
            found.append(f"{line}: {of}.{name}")
    return found


def test_nothing_that_others_wrote_is_run() -> None:
    found = {str(file.relative_to(ROOT)): dangers(file.read_text(encoding="utf-8")) for file in SOURCES}
    # Annotations of installed modules, which would be imported otherwise.
    (evaluated,) = found.pop("prefixcap/utils/deferred.py")
    assert evaluated.endswith(": eval")
    # What it has written itself a line before, as Ray's workers send it.
    (unpacked,) = found.pop("benchmarks/store_writing.py")
    assert unpacked.endswith(": pickle.loads")
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_the_search_finds_what_it_looks_for() -> None:
    assert len(SOURCES) > 100
    bad = (
        "AutoConfig.from_pretrained(x)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "M.from_config(c, trust_remote_code=None)", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)",
        "pickle.loads(b)", "torch.jit.load(f)", "eval(text)", "M.from_pretrained(x, **options)",
    )  # fmt: skip
    for line in bad:
        assert len(dangers(line)) == 1, line
    for line in ("A.from_pretrained(x, trust_remote_code=False)", "Captioner.from_pretrained(x)", "model.eval()"):
        assert dangers(line) == []
