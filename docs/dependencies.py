"""The layers of the code, and a picture of what imports what: `python docs/dependencies.py` draws it.

LAYERS is the architecture: a component imports only from layers below its own. Components are the packages and modules
directly below `prefixcap/`, all of `data_prep/`, and the entry points. An import counts wherever it stands, also inside
a function, unless it is for type checkers only or its name is in a string, as in `prefixcap/__init__.py` and
`renamed.py`, which load public and old names on first use. The picture leaves out an import that a longer path implies.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "dependencies.svg"

LAYERS = [  # from the top down
    ["entry points"],
    ["commands"],
    ["web"],
    ["zeroshot", "data_prep"],
    ["training", "interpretation", "sharing", "evaluation"],
    ["data"],
    ["captioner", "consensus"],
    ["prompts"],
    ["checkpoints", "textonly", "pipeline"],
    ["reranking"],
    ["model", "decoding", "sampling", "metrics"],
    ["mappers", "language", "encoders", "noise", "store"],
    ["packing", "losses", "weights", "features", "vocabulary", "demo", "photos", "version"],
    ["utils"],
    ["errors", "renamed"],
]
ENTRY_POINTS = {"train", "eval", "prefixcap.__main__"} | {
    f"data_prep.{name}" for name in ("embed", "verify", "import_features", "export_features")
}
LAYER = {component: number for number, layer in enumerate(LAYERS) for component in layer}

Graph = dict[str, set[str]]  # what each module or component imports


class Import(NamedTuple):
    """A module of this repository that imports another, and where."""

    module: str
    line: int
    imported: str


def modules() -> dict[str, Path]:
    """The files of the code by the dotted names of their modules."""
    files = [ROOT / "train.py", ROOT / "eval.py"]
    files += [file for package in ("prefixcap", "data_prep") for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def component(module: str) -> str:
    """The component of a module. `prefixcap/__init__.py`, which loads the public names when asked, is "version"."""
    package, _, rest = module.partition(".")
    if module in ENTRY_POINTS:
        return "entry points"
    return package if package != "prefixcap" else rest.partition(".")[0] or "version"


def read_imports() -> list[Import]:
    """All imports of modules of this repository by one another."""
    known = modules()
    return [
        Import(module, line, imported)
        for module, file in known.items()
        for line, imported in imported_modules(ast.parse(file.read_text(encoding="utf-8")), known)
        if imported != module
    ]


def imported_modules(node: ast.AST, known: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and name of each known module that is imported below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            child = ast.Module(child.orelse, [])
        if isinstance(child, ast.ImportFrom):  # a name of a module or, from a package, one of its modules
            paths = [f"{child.module}.{alias.name}" for alias in child.names]
            names = dict.fromkeys(path if path in known else str(child.module) for path in paths)
            yield from ((child.lineno, name) for name in names if name in known)
        elif isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names if alias.name in known)
        yield from imported_modules(child, known)


def module_graph(imports: Iterable[Import]) -> Graph:
    """Which modules each module imports."""
    graph: Graph = defaultdict(set)
    for module, _, imported in imports:
        graph[module].add(imported)
    return graph


def component_graph(imports: Iterable[Import]) -> Graph:
    """Which other components each component imports."""
    graph: Graph = {name: set() for name in LAYER}
    for module, _, imported in imports:
        if component(module) != component(imported):
            graph[component(module)].add(component(imported))
    return graph


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """All that `start` imports, directly or through others: `start` itself only if it is part of a cycle."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached


def transitive_reduction(graph: Graph) -> Graph:
    """The smallest acyclic graph in which the same nodes are reachable from each node."""
    return {
        node: {end for end in ends if not any(end in reachable(graph, other) for other in ends)}
        for node, ends in graph.items()
    }


# Drawing. A point is (component, layer): the component's box in its own layer; in a layer above, a bend in the arrows
# to it. In each layer the points are sorted and placed by the mean position of their neighbours (Sugiyama, Tagawa and
# Toda 1981).

Point = tuple[str, int]

WIDTH, HEIGHT, GAP, STEP, MARGIN = 104, 28, 12, 60, 12  # of boxes, between points, from layer to layer; in pixels


def draw(graph: Graph) -> str:
    """The picture of a component graph without upward imports, as SVG."""
    lines: dict[tuple[Point, Point], None] = {}  # an ordered set
    for name, imported in sorted(transitive_reduction(graph).items()):
        for other in sorted(imported):
            path = [(name, LAYER[name]), *((other, layer) for layer in range(LAYER[name] + 1, LAYER[other] + 1))]
            lines |= dict.fromkeys(pairwise(path))
    boxes = list(LAYER.items())
    x = _place(boxes, list(lines))
    width, height = max(x.values()) + WIDTH // 2 + MARGIN, (len(LAYERS) - 1) * STEP + HEIGHT + 2 * MARGIN
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="13" text-anchor="middle">',
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 1L8 4L0 7z" fill="#5c6bc0"/></marker>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for start, end in lines:
        top, bottom = MARGIN + STEP * start[1] + HEIGHT, MARGIN + STEP * end[1]
        curve = f"M{x[start]} {top}C{x[start]} {top + STEP // 3} {x[end]} {bottom - STEP // 3} {x[end]} {bottom}"
        rest = '" marker-end="url(#tip)"' if end in boxes else f'v{HEIGHT}"'
        svg.append(f'<path d="{curve}{rest} fill="none" stroke="#7986cb"/>')
    for name, layer in boxes:
        left, top = x[name, layer] - WIDTH // 2, MARGIN + STEP * layer
        svg.append(
            f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#e8eaf6" stroke="#5c6bc0"/>'
        )
        svg.append(f'<text x="{x[name, layer]}" y="{top + 18}">{name}</text>')
    return "\n".join([*svg, "</svg>", ""])


def _place(boxes: list[Point], lines: list[tuple[Point, Point]]) -> dict[Point, int]:
    """Where each point lies from left to right: the middle of it, in pixels."""
    near: dict[Point, list[Point]] = {box: [] for box in boxes}
    for start, end in lines:
        near.setdefault(start, []).append(end)
        near.setdefault(end, []).append(start)
    x = {point: float(WIDTH * number) for number, point in enumerate(near)}
    layers = [[point for point in near if point[1] == number] for number in range(len(LAYERS))]
    for sweep in range(40):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            wanted = {point: fmean(x[end] for end in near[point]) for point in layer}
            x |= _spread(dict(sorted(wanted.items(), key=lambda item: item[1])), boxes)
    left = min(x[box] for box in x) - WIDTH / 2 - MARGIN
    return {point: round(value - left) for point, value in x.items()}


def _spread(wanted: Mapping[Point, float], boxes: list[Point]) -> dict[Point, float]:
    """Places in the order of `wanted`, as near to them as they can be without overlap (isotonic regression)."""
    offsets, offset = [], 0.0
    for point in wanted:
        width = WIDTH if point in boxes else 0
        offsets.append(offset + width / 2)
        offset += width + GAP
    groups: list[list[float]] = []  # neighbours that touch: sum and number of what they want
    for place, shift in zip(wanted.values(), offsets, strict=True):
        groups.append([place - shift, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] >= groups[-1][0] / groups[-1][1]:
            total, number = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + number]
    places = [total / number for total, number in groups for _ in range(int(number))]
    return {point: place + shift for point, place, shift in zip(wanted, places, offsets, strict=True)}


if __name__ == "__main__":
    PICTURE.write_text(draw(component_graph(read_imports())), encoding="utf-8")
