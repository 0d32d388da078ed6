"""The direction of imports, read from the sources."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mappa_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
HOST = (
    "types text workflows tools judges data tabular answers answer_process "
    "answer_worker records statistics config metrics testing traces plugins loggers "
    "team_file model_card report versions loopback"
).split()
ARRAYS = "models sampling learning parallel plan".split()
OUTSIDE = "workflows tools judges data tabular".split()
SHELL = "commands"  # what joins all the others, and reads flags
ARRAY_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}


def _part(path: Path) -> str:
    """The first name below the package: "judges", "types"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _names(nodes) -> set[str]:
    """The modules that import statements among `nodes` name, in full."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _imports(path: Path, *, everywhere: bool = True) -> set[str]:
    """What a file imports; without `everywhere` only what importing it does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return _names(ast.walk(tree) if everywhere else _at_module_level(tree))


def _at_module_level(node):
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from _at_module_level(child)


def _ours(imports: set[str]) -> set[str]:
    """The parts of the package among `imports`."""
    names = (name.split(".") for name in imports)
    return {n[1] for n in names if n[0] == "mappa_jax" and len(n) > 1}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _of(*parts: str) -> list[Path]:
    return [path for path in MODULES if _part(path) in parts]


def test_the_lists_above_name_what_exists():
    assert {*HOST, *ARRAYS} <= {_part(path) for path in MODULES}


def test_function_bodies_do_not_count_as_module_level():
    tree = ast.parse("import a\nif b:\n    import c\ndef d():\n    import e\n")
    assert _names(_at_module_level(tree)) == {"a", "c"}


def test_the_host_half_does_not_import_arrays():
    def roots(path):
        return {n.split(".")[0] for n in _imports(path, everywhere=False)}

    assert not [_name(p) for p in _of(*HOST) if roots(p) & ARRAY_LIBRARIES]


def test_the_host_half_does_not_import_the_array_half():
    broken = [p for p in _of(*HOST) if _ours(_imports(p)) & {*ARRAYS}]
    assert not [_name(p) for p in broken]


def test_the_array_half_sees_no_workflow_tool_judge_data_or_table():
    broken = [p for p in _of(*ARRAYS) if _ours(_imports(p)) & {*OUTSIDE}]
    assert not [_name(p) for p in broken]


def test_workflows_tools_and_judges_do_not_know_one_another():
    separate = {"workflows", "tools", "judges"}
    for path in _of(*separate):
        assert not _ours(_imports(path)) & (separate - {_part(path)}), _name(path)


def test_submissions_are_read_without_workflows_tools_judges_and_data():
    apart = {"workflows", "tools", "judges", "data"}
    assert not [_name(p) for p in _of("tabular") if _ours(_imports(p)) & apart]


def test_types_imports_nothing_of_ours():
    assert not _ours(_imports(PACKAGE / "types.py"))


def test_nothing_imports_the_loop():
    inner = [p for p in MODULES if _part(p) != SHELL]
    assert not [_name(p) for p in inner if "train" in _ours(_imports(p))]


def test_nothing_imports_the_commands():
    inner = [p for p in MODULES if _part(p) != SHELL]
    assert not [_name(p) for p in inner if SHELL in _ours(_imports(p))]


def test_the_launch_scripts_do_nothing_but_call_commands():
    scripts = sorted((ROOT / "launch").glob("*.py"))
    assert scripts
    for path in scripts:
        assert _imports(path) == {f"mappa_jax.commands.{path.stem}.run"}, path.name
        assert len(path.read_text(encoding="utf-8").splitlines()) < 8, path.name


def test_only_the_commands_read_flags_and_the_environment():
    for path in MODULES:
        if _part(path) == SHELL:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        read = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        imports = _imports(path)
        assert not {"os.environ", "os.getenv"} & (read | imports), _name(path)
        flags = {n for n in imports if n.startswith(("absl.flags", "absl.app"))}
        assert not flags, _name(path)
