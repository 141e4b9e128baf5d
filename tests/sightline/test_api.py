"""The public API: its names, what importing it costs, and files of the user that have the name of a package."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sightline
from index import errors
from tests.support.processes import ROOT, environment

FUNCTIONS = {
    *("ask", "ingest_sources", "load_encoders", "load_profile"),
    *("merge", "read_frames", "search", "select_keyframes"),
}
CLASSES = {"Asker", "Frame", "Store"}
ERRORS = {
    name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.SightlineError)
}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in `folder`, with the tree on its path."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def test_exported_names() -> None:
    assert len(ERRORS) > 40
    assert set(sightline.__all__) == FUNCTIONS | CLASSES | ERRORS | {"__version__"}
    assert len(set(sightline.__all__)) == len(sightline.__all__)
    for name in sightline.__all__:
        assert getattr(sightline, name) is not None, name
        assert name in dir(sightline)
    assert all(inspect.isfunction(getattr(sightline, name)) for name in FUNCTIONS)
    assert all(inspect.isclass(getattr(sightline, name)) for name in CLASSES)
    assert all(getattr(sightline, name) is getattr(errors, name) for name in ERRORS)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'sightline' has no attribute 'asks'"):
        getattr(sightline, "asks")  # noqa: B009 - mypy knows that the name does not exist


def test_the_version_is_that_of_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert sightline.__version__ in (declared, "0+unknown")
    texts = [path.read_text() for path in (ROOT / "infra").rglob("*") if path.name in ("compose.yaml", "Dockerfile")]
    assert len(texts) == 2
    assert all(f"sightline:{declared}" in text for text in texts)


def test_import_is_light(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import sightline; print(*(set(sys.modules) - before))"
    loaded = run(tmp_path, "-c", code)
    assert loaded.returncode == 0, loaded.stderr
    tops = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert tops <= sys.stdlib_module_names | {"sightline"}


@pytest.mark.parametrize("shadow", ["model.py", "index.py", "ingest/__init__.py", "pipeline/__init__.py"])
def test_a_file_of_the_user_that_shadows_a_package_is_named(tmp_path: Path, shadow: str) -> None:
    file = tmp_path / shadow
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    (tmp_path / "script.py").write_text("import sightline\n")
    package = shadow.partition("/")[0].removesuffix(".py")
    for arguments in (["script.py"], ["-c", "import sightline"], ["-m", "sightline", "--help"]):
        done = run(tmp_path, *arguments)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"ImportError: {file} shadows the package `{package}` of Sightline")
        assert "Rename it, or run Python from another folder" in last


def test_a_module_imported_earlier_under_the_name_of_a_package_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    done = run(tmp_path, "-c", "import sys, model; sys.path.remove(''); import sightline")
    assert f"{tmp_path / 'model.py'} shadows the package `model`" in done.stderr
    made = run(tmp_path, "-c", "import sys, types; sys.modules['index'] = types.ModuleType('index'); import sightline")
    assert "an entry of sys.modules shadows the package `index`" in made.stderr


def test_with_safe_path_the_folder_of_the_user_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    assert run(tmp_path, "-P", "-m", "sightline", "--help").returncode == 0


def test_video_is_decoded_in_a_folder_whose_files_have_the_names_of_packages(tmp_path: Path) -> None:
    """The decoder is a child process; the command's own folder must not be on its path."""
    for name in ("index.py", "ingest.py", "model.py", "pipeline.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')\n")
    rendered = run(
        tmp_path,
        *["-P", "-m", "sightline", "render", "--seed", "1", "--minutes", "0.1", "--cameras", "1", "--out", "footage"],
    )
    assert rendered.returncode == 0, rendered.stderr
    code = "import sightline; print(len(list(sightline.read_frames('footage/camera-1.mp4'))))"
    done = run(tmp_path, "-P", "-c", code)
    assert done.stdout == "6\n", done.stderr
