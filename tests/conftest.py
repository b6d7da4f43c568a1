"""Data and helpers that several test modules share: tiny prepared folders, and workflows run in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow
from warm import Warm

from scripts.data.datalist import TASKS, datalist_entry, prepared_path, write_datalist
from scripts.data.dataset import prepare_source
from scripts.data.phantom.make import make_phantom
from scripts.release import RELEASES, REQUIREMENTS, release

TESTS = Path(__file__).parent
BUNDLE_ROOT = TESTS.parent / "bundle"
CONFIGS = BUNDLE_ROOT / "configs"
FIXTURE = TESTS / "fixtures" / "Task01_BrainTumour"
RELEASE_READS = ("CHANGELOG.md", *REQUIREMENTS, ".gitignore")  # of the repository, besides bundle/

# Voxels, mm, and the tumor's diameter in mm; the grids are as small as the debug patches allow.
PHANTOMS = {
    "vs": ((48, 48, 12), (0.41, 0.41, 1.5), 8.0),
    "glioma": ((40, 44, 36), (4.0, 4.0, 4.0), 60.0),
    "surrogate_t2_cet1": ((40, 44, 36), (4.0, 4.0, 4.0), 60.0),
}
SECTION_OF = ("training",) * 4 + ("validation",) * 2 + ("testing",) * 2
WITHOUT_TUMOR = len(SECTION_OF) - 1


def pytest_configure(config: pytest.Config) -> None:
    """Lets one of several processes of tests use one core, and what it starts too."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundle_root() -> Path:
    return BUNDLE_ROOT


@pytest.fixture(scope="session")
def make_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a fresh folder of tiny phantoms: 4 training, 2 validation, 2 testing, the last without tumor."""

    def make(task: str) -> Path:
        folder = tmp_path_factory.mktemp(f"data_{task}")
        shape, spacing, diameter = PHANTOMS[task]
        sections: dict[str, list[dict[str, Any]]] = {}
        for index, section in enumerate(SECTION_OF):
            case = f"phantom_{task}_{index:04d}"
            tumor = index != WITHOUT_TUMOR
            phantom = make_phantom(index, task=task, shape=shape, spacing=spacing, tumor=tumor, diameter=diameter)
            (folder / case).mkdir()
            for name in TASKS[task].modalities:
                voxels = np.rint(phantom.images[name]).astype(np.int16)
                nib.save(nib.Nifti1Image(voxels, phantom.affine), folder / prepared_path(case, name))
            nib.save(nib.Nifti1Image(phantom.label, phantom.affine), folder / prepared_path(case, "label"))
            sections.setdefault(section, []).append(datalist_entry(case, case, task))
        write_datalist(folder / "datalist.json", task, sections)
        return folder

    return make


@pytest.fixture(scope="session")
def vs_data(make_data: Callable[[str], Path]) -> Path:
    """Phantoms of the vs task; not to be changed by a test."""
    return make_data("vs")


@pytest.fixture(scope="session")
def glioma_data(make_data: Callable[[str], Path]) -> Path:
    """Phantoms of the glioma task; not to be changed by a test."""
    return make_data("glioma")


@pytest.fixture(scope="session")
def surrogate_data(make_data: Callable[[str], Path]) -> Path:
    """Phantoms of the surrogate task; not to be changed by a test."""
    return make_data("surrogate_t2_cet1")


@pytest.fixture(scope="session")
def real_mri(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Prepares the committed patient for a task, once; its only case is in the testing section."""
    made: dict[str, Path] = {}

    def prepared(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(f"real_{task}")
            split = made[task] / "split.csv"
            split.write_text("case,split\nBRATS_001,testing\n")
            prepare_source("msd", FIXTURE, made[task], task, split=split)
        return made[task]

    return prepared


@pytest.fixture(scope="session")
def open_workflow() -> Callable[..., ConfigWorkflow]:
    """Reads configs (named below bundle/configs), as `python -m monai.bundle run` does, without running them.

    Every path is absolute, so that the working directory does not matter; logging is left as pytest has it.
    """

    def open_configs(
        files: Sequence[str], overrides: Mapping[str, Any] | None = None, *, kind: str = "train", **options: Any
    ) -> ConfigWorkflow:
        return create_workflow(
            config_file=[str(CONFIGS / name) for name in files],
            workflow_type=kind,
            logging_file=False,
            **options,
            **{"bundle_root": str(BUNDLE_ROOT), "num_workers": 0, **(overrides or {})},
        )

    return open_configs


@pytest.fixture(scope="session")
def run_workflow(open_workflow: Callable[..., ConfigWorkflow]) -> Callable[..., ConfigWorkflow]:
    """Opens configs as `open_workflow` does, initializes, runs and finalizes them."""

    def run(files: Sequence[str], overrides: Mapping[str, Any] | None = None, **options: Any) -> ConfigWorkflow:
        workflow = open_workflow(files, overrides, **options)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return workflow

    return run


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Runs `python ...` in processes that have the slow imports behind them."""
    with Warm() as process:
        yield process


@pytest.fixture(scope="session")
def messages_of() -> Callable[[BaseException], str]:
    """All messages of an error and its causes: monai.bundle raises "Failed to instantiate ..." from what happened."""

    def chain(error: BaseException) -> str:
        text = str(error)
        return text if error.__cause__ is None else f"{text}\n{chain(error.__cause__)}"

    return chain


@pytest.fixture(scope="session")
def repository_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this working copy would commit, as a committed repository of its own; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("released") / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "bundle", *RELEASE_READS],
        cwd=TESTS.parent,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (TESTS.parent / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(TESTS.parent / name, folder / name)
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "as it is")):
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def released(repository_copy: Path) -> Path:
    """Folder with both released bundles, unpacked; the archives lie beside it. Not to be changed by a test."""
    dist = repository_copy.parent / "dist"
    version = json.loads((repository_copy / "bundle/configs/metadata.json").read_text(encoding="utf-8"))["version"]
    for task in RELEASES:
        archive = release(task, version, dist, bundle=repository_copy / "bundle")
        shutil.unpack_archive(archive, dist / "unpacked")
    return dist / "unpacked"
