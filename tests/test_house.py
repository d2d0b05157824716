"""House rules over the whole tree: import floors, file length, unit suffixes, a source on every data row, no traces of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from roofplan.scenarios.units import suffix_of

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "scenarios": set[str](),
    "kernels": set[str](),
    "costmodels": {"scenarios"},
    "sim": {"costmodels", "scenarios"},
    "planner": {"sim", "costmodels", "scenarios"},
    "calibrate": {"sim", "costmodels", "kernels", "scenarios"},
}
"""Folder -> the folders it may import."""

HEAVY = {
    "torch": {"kernels"},
    "triton": {"kernels"},
    "pandas": {"calibrate", "sim"},
    "pyarrow": {"calibrate"},
    "scipy": {"calibrate"},
    "joblib": {"calibrate"},
}
"""Package -> the only folders whose code may import it."""

COUNTS = {"Gemm", "GroupedGemm", "Attention", "Shard", "StageParams"}
"""Classes whose plain floats are all counts (of rows, heads, layers, parameters), one per candidate."""

PLAIN_FLOATS = {
    "published_params", "published_active_params", "count", "stride", "per_head_elements",  # counts
    "elementwise_passes", "accumulate_passes", "loss_passes", "saved_hidden", "saved_attention", "saved_ffn", "expert_skew",  # ratios
    "published", "tolerance_abs", "step", "loss_points",  # in the unit of the row's own metric
}  # fmt: skip
"""Float fields that are counts, ratios of like things, or numbers whose unit another field names."""

NUMERIC_SOURCES = ("hardware", "links", "clusters", "frameworks")
SOFT_LINES, HARD_LINES = 300, 400


def tree() -> list[Path]:
    """Every file of the project: what git tracks or would track, or everything where there is no git."""
    git = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(git, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        hidden = re.compile(r"/(\.|__pycache__|build/|dist/|[^/]*\.egg-info)")
        return sorted(p for p in ROOT.rglob("*") if p.is_file() and not hidden.search(str(p)[len(str(ROOT)) :]))
    return sorted(p for name in done.stdout.split(b"\0") if name and (p := ROOT / name.decode()).is_file())


FILES = tree()
CODE = [p for p in FILES if p.suffix == ".py"]
TEMPLATES = ROOT / "planner" / "emit" / "templates"
SOURCE = [p for p in CODE if p.relative_to(ROOT).parts[0] in FLOORS and TEMPLATES not in p.parents]
DATA = [p for p in FILES if p.suffix == ".toml" and ROOT / "scenarios" in p.parents]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> list[str]:
    """Absolute names of all modules a file imports, inside functions too: ``roofplan.costmodels.op``, ``numpy``."""
    found = []
    package = ["roofplan", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            found += [".".join([*module, alias.name]) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_import_floors(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for module in imports(path):
        parts = module.split(".")
        if parts[0] in HEAVY:
            assert folder in HEAVY[parts[0]], f"{name_of(path)} imports {parts[0]}; only {', '.join(HEAVY[parts[0]])} may"
        if parts[0] == "roofplan" and parts[1] in FLOORS:
            assert parts[1] == folder or parts[1] in FLOORS[folder], f"{name_of(path)} imports {parts[1]}, which is not below {folder}"


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] != "roofplan", f"{name_of(path)}: write a relative import"


def test_floors_would_catch_an_import_upward(tmp_path: Path) -> None:
    """The check itself: a relative import out of a folder resolves to the folder it names."""
    file = ROOT / "scenarios" / "model.py"
    assert "roofplan.scenarios.errors.BadInput" in imports(file)
    assert any(m.startswith("roofplan.scenarios.") for m in imports(ROOT / "costmodels" / "params.py"))


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_every_module_and_public_name_says_what_it_is(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module), f"{name_of(path)} has no docstring"
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name_of(path)}: {node.name} has no docstring"


def test_files_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Over 400 lines fails; over 300 is listed (run with -s)."""
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in CODE}
    with capsys.disabled():
        for name, n in sorted(lengths.items()):
            if SOFT_LINES < n <= HARD_LINES:
                print(f"\n{name}: {n} lines, over {SOFT_LINES}", end="")
    assert {name: n for name, n in lengths.items() if n > HARD_LINES} == {}


