"""How src/ reads, in numbers: sizes, density, comments, and which module imports which.

    python tests/measure_style.py      prints the table

ruff and mypy are not repeated here.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

SRC = Path(__file__).parent.parent / "src"
DECODER = "recording.decoder"
# In the order of a job. A module imports only what stands in its own row or in one above it.
LAYERS = (
    ("contract",),
    ("recording",),
    ("speech",),
    ("result",),
    ("command_line", "failures", "job", "shutdown", "runpod_sdk"),
    ("handler",),
)
LAYER_OF = {name: i for i, names in enumerate(LAYERS) for name in names}
MAX_LINE = 100  # characters
NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSION = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Module:
    """One file of Python."""

    name: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    def imports(self) -> Iterator[str]:
        """The dotted names in its import statements, wherever they stand."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_in(folder: Path) -> dict[str, Module]:
    """Name → module of every Python file below the folder."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder).with_suffix("").parts)
        found[name] = Module(name, path.read_text(encoding="utf-8"))
    return found


def edges(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Module → the others among these that it imports. `from a import b` may name a module a.b."""
    found = {}
    for module in modules.values():
        imported = set()
        for dotted in module.imports():
            imported |= {dotted, dotted.rpartition(".")[0]} & modules.keys()
        found[module.name] = imported - {module.name}
    return found


def upward_imports(modules: dict[str, Module]) -> list[str]:
    """A sentence for each import of a lower row, and for each module that is in no row."""
    faults = []
    for name, imported in edges(modules).items():
        top = name.partition(".")[0]
        if top not in LAYER_OF:
            faults.append(f"{name} is in no row of LAYERS")
            continue
        for other in sorted(imported):
            other_top = other.partition(".")[0]
            if LAYER_OF.get(other_top, len(LAYERS)) > LAYER_OF[top]:
                faults.append(f"{name} imports {other}, which is below it")
    return faults


def circle(modules: dict[str, Module]) -> list[str]:
    """The names of a circle of imports, or nothing."""
    imported, done = edges(modules), set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imported[name]):
            if found := search(other, [*path, name]):
                return found
        done.add(name)
        return []

    for name in modules:
        if found := search(name, []):
            return found
    return []


def imports_across_the_decoders_door(modules: dict[str, Module]) -> list[str]:
    """A sentence for each import between the decoder's process and the worker, either way."""
    own = {name.rpartition(".")[2] for name in modules if name.startswith(f"{DECODER}.")}
    faults = []
    for module in modules.values():
        inside = module.name.startswith(f"{DECODER}.")
        for dotted in module.imports():
            top = dotted.partition(".")[0]
            if inside and top in LAYER_OF or not inside and (top in own or DECODER in dotted):
                faults.append(f"{module.name} imports {dotted}")
    return faults


def p90(values: list[int]) -> float:
    return quantiles(values, n=10, method="inclusive")[-1]


def code_tokens(module: Module) -> list[tokenize.TokenInfo]:
    return [token for token in module.tokens if token.type not in NO_CODE]


def tokens_by_line(module: Module) -> list[int]:
    """For each line that has any code, how many tokens begin on it."""
    counts: dict[int, int] = {}
    for token in code_tokens(module):
        counts[token.start[0]] = counts.get(token.start[0], 0) + 1
    return list(counts.values())


def functions(module: Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(module.tree) if isinstance(node, FUNCTION)]


def function_lines(module: Module) -> list[int]:
    """Lines of each function, from `def` to its end, docstring included."""
    return [node.end_lineno - node.lineno + 1 for node in functions(module)]


def long_functions(modules: list[Module], most: int) -> list[str]:
    """The names of the functions with more lines than this."""
    return [
        f"{module.name}.{node.name}"
        for module in modules
        for node in functions(module)
        if node.end_lineno - node.lineno + 1 > most
    ]


def long_lines(modules: list[Module]) -> list[str]:
    """`module:line` of each line with more than MAX_LINE characters."""
    return [
        f"{module.name}:{number}"
        for module in modules
        for number, line in enumerate(module.lines, 1)
        if len(line) > MAX_LINE
    ]


def function_tokens(module: Module) -> list[int]:
    starts = [token.start[0] for token in code_tokens(module)]
    return [
        sum(node.lineno <= line <= node.end_lineno for line in starts) for node in functions(module)
    ]


def trailing_comments(module: Module) -> int:
    """Comments that share a line with code."""
    comments = [token for token in module.tokens if token.type == tokenize.COMMENT]
    return sum(not token.line.lstrip().startswith("#") for token in comments)


def typed_arguments(module: Module) -> list[bool]:
    """For each argument but self and cls: whether it has an annotation."""
    found = []
    for node in functions(module):
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        rest = [a for a in (node.args.vararg, node.args.kwarg) if a]
        named = [a for a in arguments + rest if a.arg not in ("self", "cls")]
        found += [a.annotation is not None for a in named]
    return found


@dataclass(frozen=True)
class Measures:
    """Of all modules together."""

    long_lines: int
    line_p90: float
    line_tokens_p90: float
    function_lines: list[int]
    function_tokens: list[int]
    comprehensions: float  # per 1000 tokens
    trailing_comments: float  # per 100 lines
    module_lines: list[int]  # without blank ones
    typed_arguments: float  # percent

    def rows(self) -> list[tuple[str, str]]:
        lines, tokens = self.function_lines, self.function_tokens
        sizes = self.module_lines
        return [
            (
                "function lines median / p90 / max",
                f"{median(lines):g} / {p90(lines):g} / {max(lines)}",
            ),
            ("function tokens median / p90", f"{median(tokens):g} / {p90(tokens):g}"),
            (f"line length p90 (lines over {MAX_LINE})", f"{self.line_p90:g} ({self.long_lines})"),
            ("tokens in a line p90", f"{self.line_tokens_p90:g}"),
            ("comprehensions per 1000 tokens", f"{self.comprehensions:.1f}"),
            ("trailing comments per 100 lines", f"{self.trailing_comments:.1f}"),
            ("module lines median / max / sum", f"{median(sizes):g} / {max(sizes)} / {sum(sizes)}"),
            ("arguments typed", f"{self.typed_arguments:.0f} %"),
        ]


def measured(modules: list[Module]) -> Measures:
    """The measures of at least two modules with functions."""
    lengths = [len(line) for m in modules for line in m.lines if line.strip()]
    tokens = sum(len(code_tokens(m)) for m in modules)
    nodes = [node for m in modules for node in ast.walk(m.tree)]
    comprehensions = sum(isinstance(node, COMPREHENSION) for node in nodes)
    typed = [a for m in modules for a in typed_arguments(m)]
    return Measures(
        long_lines=len(long_lines(modules)),
        line_p90=p90(lengths),
        line_tokens_p90=p90([n for m in modules for n in tokens_by_line(m)]),
        function_lines=[n for m in modules for n in function_lines(m)],
        function_tokens=[n for m in modules for n in function_tokens(m)],
        comprehensions=1000 * comprehensions / tokens,
        trailing_comments=100 * sum(map(trailing_comments, modules)) / len(lengths),
        module_lines=[sum(bool(line.strip()) for line in m.lines) for m in modules],
        typed_arguments=100 * sum(typed) / len(typed),
    )


def main() -> None:
    modules = list(modules_in(SRC).values())
    for name, value in measured(modules).rows():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
