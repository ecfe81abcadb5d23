"""The kept durations: a test that takes more than 20 seconds says in its docstring why."""

import ast

from tests.conftest import ROOT, kept_durations


def docstrings(file: str) -> dict[str, str | None]:
    """Those of a file's tests, by name."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name: ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_test_that_takes_long_says_why() -> None:
    durations = kept_durations()
    assert durations
    for test, seconds in durations.items():
        if seconds > 20:
            file, _, name = test.partition("[")[0].partition("::")
            assert docstrings(file)[name], f"{test} takes {seconds} s: say in its docstring why, or make it cheaper"
