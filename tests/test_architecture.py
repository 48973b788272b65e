"""The map of the package: which folder may import which, and what stands in one place only."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import kakurenbo_lightning

PACKAGE = Path(kakurenbo_lightning.__file__).parent
NAME = "kakurenbo_lightning"

# Folder -> what it may import beside itself and errors; no folder imports one below it.
MAP = {
    "errors": set(),
    "core": set(),
    "signals": {"core"},
    "methods": {"core"},
    "trainer": {"core", "signals", "methods"},
    "engines": {"core", "signals", "methods", "trainer"},
    "session": {"core", "signals", "methods", "trainer", "engines"},
    "callback": {"errors", "core", "signals", "methods", "trainer", "session"},
    # selection_view.py alone reaches into the session; everything else of record uses public names
    "record": {"core", "methods", "session", "public names"},
    "report": {"core", "record", "public names"},
    "hydra_support": {"methods"},
    "cli": {"core", "methods", "session", "record", "report", "public names"},
    "arena": {"core", "methods", "session", "cli", "report", "public names"},
}
LIGHT = ("core", "methods")  # they need torch and NumPy alone
HEAVY = ("lightning", "pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "torchmetrics", "torchvision")
FAMILIES = {"HideMethod", "BackpropMethod", "DrawMethod", "StreamMethod"}
LIGHTNINGS = {"trainer", "_trainer", "strategy", "fit_loop", "epoch_loop", "val_loop", "loop", "pl_module", "lightning_module"}
LONGEST_CLASS = 300


@dataclass(frozen=True)
class Import:
    """One import statement's view of one module: ``names`` are what ``from module import ...`` takes."""

    module: str
    names: tuple[str, ...]
    line: int
    for_types: bool


class Imports(ast.NodeVisitor):
    """Collects the imports of a module, those inside functions too, and whether they are for the type checker alone."""

    def __init__(self):
        self.found, self._for_types = [], False

    def visit_If(self, node):
        outside, self._for_types = self._for_types, self._for_types or ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in node.body:
            self.visit(child)
        self._for_types = outside
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node):
        self.found += [Import(alias.name, (), node.lineno, self._for_types) for alias in node.names]

    def visit_ImportFrom(self, node):
        assert node.level == 0, f"line {node.lineno}: a relative import; the package writes whole names"
        self.found.append(Import(node.module, tuple(alias.name for alias in node.names), node.lineno, self._for_types))


def files(folder=None):
    """The package's modules, or those of one folder (or single file) of the map, with their syntax trees."""
    return [(path, tree) for path, tree in parsed() if folder in (None, folder_of(path))]


@cache
def parsed():
    return [(path, ast.parse(path.read_text(), str(path))) for path in sorted(PACKAGE.rglob("*.py"))]


def folder_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def place(path, line):
    return f"{path.relative_to(PACKAGE.parent)}:{line}"


def imports_of(tree):
    visitor = Imports()
    visitor.visit(tree)
    return visitor.found


def targets(found):
    """Folders of ours that an import reaches; a public name of the package counts as one and as the folder it is from."""
    if found.module != NAME:
        return [{found.module.split(".")[1]}] if found.module.startswith(f"{NAME}.") else []
    named = {name: kakurenbo_lightning._MODULE_OF.get(name) for name in found.names if name != "__version__"}
    return [{"public names", module.split(".")[0]} if module else {name} for name, module in named.items()]


def above(folder):
    """The folders before ``folder`` in the map: what an annotation may name."""
    return set(list(MAP)[: list(MAP).index(folder)])


def lines(found):
    """One a line, below pytest's message."""
    return "\n" + "\n".join(found)


