"""The rules of the house that no linter knows, read off the source with `ast` (see CONTRIBUTING.md)."""

import __future__

import ast
import graphlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

import edgewise

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgewise"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# The pipeline, first stage first. A module imports from its own line or from lines above it.
STAGES = """
    errors randomness specs allocator accelerator wire files hire
    data models vector conversion weights
    objectives
    diagnosis
    clipping
    optimizers schedules
    local rows codecs aggregators
    algorithms
    settings recipes config
    pacing cohorts
    broadcast
    device
    network evaluate records
    memories
    intake
    engines
    reconcile assemble
    deploy
    progress summary
    judgement
    rounds
    inspection trained
    exports afterwards
    refit restate
    releases
    ongoing
    report experiments
    __init__
    cli
    __main__
"""
RANK = {name: rank for rank, line in enumerate(STAGES.split("\n")) for name in line.split()}

FORBIDDEN_WORDS = {"util", "utils", "helper", "helpers", "common", "manager", "handle", "process"}
FORBIDDEN_CALLS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "joblib.load"}
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RESTRICTED_UNPICKLER = "data/cifar10.py"  # CIFAR-10 comes as pickles; this file admits the names they need
LONGEST_FILE, LONGEST_FUNCTION = 350, 50

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parse(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, except what only a type checker runs."""
    yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children = iter(node.orelse)
    for child in children:
        yield from walk(child)


def top_level(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def absolute(node: ast.ImportFrom, file: str) -> str:
    """`from ..x import y` as written from outside the package."""
    if not node.level:
        return node.module or ""
    folder = ["edgewise", *file.split("/")[:-1]]
    base = folder[: len(folder) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(file: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file, inside functions and by importlib too."""
    for node in walk(parse(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{absolute(node, file)}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def imported_stages(file: str) -> Iterator[tuple[int, str]]:
    """The top-level modules of edgewise that a file imports; a name of the package itself is `__init__`."""
    for line, name in imports(file):
        package, _, rest = name.partition(".")
        if package == "edgewise":
            stage = rest.split(".")[0]
            yield line, stage if stage in RANK else "__init__"


def calls(file: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(parse(file)) if isinstance(node, ast.Call))


def functions(file: str) -> Iterator[Function]:
    return (node for node in ast.walk(parse(file)) if isinstance(node, Function))


def test_every_top_level_module_has_its_place_in_the_pipeline() -> None:
    assert {top_level(file) for file in FILES} == set(RANK)


def test_imports_point_up_the_pipeline() -> None:
    faults = [
        f"edgewise/{file}:{line}: {top_level(file)} imports {stage}, a later stage"
        for file in FILES
        for line, stage in imported_stages(file)
        if RANK[stage] > RANK.get(top_level(file), -1)
    ]
    assert faults == []


def test_no_two_top_level_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        others = {stage for _, stage in imported_stages(file)} - {top_level(file)}
        graph.setdefault(top_level(file), set()).update(others)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_model_s_gradient_is_computed_in_one_place_and_many_models_in_another() -> None:
    found = [
        (file, call.func.attr)
        for file in FILES
        for call in calls(file)
        if isinstance(call.func, ast.Attribute)
        and (call.func.attr == "backward" or ast.unparse(call.func).endswith("autograd.grad"))
    ]
    assert sorted(found) == [("local.py", "backward"), ("rows.py", "grad")]


def unpickling(file: str) -> Iterator[tuple[int, str]]:
    for call in calls(file):
        if ast.unparse(call.func) in FORBIDDEN_CALLS:
            yield call.lineno, ast.unparse(call.func)
        if any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in call.keywords):
            yield call.lineno, "allow_pickle"
    for line, name in imports(file):
        allowed = file == RESTRICTED_UNPICKLER and name == "pickle"
        if name == "torch.load" or (name.split(".")[0] in UNPICKLERS and not allowed):
            yield line, f"import of {name}"


def test_nothing_is_unpickled_or_evaluated() -> None:
    assert [f"{file}:{line}: {what}" for file in FILES for line, what in unpickling(file)] == []


def test_the_one_unpickler_is_restricted() -> None:
    tree = parse(RESTRICTED_UNPICKLER)
    nodes = list(ast.walk(tree))
    restricted = [
        node
        for node in nodes
        if isinstance(node, ast.ClassDef)
        and [ast.unparse(base) for base in node.bases] == ["pickle.Unpickler"]
        and any(isinstance(part, Function) and part.name == "find_class" for part in node.body)
    ]
    used = [ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)]
    used = [name for name in used if re.fullmatch(r"pickle\.\w+", name) and name != "pickle.UnpicklingError"]
    assert used == ["pickle.Unpickler"] * len(restricted), "only as the base of a class with find_class"


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def test_names_say_what_a_thing_is() -> None:
    names = [(file, part.removesuffix(".py")) for file in FILES for part in file.split("/")]
    for file in FILES:
        defined = (node for node in ast.walk(parse(file)) if isinstance(node, Function | ast.ClassDef))
        names += [(f"{file}:{node.lineno}", node.name) for node in defined]
    assert [f"{where}: {name}" for where, name in names if words(name) & FORBIDDEN_WORDS] == []


def test_every_module_has_a_docstring() -> None:
    assert [file for file in FILES if not ast.get_docstring(parse(file))] == []


def test_no_file_is_long() -> None:
    lengths = {file: len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {file: lines for file, lines in lengths.items() if lines > LONGEST_FILE} == {}


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_no_function_is_long() -> None:
    faults = {
        f"{file}:{function.lineno} {function.name}": length(function)
        for file in FILES
        for function in functions(file)
        if length(function) > LONGEST_FUNCTION
    }
    assert faults == {}


def readme_map() -> list[str]:
    """The lines of the README's code block that draws the tree of edgewise/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)]
    trees = [block for block in blocks if section(block, "edgewise")]
    assert len(trees) == 1, f"README.md must draw the tree of edgewise/ in one code block, not {len(trees)}"
    return trees[0]


def indent(line: str) -> int:
    name = re.search(r"[\w.]", line)
    return name.start() if name else sys.maxsize


def section(lines: list[str], folder: str) -> list[str]:
    """A folder's own line in the tree and the lines under it; nothing when it has no line."""
    own_line = re.compile(rf"\W*(edgewise/)?{re.escape(folder)}/(\s|$)")
    own, *rest = [*dropwhile(lambda line: not own_line.match(line), lines), ""]
    return [own, *takewhile(lambda line: indent(line) > indent(own), rest)] if own else []


def is_drawn(file: str, tree: list[str]) -> bool:
    """By its path, or by its name among the lines of its folder; a folder's `__init__.py` by the folder."""
    *folders, name = file.split("/")
    lines = section(tree, "edgewise")
    if not folders:
        return any(re.match(rf"\W*(edgewise/)?{re.escape(name)}(\s|$)", line) for line in lines)
    if name == "__init__.py":
        return any(re.search(rf"(?<!\w){folders[-1]}/", line) for line in lines)
    if any(re.search(rf"(?<![\w/])(edgewise/)?{re.escape(file)}(?!\w)", line) for line in tree):
        return True
    for folder in folders:
        lines = section(lines, folder) or lines
    stem = re.escape(name.removesuffix(".py"))
    return any(re.search(rf"(?<![\w/]){stem}(\.py)?(?!\w)", line) for line in lines)


def test_the_readme_maps_every_file() -> None:
    tree = readme_map()
    assert [file for file in FILES if not is_drawn(file, tree)] == []


def test_the_readme_maps_no_file_that_is_gone() -> None:
    known = {path.name for top in ("edgewise", "tests", "benchmarks") for path in (ROOT / top).rglob("*")}
    drawn = re.findall(r"\w+\.py\b", "\n".join(readme_map()))
    assert [name for name in drawn if name not in known] == []


def is_ours(name: str) -> bool:
    """Whether a name that the package shows was meant to be shown: not a module, not another's tool."""
    value = getattr(edgewise, name)
    if inspect.ismodule(value) or isinstance(value, __future__._Feature) or name == "TYPE_CHECKING":
        return False
    return str(getattr(value, "__module__", "edgewise")).split(".")[0] == "edgewise"


def test_the_public_names_are_those_that_resolve() -> None:
    assert len(edgewise.__all__) == len(set(edgewise.__all__))
    resolved = {name for name in edgewise.__all__ if hasattr(edgewise, name)}
    shown = {name for name in dir(edgewise) if not name.startswith("_") and is_ours(name)}
    # Imported for type checkers and resolved on first use: these count as shown too.
    lazy = {
        alias.asname or alias.name
        for node in ast.walk(parse("__init__.py"))
        if isinstance(node, ast.ImportFrom) and absolute(node, "__init__.py").startswith("edgewise.")
        for alias in node.names
    }
    assert set(edgewise.__all__) == resolved | shown | {name for name in lazy if not name.startswith("_")}


IMPORT_CLI = "import edgewise.cli"
RUN_HELP = """
import runpy
sys.argv = ["edgewise", "--help"]
try:
    runpy.run_module("edgewise", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
"""


@pytest.mark.parametrize("program", [IMPORT_CLI, RUN_HELP], ids=["import", "help"])
def test_the_command_answers_before_torch_is_loaded(program: str) -> None:
    script = f"import sys\n{program}\nassert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
