"""Who may import whom: the floors of the house. An arrow that is not in this table fails."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segkit"

# room            may import from segkit
ALLOWED = {
    "errors":        set(),
    "arrays":        set(),
    "bands":         {"arrays", "errors"},
    "machine":       {"errors"},
    "bars":          set(),
    "text":          set(),
    "files":         {"errors"},
    "paths":         {"errors"},
    "plain_data":    {"errors", "paths"},
    "recipes":       {"errors", "paths", "plain_data"},
    "archives":      {"errors", "paths"},
    "io":            {"arrays", "bands", "errors", "files", "paths"},
    "metadata":      {"arrays", "errors", "paths"},
    "formats":       {"archives", "arrays", "errors", "files", "io", "metadata", "paths", "plain_data", "text"},
    "ops":           {"bands", "errors", "machine"},
    "visualization": {"errors", "text"},
    "contact_sheet": {"errors", "visualization"},
    "models":        {"bars", "errors", "files", "ops", "metadata", "paths", "text"},
    "inference":     {"arrays", "bands", "errors", "files", "formats", "io", "machine", "ops", "metadata", "models",
                      "paths", "plain_data", "recipes", "visualization"},
    "evaluation":    {"arrays", "errors", "files", "metadata", "ops", "text", "visualization", "__version__"},
    "predictions":   {"arrays", "archives", "bars", "machine", "errors", "files", "io", "metadata", "paths",
                      "text", "evaluation"},
    "data":          {"arrays", "archives", "bands", "bars", "machine", "errors", "files", "formats", "io",
                      "metadata", "paths", "text"},
    "benchmark":     {"arrays", "bands", "bars", "data", "errors", "evaluation", "files", "inference", "io",
                      "metadata", "models", "ops", "paths", "plain_data", "predictions", "recipes", "text"},
    "explain":       {"arrays", "bars", "errors", "evaluation", "files", "inference", "metadata", "models", "ops",
                      "text", "visualization"},
    "doctor":        {"__version__", "machine", "errors", "files", "io", "paths", "ops", "models", "inference", "data",
                      "text"},
    "study":         {"errors", "evaluation", "files", "plain_data", "recipes", "text"},
    "training":      {"arrays", "bands", "bars", "errors", "plain_data", "files", "io", "ops", "metadata", "models",
                      "inference", "evaluation", "predictions", "text", "visualization"},
}  # fmt: skip

# room            never, not even through others
FORBIDDEN = {
    "metadata":                   {"torch", "pytorch_lightning", "cv2"},
    "models.download":            {"torch", "numpy", "cv2"},
    "files":                      {"torch", "numpy", "cv2"},
    "paths":                      {"torch", "numpy", "cv2"},
    "plain_data":                 {"torch", "numpy", "cv2"},
    "recipes":                    {"torch", "numpy", "cv2"},
    "archives":                   {"torch", "numpy", "cv2"},
    "io":                         {"torch", "pytorch_lightning"},
    "visualization":              {"torch", "pytorch_lightning"},
    "contact_sheet":              {"torch", "pytorch_lightning"},
    "formats.base":               {"torch", "pytorch_lightning", "rasterio", "shapely"},
    "formats.names":              {"torch", "numpy", "cv2"},
    "ops.upsample":               {"pytorch_lightning", "timm", "segmentation_models_pytorch"},
    "models.segmentation":        {"pytorch_lightning", "timm", "segmentation_models_pytorch", "torchvision", "sympy"},
    "inference.segmenter":        {"pytorch_lightning", "timm", "segmentation_models_pytorch", "albumentations",
                                   "torchvision", "torch._dynamo", "sympy", "huggingface_hub"},
    "inference.exported.label_model": {"torch", "onnx", "pytorch_lightning", "matplotlib"},
    "explain.explanation":        {"pytorch_lightning", "timm", "segmentation_models_pytorch", "torchvision"},
    "evaluation.conventions":     {"torch"},
    "evaluation.confusion":       {"pytorch_lightning", "torchmetrics", "timm"},
    "training.losses":            {"pytorch_lightning", "timm", "segmentation_models_pytorch"},
    "doctor.examination":         {"torch", "pytorch_lightning", "numpy", "cv2"},
    "cli":                        {"torch", "pytorch_lightning", "numpy", "cv2"},
    "cli.benchmark.command":      {"torch", "pytorch_lightning", "jsonargparse", "cv2"},
}  # fmt: skip


@cache
def nodes(path: Path) -> list[ast.AST]:
    """The syntax tree of a file, from the top."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def arrows(path: Path) -> set[str]:
    """The rooms that a file imports."""
    rooms = set()
    for node in nodes(path):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = node.module.split(".")
            names = [f"segkit.{alias.name}" for alias in node.names] if parts == ["segkit"] else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
        rooms |= {name.split(".")[1] for name in names if name.startswith("segkit.")}
    return rooms