def last_name(node):
    """``x`` of the expressions ``x`` and ``a.b.x``."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def test_every_folder_is_on_the_map():
    assert {folder_of(path) for path, _ in files()} - {"__init__"} <= set(MAP)


@pytest.mark.parametrize("folder", MAP)
def test_a_folder_imports_only_what_the_map_allows(folder):
    wrong = []
    for path, tree in files(folder):
        for found in imports_of(tree):
            allowed = {folder, "errors", *MAP[folder]} | (above(folder) if found.for_types else set())
            wrong += [f"{place(path, found.line)} imports {found.module}" for reached in targets(found) if not reached & allowed]
    assert not wrong, lines(wrong)


@pytest.mark.parametrize("folder", ["errors", *LIGHT])
def test_light_folders_import_torch_and_numpy_alone(folder):
    known = {*sys.stdlib_module_names, NAME} | ({"torch", "numpy"} if folder in LIGHT else set())
    found = [(place(path, found.line), found.module) for path, tree in files(folder) for found in imports_of(tree)]
    wrong = [f"{where} imports {module}" for where, module in found if module.split(".")[0] not in known]
    assert not wrong, lines(wrong)


def test_no_module_takes_a_private_name_of_another():
    wrong = [
        f"{place(path, found.line)}: {name} of {found.module}"
        for path, tree in files()
        for found in imports_of(tree)
        for name in found.names
        if found.module.startswith(NAME) and name.startswith("_") and not name.startswith("__")
    ]
    assert not wrong, lines(wrong)


# --- what an import starts


def loaded_by(program):
    """Which heavy libraries a new interpreter has loaded after ``program``."""
    code = f"import sys\n{program}\nprint('loaded:', *[name for name in {(*HEAVY, 'torch')} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("loaded:")[2].split()


def test_the_package_itself_loads_nothing():
    assert loaded_by(f"import {NAME}; {NAME}.__version__, dir({NAME})") == []


@pytest.mark.parametrize(("folder", "needed"), [("core", ["torch"]), ("methods", [])])
def test_light_folders_load_neither_lightning_nor_hydra(folder, needed):
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path, _ in files(folder)]
    assert loaded_by("\n".join(f"import {module.removesuffix('.__init__')}" for module in modules)) == needed


@pytest.mark.parametrize("program", ["train", "irreducible", "deepcam"])
def test_a_program_shows_its_help_without_torch(program):
    loaded = loaded_by(f"sys.path.insert(0, 'recipes')\nimport kakurenbo_recipes.{program}")
    assert not {"torch", "lightning", "torchmetrics", "torchvision"} & set(loaded)


def test_public_names_are_the_same_for_the_interpreter_and_the_type_checker():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {name: found.module for found in imports_of(tree) if found.for_types for name in found.names if name != "Any"}
    assert typed == {name: f"{NAME}.{module}" for name, module in kakurenbo_lightning._MODULE_OF.items()}
    assert sorted(typed) == kakurenbo_lightning.__all__
    assert set(typed) <= set(dir(kakurenbo_lightning))
    assert all(getattr(kakurenbo_lightning, name).__name__ == name for name in typed)
    with pytest.raises(AttributeError, match="module 'kakurenbo_lightning' has no attribute 'Nothing'"):
        kakurenbo_lightning.Nothing  # noqa: B018


# --- what stands in one place


def private_uses(tree):
    """Where Lightning's private attributes are named: ``trainer._x``, ``getattr(fit_loop, "_x")``, ``"fit_loop._x"``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__") and last_name(node.value) in LIGHTNINGS
            if private or node.attr == "epoch_loop":
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and last_name(node.func) in {"getattr", "setattr", "hasattr", "delattr"}:
            names = [part.value for part in node.args[1:2] if isinstance(part, ast.Constant)]
            if last_name(node.args[0]) in LIGHTNINGS and any(str(name).startswith("_") for name in names):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "_loop._" in node.value:
            yield node.lineno, node.value


def test_private_uses_are_found_however_they_are_written():
    code = """
trainer.fit_loop._data_source
self._trainer._x = 1
getattr(trainer.strategy, "_y", None)
trainer.fit_loop.epoch_loop.restarting
"trainer.fit_loop._data_fetcher"
self._own, trainer.__class__, getattr(trainer, "public")
"""
    assert [line for line, _ in sorted(private_uses(ast.parse(code)))] == [2, 3, 4, 5, 6]


def test_only_the_adapter_and_resumption_touch_private_attributes_of_lightning():
    wrong = [
        f"{place(path, line)}: {text}"
        for path, tree in files()
        if path not in (PACKAGE / "trainer" / "adapter.py", PACKAGE / "trainer" / "resumption.py")
        for line, text in private_uses(tree)
    ]
    assert not wrong, lines(wrong)


def test_the_family_of_a_method_is_asked_in_one_place():
    """Where its engine is made."""
    asking = set()
    for path, tree in files():
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                call = isinstance(node, ast.Call) and last_name(node.func) == "isinstance" and node.args[1]
                case = isinstance(node, ast.MatchClass) and node.cls
                if any(last_name(part) in FAMILIES for found in (call, case) if found for part in ast.walk(found)):
                    asking.add(f"{path.relative_to(PACKAGE)}: {function.name}")
    assert len(asking) == 1 and next(iter(asking)).startswith("engines"), lines(sorted(asking))


def test_no_class_is_longer_than_300_lines():
    classes = {
        place(path, node.lineno): node.end_lineno - node.lineno + 1
        for path, tree in files()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    wrong = [f"{where}: {length} lines" for where, length in classes.items() if length > LONGEST_CLASS]
    assert not wrong, lines(wrong)


def test_no_two_test_files_have_one_name():
    """They lie in folders without ``__init__.py``, and processes that a test starts import them by name."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
