"""Tests of scripts.release and scripts.weights: what the archives hold, the same bytes twice, every refusal."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, download_large_files

from scripts.release import LARGE_BYTES, RELEASES, main, release

ROOT = Path(__file__).parents[1]
VERSION = json.loads((ROOT / "bundle/configs/metadata.json").read_text())["version"]
TASK_LAYERS = {"vs": [], "glioma": ["glioma.yaml", "glioma_2mm.yaml"]}
STACKS = [["train.json"], ["train.json", "pretrain.json"], ["train.json", "evaluate.json"], ["inference.json"]]
STACKS += [["train.json", "pretrain.json", "localize.json"], ["train.json", "evaluate.json", "pretrain.json"]]


def git(folder: Path, *arguments: str) -> None:
    """A git command that needs nobody's settings."""
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(repository_copy: Path, tmp_path: Path) -> Path:
    """A repository of its own for a test that changes something; files are linked until they are written anew."""
    copy = tmp_path / "repository"
    subprocess.run(["cp", "-rl", str(repository_copy), str(copy)], check=True)
    return copy


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(change(content) or content, indent=4))


@pytest.mark.parametrize("task", RELEASES)
def test_two_builds_have_the_same_bytes(task: str, repository_copy: Path, released: Path, tmp_path: Path) -> None:
    archive = release(task, VERSION, tmp_path / "again", bundle=repository_copy / "bundle")
    assert archive.name == f"{RELEASES[task].name}_v{VERSION}.zip"
    first = released.parent / archive.name
    assert archive.read_bytes() == first.read_bytes()
    done = subprocess.run(["sha256sum", "-c", f"{archive.name}.sha256"], cwd=archive.parent, check=True, text=True,
                          capture_output=True)  # fmt: skip
    assert done.stdout == f"{archive.name}: OK\n"


@pytest.mark.parametrize("task", RELEASES)
def test_the_archive_holds_one_folder_of_the_bundles_name(task: str, released: Path) -> None:
    name = RELEASES[task].name
    with zipfile.ZipFile(released.parent / f"{name}_v{VERSION}.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert {Path(entry).parts[0] for entry in names} == {name}
        assert names == sorted(names) and len(names) == len(set(names))
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}
    for part in (
        "LICENSE",
        "docs/README.md",
        "docs/data_license.txt",
        "configs/logging.conf",
        "scripts/prepare.py",
    ):
        assert f"{name}/{part}" in names
    weights = [entry for entry in names if re.fullmatch(r"[^/]+/models/[^/]+\.pt", entry)]
    assert weights == [f"{name}/models/model.pt"], "MONAI Label offers every models/*.pt as a model"
    assert not [entry for entry in names if "release.py" in entry or entry.endswith((".nii.gz", ".dcm", ".pyc"))]


def test_what_belongs_to_the_other_bundle_is_not_in_it(released: Path) -> None:
    vs, glioma = (released / RELEASES[task].name for task in ("vs", "glioma"))
    assert not list(vs.rglob("*metadata_glioma*")) and not (vs / "models/glioma").exists()
    assert not (vs / "docs/glioma.md").exists()
    assert not (glioma / "models/localizer").exists()
    assert {file.name for file in glioma.rglob("glioma*.yaml")} == {"glioma_weights.yaml", "glioma_folds.yaml"}
    sha256 = {task: hashlib.sha256((folder / "models/model.pt").read_bytes()).hexdigest()
              for task, folder in (("vs", vs), ("glioma", glioma))}  # fmt: skip
    assert sha256["vs"] != sha256["glioma"]


@pytest.mark.parametrize("files", STACKS, ids=lambda files: "+".join(Path(name).stem for name in files))
@pytest.mark.parametrize("task", RELEASES)
def test_merged_configs_say_what_the_layers_said(task: str, files: list[str], released: Path) -> None:
    own = released / RELEASES[task].name / "configs"
    merged = ConfigParser.load_config_files([str(own / name) for name in files])
    repository = ROOT / "bundle" / "configs"
    layers = ConfigParser.load_config_files([str(repository / name) for name in (*files, *TASK_LAYERS[task])])
    unused = set(layers) - set(merged)  # what only other files of the bundle have
    assert {key: value for key, value in layers.items() if key not in unused} == merged
    assert unused <= {key for layer in TASK_LAYERS[task] for key in yaml.safe_load((repository / layer).read_text())}


def test_no_text_of_the_glioma_bundle_names_a_merged_file(released: Path) -> None:
    folder = released / RELEASES["glioma"].name
    for file in [*(folder / "configs").rglob("*.*"), folder / "docs/README.md", folder / "docs/commands.md"]:
        text = file.read_text(encoding="utf-8")
        assert "glioma.yaml" not in text and "glioma_2mm.yaml" not in text, file.name


