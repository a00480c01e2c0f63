"""The package list, the wheel, and what importing costs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
HEAVY = ("numba", "transformers", "torch._inductor.compile_fx", "gguf", "onnx", "matplotlib")


def run_python(code: str, cwd: Path, *paths: Path) -> str:
    environment = {"PYTHONPATH": ":".join(map(str, paths)), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


def declared() -> dict[str, Path]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    roots = settings["package-dir"]
    folders = {}
    for package in settings["packages"]:
        prefix = max((root for root in roots if package == root or package.startswith(root + ".")), key=len)
        folders[package] = ROOT / roots[prefix] / package[len(prefix) :].strip(".").replace(".", "/")
    return folders


def test_the_package_list_is_the_tree():
    present = {
        path.parent for top in ("zigpass", "passes", "runtime", "tools") for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(declared().values()) == present


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the checkout, so that no stale build folder can leak into it."""
    import shutil

    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("zigpass", "passes", "runtime", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, check=True)
    return next(target.glob("*.whl"))


def test_the_wheel_holds_every_source_file(wheel):
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in declared().items()
        for path in folder.iterdir()
        if path.suffix in (".py", ".cu", ".cuh") or path.name == "py.typed"
    }
    expected |= {f"zigpass/tools/templates/{path.name}" for path in (ROOT / "tools" / "templates").iterdir()}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= names
    assert not [name for name in names if name.startswith(("passes/", "runtime/", "tools/", "tests/"))]


def test_the_wheel_works_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import torch, zigpass, zigpass.passes, zigpass.runtime, zigpass.cli;"
        "zigpass.cli.app();"
        "model = torch.nn.Sequential(torch.nn.Linear(64, 64));"
        "zigpass.quantize_(model, progress=False);"
        "x = torch.randn(1, 64);"
        "print(torch.compile(model, backend='zigpass', options={'inner': 'eager'})(x).shape, zigpass.__file__)"
    )
    output = run_python(code, empty, site)
    assert "torch.Size([1, 64])" in output
    assert str(site) in output


def test_a_bare_checkout_works_without_being_installed(tmp_path):
    code = "import zigpass.passes, zigpass.runtime; print(zigpass.passes.__file__)"
    assert str(ROOT / "passes") in run_python(code, tmp_path, ROOT)


def test_importing_stays_light(tmp_path):
    code = f"import sys, zigpass; print([name for name in {HEAVY} if name in sys.modules])"
    assert run_python(code, tmp_path, ROOT).strip() == "[]"


def test_type_information_is_shipped(wheel):
    assert "zigpass/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_no_file_is_too_long_to_read():
    long = {}
    for path in ROOT.rglob("*.py"):
        if not {".venv", "build", "dist"} & set(path.relative_to(ROOT).parts):
            lines = len(path.read_text().splitlines())
            if lines > 400:
                long[str(path.relative_to(ROOT))] = lines
    assert not long
