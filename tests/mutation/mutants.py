"""Mutants of a module: every single edit, from a set of classical operators, that a test ought to notice.

An edit replaces bytes of the source, so that the rest of the file stays as it is written. What only a reader would
notice is left alone: docstrings, annotations, messages of errors, asserts, decorators, `__all__`.
"""

# long: one edit a rule, side by side
from __future__ import annotations

import ast
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Edit = tuple[int, int, str]  # start and end in bytes, and what is put there
Key = tuple[str, str, str]  # file and function, the line before, the line after

COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: (r"is\s+not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: (r"not\s+in", ("in",)),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "&"),
    ast.LShift: ("<<", ">>"),
}
NAMES = dict(
    pair
    for a, b in (
        ("min", "max"),
        ("minimum", "maximum"),
        ("argmin", "argmax"),
        ("mean", "sum"),
        ("any", "all"),
        ("floor", "ceil"),
        ("zeros_like", "ones_like"),
        ("zeros", "ones"),
    )
    for pair in ((a, b), (b, a))
)
DROPPED = frozenset(
    {"abs", "sqrt", "square", "flip", "round", "clamp_min", "sort", "sorted", "log", "exp", "swapaxes"}
)
NUMBERS = frozenset({"Tensor", "Array", "float", "int", "NDArray"})  # of these, a negative is another
TYPES = frozenset(
    {"Literal", "ClassVar", "NDArray", "Callable", "dict", "list", "tuple", "Mapping", "Sequence"}
)


@dataclass(frozen=True)
class Mutant:
    """One edit of one file. function: where it stands, as in "Comparison._score". before, after: the lines that it
    touches, spaces collapsed."""

    file: str
    function: str
    line: int
    edit: Edit
    before: str
    after: str

    @property
    def key(self) -> Key:
        """What an explanation is found by: no line number, so that it outlives edits elsewhere in the file."""
        return f"{self.file} {self.function}".strip(), self.before, self.after

    def applied(self, source: str) -> str:
        """The source with this edit."""
        start, end, text = self.edit
        data = source.encode()
        return (data[:start] + text.encode() + data[end:]).decode()


