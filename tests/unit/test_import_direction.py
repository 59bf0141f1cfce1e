"""The arrows of the layout: who may import whom, read from the sources and from fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RUNTIME = {
    "router_ml",
    "numpy",
    "onnxruntime",
    "orjson",
    "tokenizers",
    "grpc",
    "grpc_health",
    "grpc_reflection",
    "prometheus_client",
    "opentelemetry",
    "google",
    "yaml",
}
"""All that serving may import besides the standard library."""

HOMES = {
    "grpc": (
        "router_ml/access",
        "router_ml/admission",
        "router_ml/aio_client",
        "router_ml/bench/",
        "router_ml/calls",
        "router_ml/client",
        "router_ml/connection",
        "router_ml/server",
        "router_ml/service",
        "router_ml/tls",
        "router_ml/v1/",
        "router_ml/wire",
    ),
    "lightgbm": ("training/fit", "training/trees", "training/cost", "training/export", "training/benchmark/baselines"),
    "mlflow": ("training/registry",),
    "model2vec": ("training/encoder",),
    "opentelemetry": ("router_ml/tracing",),
    "prometheus_client": ("router_ml/metrics",),
    "sentence_transformers": ("training/encoder",),
    "sqlalchemy": ("training/registry",),
    "torch": ("training/encoder",),
    "transformers": ("training/encoder",),
}
"""Heavy library -> beginnings of the paths of the files that may import it."""

HEAVY = (
    "lightgbm",
    "matplotlib",
    "mlflow",
    "model2vec",
    "onnx",
    "pandas",
    "pyarrow",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "torch",
    "training",
    "transformers",
)

STAGES = {"cost", "encoder", "evaluate", "export", "fit", "ingest", "predict", "registry", "split", "synthetic"}
"""What does one step of the road; every other module of training is a noun that stages share."""

ORDERERS = {
    "ab",
    "appraise",
    "benchmark",
    "commands",
    "demo",
    "drift",
    "follow",
    "nightly",
    "pipeline",
    "report",
    "selection",
    "version",
}
"""What puts stages in order or shows their results, and is imported by no stage."""

NOUNS_OF_STAGES = {("cost", "fit"), ("graph", "cost"), ("graph", "fit"), ("uncertainty", "fit")}
"""Pairs in which the first takes only the fitted object of the second."""


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str
    at_load: bool
    """Whether it runs when the file is loaded: not in a function, not for type checkers only."""

    @property
    def library(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(path: Path) -> Iterator[Import]:
    file = path.relative_to(ROOT).as_posix()

    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            at_load = False
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            at_load = False
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, at_load)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; write the whole name"
            for alias in node.names:
                yield Import(file, node.lineno, f"{node.module}.{alias.name}", at_load)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_load)

    return visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)


def imports_below(folder: str) -> list[Import]:
    found = [each for path in sorted((ROOT / folder).rglob("*.py")) for each in imports_of(path)]
    assert found, f"no sources below {ROOT / folder}"
    return found


def part(file: str) -> str:
    """`training/encoder/static.py` -> `encoder`; `training/fit.py` -> `fit`."""
    return Path(file).parts[1].removesuffix(".py")


def test_serving_imports_only_what_the_base_install_holds() -> None:
    allowed = RUNTIME | set(sys.stdlib_module_names)
    strangers = [
        each
        for each in imports_below("router_ml")
        if each.library not in allowed
        and not (each.file == "router_ml/cli.py" and each.library == "training" and not each.at_load)
    ]
    assert not strangers, "\n".join(map(str, strangers))


def test_each_heavy_library_has_one_home() -> None:
    strays = [
        each
        for each in imports_below("router_ml") + imports_below("training")
        if each.library in HOMES and not each.file.startswith(HOMES[each.library])
    ]
    assert not strays, "\n".join(map(str, strays))


def test_only_the_bundle_opens_sessions_in_serving() -> None:
    for path in sorted((ROOT / "router_ml").rglob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        opens = [call for call in calls if ast.unparse(call).endswith("InferenceSession")]
        assert not opens or path.name == "bundle.py", path


def test_stages_do_not_import_each_other() -> None:
    wrong = []
    for each in imports_below("training"):
        names = each.module.split(".")
        if names[0] != "training" or len(names) < 2:
            continue
        importer, imported = part(each.file), names[1]
        if importer == imported or importer in ORDERERS or (importer, imported) in NOUNS_OF_STAGES:
            continue
        if imported in STAGES | ORDERERS:
            wrong.append(each)
    assert not wrong, "\n".join(map(str, wrong))


def test_no_two_files_import_each_other_in_a_circle() -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in ("router_ml", "training")
        for path in (ROOT / folder).rglob("*.py")
    }
    arrows = {
        name: {
            target
            for each in imports_of(path)
            if each.at_load
            for target in (each.module, each.module.rpartition(".")[0])
            if target in files and target != name
        }
        for name, path in files.items()
    }
    while free := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert not arrows, f"in a circle, or above one: {sorted(arrows)}"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("router_ml", (*HEAVY, "grpc", "onnxruntime")),
        ("router_ml.router", (*HEAVY, "grpc")),
        ("router_ml.cli", (*HEAVY, "grpc", "onnxruntime")),
        ("router_ml.server", (*HEAVY, "opentelemetry", "prometheus_client")),
        ("router_ml.client", (*HEAVY, "onnxruntime")),
        ("router_ml.aio_client", (*HEAVY, "onnxruntime")),
    ],
)
def test_loading_a_front_door_loads_nothing_heavy(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sorted({set(forbidden)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
