"""Small changes of our code, a sample of them, and putting one into the running process.

The operators are those of mutmut. Left out are texts that only people read: what is raised, warned
and logged, and strings with spaces. A change replaces the code of its function, whatever decorators
and checks of shapes have been put around that, so nothing is imported anew.
"""

import ast
import builtins
import importlib
import inspect
import itertools
import random
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import libcst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.file_mutation import Mutation, MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "disp_llm"
MESSAGES = ("InputError", "warn", "warning", "info", "debug", "error", "report", "print")
"""Functions whose arguments only people read."""
WATCHED = "__passes_a_mutant__"
"""The function that `watch` makes known to all modules."""


@dataclass
class Mutant:
    """One change: where it is, what it is, and what came of it."""

    file: str
    line: int
    function: str
    operator: str
    before: str
    after: str
    code: types.CodeType = field(repr=False)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Stays the same when lines are added above the function."""
        place = self.line - self.code.co_firstlineno
        return f"{self.file}:{self.function}+{place} {self.operator}: {self.before} -> {self.after}"

    @property
    def room(self) -> str:
        return self.file.split("/")[2]

    @property
    def module(self) -> str:
        return self.file.removeprefix("src/").removesuffix(".py").replace("/", ".")


def functions_of(code: types.CodeType) -> dict[str, types.CodeType]:
    """Code of the functions and methods of a module, by their names in it."""
    found: dict[str, types.CodeType] = {}
    for part in code.co_consts:
        if isinstance(part, types.CodeType) and "<" not in part.co_qualname:
            function = bool(part.co_flags & inspect.CO_OPTIMIZED)
            found |= {part.co_qualname: part} if function else functions_of(part)
    return found


def is_for_people(node: libcst.CSTNode, parents: Any) -> bool:
    """Whether a node is prose, or lies in what is raised, warned or logged; and `strict=` of `zip`,
    which only guards against ourselves."""
    if isinstance(node, libcst.SimpleString) and (" " in node.value or node.value in ('""', "''")):
        return True
    while not isinstance(node, libcst.Module):
        name = node.func if isinstance(node, libcst.Call) else None
        name = name.attr if isinstance(name, libcst.Attribute) else name
        if isinstance(node, libcst.Raise | libcst.FormattedString | libcst.Param):
            return True
        if isinstance(node, libcst.Arg) and node.keyword and node.keyword.value == "strict":
            return True
        if isinstance(name, libcst.Name) and name.value in MESSAGES:
            return True
        node = parents[node]
    return False


def name_of(function: Any, parents: Any) -> str:
    """`function` or `Class.method`."""
    above, name = parents[function], function.name.value
    while not isinstance(above, libcst.Module | libcst.ClassDef):
        above = parents[above]
    return f"{above.name.value}.{name}" if isinstance(above, libcst.ClassDef) else name


def mutants_of(path: Path) -> Iterator[tuple[str, Callable[[], Mutant | None]]]:
    """All mutants of a file with their operator, each made when it is called for; None where its
    code is the same."""
    text, file = path.read_text(), str(path.relative_to(ROOT))
    wrapper = MetadataWrapper(libcst.parse_module(text), unsafe_skip_copy=True)
    original = functions_of(compile(text, str(path), "exec"))
    parents, places = (wrapper.resolve(p) for p in (ParentNodeProvider, PositionProvider))

    def make(mutation: Mutation, operator: str) -> Mutant | None:
        node: Any = mutation.original_node
        changed = deep_replace(wrapper.module, node, mutation.mutated_node)
        assert isinstance(changed, libcst.Module)
        try:
            codes = functions_of(compile(changed.code, str(path), "exec"))
        except SyntaxError:
            return None
        function = name_of(mutation.contained_by_top_level_function, parents)
        if codes[function] == original[function]:
            return None
        if changed.code.count("strict=True") < text.count("strict=True"):
            return None
        line = places[node].start.line if node in places else places[parents[node]].start.line
        shown = wrapper.module.code_for_node
        before, after = (" ".join(shown(n).split()) for n in (node, mutation.mutated_node))
        return Mutant(file, line, function, operator, before, after, codes[function])

    operator_of: dict[int, str] = {}

    def remembered(operator: Callable[[Any], Iterator[Any]], node: Any) -> Iterator[Any]:
        for changed in operator(node):
            operator_of[id(changed)] = operator.__name__.removeprefix("operator_")
            yield changed

    operators = [(kind, partial(remembered, operator)) for kind, operator in mutation_operators]
    visitor = MutationVisitor(operators, IgnoredCode(set(), set(), set()))
    wrapper.visit(visitor)
    for one in visitor.mutations:
        inside = isinstance(one.contained_by_top_level_function, libcst.FunctionDef)
        if inside and not is_for_people(one.original_node, parents):
            operator = operator_of[id(one.mutated_node)]
            yield operator, partial(make, one, operator)


def sample(room: str, size: int) -> list[Mutant]:
    """As many mutants of every file as its share of the room's, at least one, by a fixed seed; in
    turn from every operator, or most would be an argument less, which any test notices. A larger
    sample holds the smaller one."""
    of_file = {path: list(mutants_of(path)) for path in sorted((SOURCES / room).rglob("*.py"))}
    whole = sum(map(len, of_file.values()))
    drawn = []
    for path, makers in of_file.items():
        random.Random(path.name).shuffle(makers)
        seen: Counter[str] = Counter()
        in_turn = []
        for operator, make in makers:
            in_turn.append((seen[operator], len(in_turn), make))
            seen[operator] += 1
        wanted = max(1, round(size * len(makers) / whole)) if makers else 0
        made = (mutant for *_, make in sorted(in_turn) if (mutant := make()))
        drawn += itertools.islice(made, wanted)
    return drawn


def function_of(mutant: Mutant) -> types.FunctionType:
    """The function itself, under what decorators and the checks of shapes have put around it."""
    found: Any = importlib.import_module(mutant.module)
    for name in mutant.function.split("."):
        found = inspect.getattr_static(found, name)
    found = getattr(found, "fget", None) or getattr(found, "func", None) or found
    return inspect.unwrap(getattr(found, "__func__", found))


def watch(mutants: list[Mutant], reached: set[str]) -> None:
    """Makes every function note into `reached` which mutants' statements it passes."""
    setattr(builtins, WATCHED, reached.add)
    for file in {mutant.file for mutant in mutants}:
        tree = ast.parse((ROOT / file).read_text())
        here = [mutant for mutant in mutants if mutant.file == file]
        for mutant in here:
            bodies = (
                body
                for node in ast.walk(tree)
                for name in ("body", "orelse", "finalbody")
                if isinstance(body := getattr(node, name, None), list)
            )
            spans = [
                (body, i)
                for body in bodies
                for i, one in enumerate(body)
                if one.lineno <= mutant.line <= one.end_lineno
            ]
            body, place = min(spans, key=lambda s: s[0][s[1]].end_lineno - s[0][s[1]].lineno)
            note = ast.parse(f"{WATCHED}({mutant.key!r})").body[0]
            for part in ast.walk(note):
                ast.copy_location(part, body[place])
            body.insert(place, note)
        codes = functions_of(compile(tree, str(ROOT / file), "exec"))
        for mutant in here:
            function_of(mutant).__code__ = codes[mutant.function]