class _Source:
    def __init__(self, text: str) -> None:
        self.data = text.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def start(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        return self.data[self.start(node) : self.end(node)].decode()

    def replace(self, node: ast.AST, text: str) -> Edit:
        return self.start(node), self.end(node), text

    def between(self, left: ast.AST, right: ast.AST, pattern: str, text: str) -> Edit:
        """The operator that stands between two operands, outside of comments."""
        at = self.end(left)
        gap = re.sub(rb"#[^\n]*", lambda m: b" " * len(m.group()), self.data[at : self.start(right)])
        found = re.search(pattern.encode(), gap)
        assert found is not None, f"no {pattern} in {gap!r}"
        return at + found.start(), at + found.end(), text


def mutants(file: str, text: str) -> list[Mutant]:
    """Every mutant of a module, in the order of the source, none twice and none that leaves the syntax tree as it is.

    file: as it is named in reports.
    """
    source, tree = _Source(text), ast.parse(text)
    plain, made = ast.dump(tree), {}
    for node in _mutable(tree):
        for operator in OPERATORS:
            for edit in operator(node, source):
                made.setdefault(edit, None)
    found = []
    for edit in sorted(made):
        mutant = _named(file, tree, source, edit)
        try:
            changed = ast.dump(ast.parse(mutant.applied(text))) != plain
        except SyntaxError:
            changed = False
        if changed:
            found.append(mutant)
    return found


def sample(every: Mapping[str, Sequence[Mutant]], count: int, *, seed: int, least: int = 4) -> list[Mutant]:
    """`count` mutants, each file in proportion to its own number and at least `least` of each.

    A file's draw depends on the seed, its name and its share: edits elsewhere hardly change it.
    """
    total = sum(map(len, every.values()))
    drawn = []
    for file, its in every.items():
        share = min(len(its), max(least, round(count * len(its) / max(total, 1))))
        chosen = random.Random(f"{seed}/{file}").sample(range(len(its)), share)
        drawn += [its[i] for i in sorted(chosen)]
    return drawn


def explanations(text: str) -> dict[Key, str]:
    """Reasons by `Mutant.key`. text: blocks apart by an empty line: the file and function, pairs of "- before" and
    "+ after", and the reason; a line that begins with # is a comment."""
    reasons: dict[Key, str] = {}
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        if not block.strip():
            continue
        file, *rest = block.strip().splitlines()
        before = [line[2:].strip() for line in rest if line.startswith("- ")]
        after = [line[2:].strip() for line in rest if line.startswith("+ ")]
        reason = " ".join(line.strip() for line in rest if not line.startswith(("- ", "+ ")))
        if not reason or not before or len(before) != len(after):
            raise ValueError(
                f"An explanation is a file and function, pairs of - and +, and a reason; got {block!r}"
            )
        for key in zip([file.strip()] * len(before), before, after):
            reasons[key] = reason
    return reasons


def _named(file: str, tree: ast.Module, source: _Source, edit: Edit) -> Mutant:
    start, end, text = edit
    line = sum(1 for s in source.starts[1:] if s <= start)
    first = source.starts[line]
    last = source.data.find(b"\n", end)
    last = len(source.data) if last < 0 else last
    before, head, tail = source.data[first:last], source.data[first:start], source.data[end:last]
    after = head + text.encode() + tail
    return Mutant(file, _function(tree, line + 1), line + 1, edit, _collapsed(before), _collapsed(after))


def _function(tree: ast.AST, line: int) -> str:
    """The classes and functions around a line, outermost first."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.lineno <= line <= (
            node.end_lineno or 0
        ):
            return ".".join(filter(None, (node.name, _function(node, line))))
    return ""


def _collapsed(line: bytes) -> str:
    return " ".join(line.decode().split())


def _mutable(node: ast.AST) -> Iterator[ast.AST]:
    """This node and all below it whose change a test could notice."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Assign) and any(ast.unparse(t) == "__all__" for t in node.targets):
        return
    yield node
    skipped = {"annotation", "returns", "decorator_list", "format_spec"}
    if isinstance(node, ast.Subscript) and _last_name(node.value) in TYPES:
        skipped |= {"slice"}
    for name, value in ast.iter_fields(node):
        if name not in skipped:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _mutable(child)


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _comparison(node: ast.AST, source: _Source) -> Iterator[Edit]:
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, right, op in zip(operands, operands[1:], node.ops):
            symbol, others = COMPARISONS[type(op)]
            yield from (source.between(left, right, symbol, other) for other in others)


def _arithmetic(node: ast.AST, source: _Source) -> Iterator[Edit]:
    if isinstance(node, ast.BinOp):
        if type(node.op) in ARITHMETIC and not (_is_string(node.left) or _is_string(node.right)):
            symbol, other = ARITHMETIC[type(node.op)]
            yield source.between(node.left, node.right, re.escape(symbol), other)
        if isinstance(node.op, (ast.Sub, ast.Div)) and not isinstance(node.left, ast.BinOp):
            middle = source.data[source.end(node.left) : source.start(node.right)].decode()
            if "(" not in middle and ")" not in middle:
                left, right = source.text(node.left), source.text(node.right)
                yield source.start(node.left), source.end(node.right), right + middle + left
    if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        symbol, other = ARITHMETIC[type(node.op)]
        yield source.between(node.target, node.value, re.escape(symbol), other)


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _unary(node: ast.AST, source: _Source) -> Iterator[Edit]:
    """A minus, a `not` or a ~ is dropped."""
    if isinstance(node, ast.UnaryOp):
        text = source.text(node)
        symbol = {ast.USub: "-", ast.Not: "not", ast.Invert: "~"}.get(type(node.op), "")
        if symbol:
            yield source.replace(node, text[len(symbol) :].strip())


def _boolean(node: ast.AST, source: _Source) -> Iterator[Edit]:
    if isinstance(node, ast.BoolOp):
        symbol, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in itertools.pairwise(node.values):
            yield source.between(left, right, symbol, other)


def _constant(node: ast.AST, source: _Source) -> Iterator[Edit]:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield source.replace(node, str(not node.value))
        elif isinstance(node.value, (int, float)):
            yield source.replace(node, str(node.value + 1))
            if node.value:
                yield source.replace(node, f"-{source.text(node)}")


def _call(node: ast.AST, source: _Source) -> Iterator[Edit]:
    """Another function of the same kind, a function left out, two arguments in each other's place."""
    if not isinstance(node, ast.Call):
        return
    name = _last_name(node.func)
    if name in NAMES:
        end = source.end(node.func)
        yield end - len(name), end, NAMES[name]
    if name in DROPPED:
        if isinstance(node.func, ast.Attribute) and _last_name(node.func.value) not in (
            "np",
            "torch",
            "math",
            "F",
        ):
            yield source.replace(node, source.text(node.func.value))
        elif len(node.args) == 1:
            yield source.replace(node, f"({source.text(node.args[0])})")
    yield from _swaps(node.args, source)
    yield from _swaps([k.value for k in node.keywords], source)


def _tuple(node: ast.AST, source: _Source) -> Iterator[Edit]:
    if isinstance(node, (ast.Tuple, ast.List)):
        yield from _swaps(node.elts, source)


def _swaps(nodes: Sequence[ast.AST], source: _Source) -> Iterator[Edit]:
    """Neighbours of one kind, in each other's place."""
    for a, b in itertools.pairwise(nodes):
        if type(a) is type(b) and ast.dump(a) != ast.dump(b) and not isinstance(a, ast.Starred):
            middle = source.data[source.end(a) : source.start(b)].decode()
            yield source.start(a), source.end(b), source.text(b) + middle + source.text(a)


def _slice(node: ast.AST, source: _Source) -> Iterator[Edit]:
    if isinstance(node, ast.Slice):
        for bound in (node.lower, node.upper):
            if bound is not None:
                yield source.replace(bound, "")
                if not isinstance(bound, ast.Constant):
                    yield source.replace(bound, f"{source.text(bound)} + 1")


def _return(node: ast.AST, source: _Source) -> Iterator[Edit]:
    """The negative of a number."""
    if isinstance(node, ast.FunctionDef) and node.returns is not None:
        kind = node.returns.value if isinstance(node.returns, ast.Subscript) else node.returns
        if _last_name(kind) in NUMBERS:
            for inner in _own(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield source.replace(inner.value, f"-({source.text(inner.value)})")


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The statements of a function without those of functions in it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            todo += list(ast.iter_child_nodes(node))


def _statement(node: ast.AST, source: _Source) -> Iterator[Edit]:
    """A call made for its effect, an update, a jump: left out."""
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if call or isinstance(node, (ast.AugAssign, ast.Continue)):
        yield source.replace(node, "pass")


def _condition(node: ast.AST, source: _Source) -> Iterator[Edit]:
    if isinstance(node, (ast.If, ast.IfExp)):
        yield from (source.replace(node.test, value) for value in ("True", "False"))
    if isinstance(node, ast.comprehension):
        yield from (source.replace(test, "True") for test in node.ifs)


OPERATORS: tuple[Callable[[ast.AST, _Source], Iterator[Edit]], ...] = (
    _comparison,
    _arithmetic,
    _unary,
    _boolean,
    _constant,
    _call,
    _tuple,
    _slice,
    _return,
    _statement,
    _condition,
)