@pytest.mark.parametrize("room", ALLOWED)
def test_every_import_goes_down_a_floor(room: str) -> None:
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        assert arrows(path) - {room} <= ALLOWED[room], f"{path.relative_to(PACKAGE.parent)} imports up the house"


def test_every_room_is_in_the_table() -> None:
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert rooms - {"__init__", "__main__", "cli", "__pycache__"} == ALLOWED.keys()


def test_functions_import_only_in_the_command_line() -> None:
    """Elsewhere a function-level import hides an arrow; the exceptions save seconds of start-up."""
    exceptions = {"__init__.py", "models/decoders.py", "models/encoders.py", "models/resnest.py", "training/losses.py",
                  "io/bands.py", "inference/segmenter.py"}  # fmt: skip
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name in exceptions or name.startswith(("cli/", "doctor/")):  # a broken package is what doctor looks for
            continue
        for function in nodes(path):
            if isinstance(function, ast.FunctionDef):
                imports = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
                assert all(name.startswith("ops/") and is_of_kernels(n) for n in imports), name


def is_of_kernels(node: ast.Import | ast.ImportFrom) -> bool:
    """Triton is absent on some systems, and only a tensor on CUDA needs it."""
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segkit.ops.kernels")


_IMPORTS = """
import os, sys

rooms = {rooms!r}
for room in sorted(rooms, key=lambda room: "torch" not in rooms[room]):
    if "torch" not in rooms[room]:
        import torch  # once, as it takes seconds
    if os.fork() == 0:
        __import__("segkit." + room)
        print(room, *(rooms[room] & sys.modules.keys()), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, room
"""


@cache
def dragged_in() -> dict[str, list[str]]:
    """What is imported with each room of `FORBIDDEN`, of what it must not import."""
    command = [sys.executable, "-c", _IMPORTS.format(rooms=FORBIDDEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize("module", FORBIDDEN)
def test_what_a_room_drags_in(module: str) -> None:
    assert dragged_in()[module] == []


def test_no_print_in_the_package() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.parts:
            continue
        calls = [n for n in nodes(path) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path


# The files that alone reach for private names: of Lightning, of PyTorch, and of jsonargparse.
BORDERS = {"training/lightning_border.py", "ops/torch_private.py", "cli/jsonargparse_border.py"}
LOOPS = {"fit_loop", "epoch_loop", "validate_loop", "test_loop", "predict_loop"}  # Lightning promises nothing of these
ACCESS = {"getattr", "setattr", "hasattr"}
PUBLIC = {"os._exit", "cut._replace"}  # documented in spite of the underscore


def test_private_names_of_libraries_stand_in_their_border() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): nodes(path) for path in PACKAGE.rglob("*.py")}
    own = {name for inside in files.values() for node in inside for name in defined(node)}
    found = {(file, name) for file, inside in files.items() for node in inside for name in reached(node, own)}
    assert {(file, name) for file, name in found if file not in BORDERS} == set()
    assert {file for file, _ in found} == BORDERS, "a border that nobody needs"


def defined(node: ast.AST) -> set[str]:
    """Private names that a statement of segkit's gives to something of its own."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    parts = [part for target in targets for part in ast.walk(target)]
    return {p.attr for p in parts if isinstance(p, ast.Attribute)} | {p.id for p in parts if isinstance(p, ast.Name)}


def reached(node: ast.AST, own: set[str]) -> set[str]:
    """What a node of the syntax tree takes of others: private names, and Lightning's loops."""
    if isinstance(node, ast.ImportFrom):
        return {name for name in [*(node.module or "").split("."), *(a.name for a in node.names)] if is_private(name)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ACCESS:
        return {arg.value for arg in node.args if isinstance(arg, ast.Constant) and is_private(str(arg.value))}
    if not isinstance(node, ast.Attribute) or not (node.attr in LOOPS or is_private(node.attr)):
        return set()
    inside = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") and node.attr in own
    return set() if (inside and node.attr not in LOOPS) or ast.unparse(node) in PUBLIC else {node.attr}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