# --- Refusals


OTHER_VERSION = {"version": "9.9.9", "changelog": {VERSION: "", "9.9.9": "not this one"}}


@pytest.mark.parametrize(
    ("change", "version", "message"),
    [
        (lambda old: old | {"demonstration_weights": ["x.pt"]}, VERSION, r"calls \['x\.pt'\] a demonstration"),
        (None, "9.9.9", r"version 9\.9\.9 is not in the changelog"),
        (lambda old: old | OTHER_VERSION, VERSION, "has version 9.9.9, asked for was"),
        (lambda old: old | OTHER_VERSION, "9.9.9", r"CHANGELOG\.md has no section for version 9\.9\.9"),
        (lambda old: {key: old[key] for key in old if key != "intended_use"}, VERSION, "has no intended_use"),
        (lambda old: old | {"required_packages_version": {"nibabel": "1.0.0"}}, VERSION, r"nibabel 1\.0\.0 \(pinned"),
        (lambda old: old | {"weights_sha256": {}}, VERSION, "names the weights"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(
    change: Callable | None, version: str, message: str, repository: Path, tmp_path: Path
) -> None:
    if change:
        rewrite(repository / "bundle/configs/metadata.json", change)
        git(repository, "commit", "-qam", "changed")
    with pytest.raises(ValueError, match=message):
        release("vs", version, tmp_path / "dist", bundle=repository / "bundle")
    assert not (tmp_path / "dist").exists()


def test_an_uncommitted_tree_is_refused(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "bundle/scripts/new.py").write_text("# not committed\n")
    monkeypatch.setattr("scripts.release.BUNDLE", repository / "bundle")
    with caplog.at_level(logging.ERROR):
        assert main(["--task", "vs", "--version", VERSION, "--output", str(tmp_path / "dist")]) == 1
    assert "1 uncommitted changes (?? bundle/scripts/new.py): commit or remove them" in caplog.text


@pytest.mark.parametrize("name", ["model.pt", "perceptor/perceptor.pt", "localizer/localizer.pt"])
def test_tampered_and_foreign_weights_are_refused(name: str, repository: Path, tmp_path: Path) -> None:
    file = repository / "bundle/models" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    git(repository, "commit", "-qam", "a flipped bit")
    with pytest.raises(ValueError, match=rf"models/{name} has sha256 \w+, configs/metadata.json names \w+: export"):
        release("vs", VERSION, tmp_path / "dist", bundle=repository / "bundle")
    torch.save({"weight": torch.zeros(3)}, file)

    def named(metadata: dict) -> None:
        metadata["weights_sha256"][f"models/{name}"] = hashlib.sha256(file.read_bytes()).hexdigest()

    rewrite(repository / "bundle/configs/metadata.json", named)
    git(repository, "commit", "-qam", "another network")
    with pytest.raises(ValueError, match="does not hold the weights of the configured"):
        release("vs", VERSION, tmp_path / "dist", bundle=repository / "bundle")


@pytest.mark.parametrize("key", ["pixdimm: 1", "network_def#dropout: [0]"])
def test_an_override_that_cannot_be_merged_is_refused(key: str, repository: Path, tmp_path: Path) -> None:
    file = repository / "bundle/configs/glioma_2mm.yaml"
    text = file.read_text()
    file.unlink()
    file.write_text(text + key + "\n")
    git(repository, "commit", "-qam", "another key")
    with pytest.raises(ValueError, match=f"no JSON config has {key.split(':')[0]}"):
        release("glioma", VERSION, tmp_path / "dist", bundle=repository / "bundle")


def test_a_bundle_without_its_weights_is_refused(repository: Path, tmp_path: Path) -> None:
    git(repository, "rm", "-q", "bundle/models/model.pt")
    git(repository, "commit", "-qm", "no weights")
    with pytest.raises(FileNotFoundError, match=r"no models/model\.pt"):
        release("vs", VERSION, tmp_path / "dist", bundle=repository / "bundle")


# --- Large files, and weights of one's own


def test_large_files_are_offered_as_monai_reads_them(repository_copy: Path, tmp_path: Path) -> None:
    hosted = tmp_path / "dist"
    archive = release("vs", VERSION, hosted, bundle=repository_copy / "bundle", assets_url=hosted.as_uri())
    (listing,) = hosted.glob("*_large_files.yml")
    target = tmp_path / RELEASES["vs"].name
    (target / "models").mkdir(parents=True)
    shutil.copy(listing, target / "large_files.yml")
    download_large_files(str(target))
    weights = ROOT / "bundle/models/model.pt"
    assert weights.stat().st_size > LARGE_BYTES
    assert (target / "models/model.pt").read_bytes() == weights.read_bytes()
    assert archive.is_file()