def float_fields(path: Path) -> list[str]:
    """Names of the fields of a file's dataclasses whose type is a float or an array of floats."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name not in COUNTS and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    kind = ast.unparse(item.annotation)
                    if re.fullmatch(r"(float|Floats?|NDArray\[np\.float64\])( \| (float|None|Floats?|NDArray\[np\.float64\]))*", kind):
                        found.append(item.target.id)
    return found


@pytest.mark.parametrize("path", [p for p in SOURCE if p.relative_to(ROOT).parts[0] in ("scenarios", "costmodels")], ids=name_of)
def test_float_fields_name_their_unit(path: Path) -> None:
    named = re.compile(r"^n_|_(bytes|flops|s|usd)_per_")
    bare = [f for f in float_fields(path) if not suffix_of(f) and not named.search(f) and f not in PLAIN_FLOATS]
    assert bare == [], f"{name_of(path)}: give these fields a unit suffix (or, for a ratio, list them in PLAIN_FLOATS)"


def rows_without_source(data: dict[str, Any], numeric: bool) -> list[str]:
    """Keys of one data file that no ``source``, ``sources.<key>`` or ``sources.default`` covers; the file itself if it has neither.

    A case may name the file of ``references`` it was read from instead.
    """
    sources = data.get("sources", {})
    if "reference" in data and (ROOT / "scenarios" / "references" / f"{data['reference']}.toml").exists():
        return []
    if not sources and not data.get("source"):
        return ["<the file>"]
    if not numeric or "default" in sources or data.get("source"):
        return []
    named = {key.removesuffix(suffix_of(key)) or key for key in sources}
    numbers = [k for k, v in data.items() if isinstance(v, (int, float)) or (isinstance(v, str) and re.match(r"[0-9.]+ ?[^ ]*$", v))]
    return [k for k in numbers if not isinstance(data[k], bool) and (k.removesuffix(suffix_of(k)) or k) not in named and k not in sources]


@pytest.mark.parametrize("path", DATA, ids=name_of)
def test_every_data_row_has_a_source(path: Path) -> None:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    missing = rows_without_source(data, path.relative_to(ROOT).parts[1] in NUMERIC_SOURCES)
    assert missing == [], f"{name_of(path)}: add [sources] for {', '.join(missing)}"


def test_the_source_check_finds_a_bare_number() -> None:
    assert rows_without_source({"hbm": "80 GB", "n_sms": 132, "kind": "x", "sources": {"hbm_bytes": "sheet"}}, True) == ["n_sms"]
    assert rows_without_source({"n_sms": 132}, True) == ["<the file>"]
    assert rows_without_source({"n_sms": 132, "sources": {"default": "sheet"}}, True) == []


def joined(*parts: str) -> str:
    """A pattern in pieces, so that this file does not match itself."""
    return "".join(parts)


TRACES = {
    "a path of one machine": joined(r"(?<![\w.])/(wo", r"rk|ro", r"ot|home/\w+|op", r"t/pypi)[/\s'\"]"),
    "a scratch path": joined(r"(?<![\w.])/t", r"mp/\w"),
    "a folder outside the project": joined(r"\.\./sha", r"red"),
    "a registry address": joined(r"file", r":///|extra-index", r"-url|--index", r"-url|pypi", r"\.org/simple"),
    "unfinished work": joined(r"\bTO", r"DO\b|\bFIX", r"ME\b|NotImplemented", r"Error|pragma: no ", r"cover|\bx", r"fail\b"),
}


@pytest.mark.parametrize("kind", sorted(TRACES))
def test_no_traces(kind: str) -> None:
    pattern = re.compile(TRACES[kind])
    found = []
    for path in FILES:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name_of(path)}:{i}" for i, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    assert found == [], f"{kind} in the tree"


def test_the_trace_patterns_find_what_they_should() -> None:
    samples = {
        "a path of one machine": "see /" + "work/main",
        "a scratch path": "in /" + "tmp/v/bin",
        "a folder outside the project": "cat .." + "/shared/x",
        "a registry address": "pip install --index" + "-url x",
        "unfinished work": "# TO" + "DO later",
    }
    for kind, sample in samples.items():
        assert re.search(TRACES[kind], sample), kind


MARKDOWN = [p for p in FILES if p.suffix == ".md"]


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_markdown_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?://|mailto:|#", link)]
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_markdown_names_targets_of_the_makefile_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)|^make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert {a or b for a, b in named} <= targets
