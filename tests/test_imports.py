"""Who may import whom, and that importing is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# For each of our packages, the modules of ours that it may import, by the beginning of their names.
OURS = {
    "core": ("core",),
    "core.training.hints": ("core", "annotators"),  # it trains on the maps that the apps will give
    "core.training.detectors": ("core", "annotators"),  # it trains the detectors' networks
    "annotators": (
        *("annotators", "core.images", "core.weights", "core.errors", "core.runtime.device"),
        "core.models.winograd",
    ),
    "apps": ("apps", "annotators", "core"),
    "launch": ("apps", "annotators", "core"),
}
# For each library that only some modules may know, those modules, by the beginning of their names.
LIBRARIES = {
    "gradio": ("apps", "launch"),
    "gradio_client": ("apps",),
    "omegaconf": ("core.config", "core.weights", "core.training.export"),
    "open_clip": ("core.models.tokenizer",),
    "timm": ("annotators.nets.midas",),
    "cv2": ("annotators", "core.images", "core.training"),
    "huggingface_hub": ("core.weights",),
}


def begins(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


def modules() -> Iterator[tuple[str, Path]]:
    folders = [ROOT / name for name in OURS if "." not in name]
    for path in (ROOT / "launch.py", *(path for folder in folders for path in folder.rglob("*.py"))):
        if path.exists():
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(module: str, path: Path) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # "from core import images" imports core.images, so both readings are looked at.
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from names if base in OURS else [base]


def allowed(module: str) -> tuple[str, ...]:
    """Return what is said of the module itself, else of its package."""
    return max(((len(name), may) for name, may in OURS.items() if begins(module, (name,))))[1]


def breaches(module: str, path: Path) -> list[str]:
    found = []
    for name in imported(module, path):
        top = name.partition(".")[0]
        if top in OURS and not begins(name, allowed(module)):
            found.append(f"{module} imports {name}")
        if top in LIBRARIES and not begins(module, LIBRARIES[top]):
            found.append(f"{module} imports {name}")
    return found


def test_each_module_imports_only_what_it_may() -> None:
    assert [breach for module, path in modules() for breach in breaches(module, path)] == []


def test_the_check_sees_every_form_of_import(tmp_path: Path) -> None:
    path = tmp_path / "canny.py"
    path.write_text("from core import pipeline\nimport core.models\ndef f():\n    from timm import x\n")
    assert breaches("annotators.canny", path) == [
        "annotators.canny imports core.pipeline",
        "annotators.canny imports core.models",
        "annotators.canny imports timm",
    ]


def required(*files: str) -> set[str]:
    lines = [line for file in files for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    names = {re.split(r"[^\w.-]", line)[0] for line in lines if line and not line.startswith("#")}
    return {name.lower().replace("_", "-") for name in names}


def test_every_imported_library_is_required() -> None:
    distributions = packages_distributions()
    ours = {*OURS, "tests"}
    # A part of gradio, of the same version; what torch brings where it can be used; and what a measurement
    # compares with where it is installed.
    exempt = {"gradio_client", "triton", "diffusers", "transformers", "openvino"}
    tests = [("tests." + path.stem, path) for path in (ROOT / "tests").rglob("*.py")]
    runtime, all_files = required("requirements.txt"), required("requirements.txt", "requirements-dev.txt")
    for found, names in ((modules(), runtime), (iter(tests), all_files)):
        for module, path in found:
            for top in {name.partition(".")[0] for name in imported(module, path)}:
                if top and top not in ours | exempt | sys.stdlib_module_names:
                    homes = {home.lower().replace("_", "-") for home in distributions.get(top, [top])}
                    assert homes & names, f"{path.name} imports {top}, which no requirements file names"


LIGHT = """
import importlib, pkgutil, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import core, annotators
for package in (core, annotators):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
weights = [name for name in opened if name.endswith((".safetensors", ".pth", ".pt", ".ckpt", ".bin"))]
assert not weights, weights
import torch
assert not torch.cuda.is_initialized()
print("light", len([m for m in sys.modules if m.split(".")[0] in ("core", "annotators")]))
"""


def test_importing_every_module_opens_no_weights_and_starts_no_device() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("light") and int(done.stdout.split()[1]) > 10


@pytest.mark.parametrize("module", ["core", "core.request", "core.images", "annotators", "annotators.canny"])
def test_a_small_import_stays_small(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'gradio', 'open_clip') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
