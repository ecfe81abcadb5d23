"""The architecture: layers, no cycles, and a picture that is up to date."""

import ast
import re

import networkx as nx

from docs.dependencies import (
    LAYER,
    PICTURE,
    ROOT,
    component,
    component_graph,
    draw,
    imported_modules,
    module_graph,
    modules,
    reachable,
    read_imports,
    transitive_reduction,
)

IMPORTS = read_imports()
SOURCE = """
import os, known.a
from typing import TYPE_CHECKING
from known import b, function
if TYPE_CHECKING:
    import known.hidden
else:
    import known.c
def run():
    from known.d import value
"""


def test_every_component_has_a_layer_and_a_place_in_the_design_page() -> None:
    assert {component(module) for module in modules()} == set(LAYER)
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for name in set(LAYER) - {"entry points", "version"}:
        assert re.search(rf"`(?:prefixcap/)?{name}(?:/|\.py)`", page), name


def test_imports_lead_downwards() -> None:
    upward = [
        f"{module}:{line} imports {imported}"
        for module, line, imported in IMPORTS
        if component(module) != component(imported) and LAYER[component(module)] >= LAYER[component(imported)]
    ]
    assert not upward


def test_no_module_imports_itself_through_others() -> None:
    graph = module_graph(IMPORTS)
    assert not [module for module in graph if module in reachable(graph, module)]


def test_the_library_knows_nothing_of_hydra_and_typer() -> None:
    framework = re.compile(r"^\s*(?:import|from) (?:hydra|omegaconf|typer)\b", re.MULTILINE)
    files = [file for module, file in modules().items() if component(module) not in ("commands", "data_prep")]
    assert not [file for file in files if framework.search(file.read_text(encoding="utf-8"))]


def test_the_picture_is_up_to_date() -> None:
    picture = draw(component_graph(IMPORTS))
    assert PICTURE.read_text(encoding="utf-8") == picture, "python docs/dependencies.py draws it anew"


def test_imports_within_functions_count_and_those_for_type_checkers_do_not() -> None:
    known = dict.fromkeys(["known", *(f"known.{name}" for name in ("a", "b", "c", "d", "hidden"))], ROOT)
    imports = list(imported_modules(ast.parse(SOURCE), known))
    assert imports == [(2, "known.a"), (4, "known.b"), (4, "known"), (8, "known.c"), (10, "known.d")]


def test_reduction_and_reachability_are_those_of_networkx() -> None:
    graph = component_graph(IMPORTS)
    other = nx.DiGraph(graph)
    assert nx.is_directed_acyclic_graph(other)
    assert transitive_reduction(graph) == {node: set(nx.transitive_reduction(other)[node]) for node in graph}
    cycle = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert [name for name in cycle if name in reachable(cycle, name)] == ["b", "c"]
