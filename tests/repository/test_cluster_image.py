"""The image of a cluster: its versions, its Dockerfile, and what a job uploads beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package
from support.clusterfiles import CLUSTER, FILES, ROOT


def ray_version() -> str:
    (found,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_images_are_pinned_to_this_ray(path: Path) -> None:
    text = path.read_text()
    images = re.findall(r"\bimage: (?:&\w+ )?([^*\s]\S+)", text)
    assert images
    for image in images:
        assert image.endswith(f"/tokconv:{version('tokconv')}-ray{ray_version()}")
    assert ":latest" not in text


def test_the_dockerfile_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert linter is not None
    done = subprocess.run([linter, "--no-color", CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_has_the_tested_versions_and_is_not_root() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)$", text, re.MULTILINE) == [f"rayproject/ray:{ray_version()}-py311-cpu"]
    assert "--constraint constraints.txt" in text
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000"]
    assert "RAY_AUTH_MODE=token" in text
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    for source in re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert any(line.startswith(f"!{name}") for line in ignored), name
            assert (ROOT / name).exists()


def test_a_job_uploads_the_package_and_the_specs_but_nothing_large(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    for name in (
        "runs/stores/digits/tokens-00000.safetensors",
        ".venv/lib/large.so",
        "build/lib/large.so",
        "mlflow.db",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(bytes(2**20))
    create_package(str(tree), tmp_path / "package.zip", include_gitignore=True)
    with ZipFile(tmp_path / "package.zip") as package:
        names = [name for name in package.namelist() if not name.endswith("/")]
        size = sum(entry.file_size for entry in package.infolist())
    tops = {Path(*Path(name).parts[1:]).parts[0] if name.startswith("tree/") else Path(name).parts[0] for name in names}
    assert {"tokconv", "sweeps", "setup.cfg"} <= tops
    assert not tops & {"runs", "tests", "tools", "docs", "cluster", ".venv", "build", ".git", ".ci", "mlflow.db"}
    assert size < 5 * 2**20
