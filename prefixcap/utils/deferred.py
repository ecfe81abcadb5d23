"""Functions and classes that are imported when they are called; until then their signatures come from their source.

`import torch` takes seconds, and `import lightning` several times as long. Options are checked before, against what
the source file declares, so that a mistake is reported at once.
"""

import ast
import builtins
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar, Union

# What annotations and constants of classes are made of: these modules are imported to evaluate one.
_LIGHT = {"annotated_types", "collections.abc", "pathlib", "typing", "prefixcap.features", "prefixcap.utils.options"}


@contextmanager
def deferred_imports() -> Iterator[None]:
    """Within it, a module's import statements bind stand-ins, see `deferred`: nothing is imported before it is used.

    For functions and classes, as in Python 3.15's `lazy from module import name`. Stand-ins of classes can be called,
    inherited from, named in annotations, and asked by `isinstance`.

    Examples:
        >>> with deferred_imports():
        ...     from prefixcap.captioner import load
        >>> load.__module__, load.__name__
        ('prefixcap.captioner', 'load')
    """
    module, import_now = sys._getframe(2).f_globals, builtins.__import__

    def import_later(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not module:
            return import_now(name, globals, locals, fromlist, level)
        return _Names(name) if fromlist else _Module(name)

    builtins.__import__ = import_later
    try:
        yield
    finally:
        builtins.__import__ = import_now


def deferred(name: str) -> Any:
    """A function or class, imported when it is called or when one of its attributes is read.

    Its signature, its docstring and the literals that a class assigns are read without importing it. Annotations are
    evaluated as far as they consist of names from `typing` and `prefixcap.utils.options` (others are `Any`), and a
    default that is not a literal is `...`. What has no source file, or a class without `__init__`, is imported.

    Args:
        name: its dotted name.

    Returns:
        A stand-in, which type checkers take for the function or class itself.

    Examples:
        >>> nucleus = deferred("prefixcap.decoding.stepwise.nucleus")
        >>> inspect.signature(nucleus).parameters["temperature"].default
        1.0
    """
    return _Deferred(name)


def deferred_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose modules are imported when one of their names is first used.

    Args:
        package: its name.
        modules: of each name, the module of the package that has it.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return get


_Node = TypeVar("_Node", bound=ast.stmt)


class _Module:
    """What `import torch` binds."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


class _Names(_Module):
    """What `from torch import ...` takes names from."""

    def __getattr__(self, name: str) -> Any:
        return _Deferred(f"{self._name}.{name}")


class _Deferred:
    def __init__(self, name: str) -> None:
        self.__module__, _, self.__name__ = name.rpartition(".")

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._target(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what inspect and others look for
            raise AttributeError(name)
        constants = {ast.unparse(part.targets[0]): part.value for part in self._body(ast.Assign)}
        value = _constant(self._source[0], constants[name]) if name in constants else ...
        return getattr(self._target, name) if value is ... else value

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self._target,)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._target)

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007

    __ror__ = __or__

    @cached_property
    def _target(self) -> Any:
        module = importlib.import_module(self.__module__)
        if not hasattr(module, self.__name__):
            raise ImportError(f"cannot import name '{self.__name__}' from '{self.__module__}'")
        return getattr(module, self.__name__)

    @cached_property
    def _source(self) -> "tuple[str, _Bound]":
        return _find(self.__module__, self.__name__)

    def _body(self, kind: type[_Node]) -> list[_Node]:
        declared = self._source[1]
        return [part for part in declared.body if isinstance(part, kind)] if isinstance(declared, ast.ClassDef) else []

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        declared = self._source[1]
        return ast.get_docstring(declared) if isinstance(declared, ast.ClassDef | ast.FunctionDef) else None

    @cached_property
    def __signature__(self) -> inspect.Signature:
        module, declared = self._source
        if isinstance(declared, ast.FunctionDef):
            return inspect.Signature(_parameters(module, declared.args))
        if init := [part for part in self._body(ast.FunctionDef) if part.name == "__init__"]:
            return inspect.Signature(_parameters(module, init[0].args)[1:])
        fields = self._body(ast.AnnAssign)
        if fields and isinstance(declared, ast.ClassDef) and declared.decorator_list:  # a dataclass
            return inspect.Signature([_parameter(module, ast.unparse(f.target), f.annotation, f.value) for f in fields])
        return inspect.signature(self._target)


_Bound = ast.ClassDef | ast.FunctionDef | ast.expr | tuple[str, str] | None


@cache
def _names(module: str) -> dict[str, _Bound]:
    """What the source of a module binds: definitions, values, and of imports the module and the name in it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent.joinpath(*rest)
    file = next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
    bound: dict[str, _Bound] = {}
    for statement in ast.parse(file.read_bytes()).body if file is not None else ():
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            bound[statement.name] = statement
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            bound[statement.targets[0].id] = statement.value
        elif isinstance(statement, ast.ImportFrom):
            package = module if file is not None and file.name == "__init__.py" else module.rpartition(".")[0]
            home = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
            bound |= {alias.asname or alias.name: (home, alias.name) for alias in statement.names}
    return bound


def _find(module: str, name: str) -> tuple[str, _Bound]:
    """The module that defines a name, wherever it is imported from, and its definition; None: it is not known."""
    bound = _names(module).get(name)
    return _find(*bound) if isinstance(bound, tuple) and bound[0] not in _LIGHT else (module, bound)


def _parameters(module: str, arguments: ast.arguments) -> list[inspect.Parameter]:
    kinds = inspect.Parameter
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    parameters = [_parameter(module, a.arg, a.annotation, value) for a, value in zip(plain, defaults, strict=True)]
    if arguments.vararg is not None:
        parameters.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameter = _parameter(module, argument.arg, argument.annotation, value)
        parameters.append(parameter.replace(kind=kinds.KEYWORD_ONLY))
    if arguments.kwarg is not None:
        parameters.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return parameters


def _parameter(module: str, name: str, annotation: ast.expr | None, default: ast.expr | None) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=empty if default is None else _literal(default),
        annotation=empty if annotation is None else _evaluate(module, annotation),
    )


def _literal(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except ValueError:
        return ...


def _constant(module: str, expression: ast.expr) -> Any:
    """A literal, or a name of a light module such as `Feature.IMAGE`; `...` if it is something else."""
    value = _evaluate(module, expression) if isinstance(expression, ast.Attribute) else _literal(expression)
    return ... if value is Any else value


def _evaluate(module: str, annotation: ast.expr) -> Any:
    names = {part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)}
    try:
        return eval(ast.unparse(annotation), {name: _value(module, name) for name in names})
    except (AttributeError, TypeError):  # it is made of what is not known, e.g. torch.Generator
        return Any


def _value(module: str, name: str) -> Any:
    home, bound = _find(module, name)
    if isinstance(bound, ast.expr):
        return _evaluate(home, bound)
    if isinstance(bound, tuple):
        return getattr(importlib.import_module(bound[0]), bound[1], Any)
    return Any if bound is not None else getattr(builtins, name, Any)
