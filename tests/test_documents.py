"""Every command in every document, as printed and in the order of the text, on made data; links, files and options too.

A command that is found is run: there is no list of commands to run, only ELSEWHERE of those that are not, each with
its reason. What is made small is said by `small`; what a name in capitals stands for by `Sandbox`. Commands of several
processes, servers and whole documents of experiments are marked slow.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from documents import (
    BUNDLE,
    CONFIGS,
    ROOT,
    Document,
    anchors,
    config_files,
    documents,
    links,
    named_files,
    named_options,
)
from made.tcia import MadePatient, write_patient
from monai.bundle import ConfigParser
from running import free_port, running
from warm import Warm

from monailabel_app import versions
from scripts.data.datalist import SECTIONS, load_datalist
from scripts.files import sha256
from scripts.networks.localizer import Localizer
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5
from scripts.release import RELEASES, REQUIREMENTS, contents
from scripts.weights import enter_weights

logger = logging.getLogger(__name__)

SECONDS = 900  # a command; most take 2, the demonstration some 200 on an idle machine
VERSION = "0.0.1"
PATIENTS = 4

PUBLISHES = "uploads, or needs what was uploaded; on this machine: tests/test_publishing.py"
PACKS = "needs a committed tree with all weights: tests/test_release.py"
INSTALLS = "installs packages for minutes; every test here needs them to be there"
GPU = "needs a GPU, and up to an hour on it"
BENCH_INFERENCE = "python ../tests/benchmarks/bench_inference.py"
DOWNLOAD = "python -m monai.bundle download --name tissnet_glioma --version V"
PUSH = (
    "push_to_hf_hub --repo OWNER/tissnet_glioma --name tissnet_glioma --bundle_dir unpacked --version V --private False"
)
ELSEWHERE = {
    "make setup": INSTALLS,
    "python -m venv .venv": INSTALLS,
    ".venv/bin/python -m pip install -r requirements.txt": INSTALLS,
    "source ../.venv/bin/activate": "changes the reader's shell; every python here is the one of .venv",
    "make test": "is what runs this",
    '.venv/bin/python -m pytest -m "not slow" --numprocesses logical --maxprocesses 4': "is what runs this",
    "make demo": "7 minutes; is `python -m scripts.demo`, which is run here with fewer steps",
    "make bench": "25 minutes; the same files are run here for results.md, with smaller sizes",
    'make serve STUDIES=http://127.0.0.1:8042/dicom-web SERVE_OPTIONS="--models BUNDLE"': (
        "needs an archive; tests/app/store/test_dicom_store.py and tests/benchmarks/ohif.py have Orthanc"
    ),
    f'{BENCH_INFERENCE} --crop 128 128 16 --arms "OpenVINO int8" "engine, as inference.json"': (
        "needs nncf, which is not among the requirements"
    ),
    f"{BENCH_INFERENCE} --whole-scan": "5 minutes; takes the released weights, whose networks cannot be made small",
    "python docs/segment_scan.py . SCANS --output OUT_PYTHON": (
        "reads inference.json alone, whose networks cannot be made small: tests/test_segment_scan.py"
    ),
    "python ../tests/benchmarks/exports.py": "takes the released weights: a slow test of tests/test_exports.py",
    "make zoo-check": "is tests/test_zoo.py",
    (
        "python -m scripts.experiments --dataset_dir DIR --output runs/folds --arms tissnet source_only upper_bound "
        "--jobs 2"
    ): ("trains on every fold; a slow test of tests/test_experiments.py"),
    (
        "python -m scripts.prepare brats --input BRATS --output data/glioma --task glioma --accept CASE:modality "
        '--accept "OTHER:mask outside head"'
    ): ("names cases that are looked at; tests/data/test_accept.py"),
    "python tests/fuzz/headers.py --format nifti --seconds 60": "a minute; tests/fuzz/test_headers.py is the same",
    (
        "python -m scripts.report runs/folds/source_only runs/folds/tissnet runs/folds/upper_bound "
        "--output runs/folds/report"
    ): ("needs what scripts.experiments leaves; the same slow test"),
    (
        "python ../tests/benchmarks/exports.py --bundle UNPACKED/tissnet_glioma "
        "--image PATIENT_t1.nii.gz PATIENT_t1ce.nii.gz PATIENT_t2.nii.gz --label PATIENT_seg.nii.gz"
    ): "takes an unpacked release and a patient: tests/test_exports.py has both in small",
    "python -m scripts.release --task vs --version V --output ../dist": PACKS,
    "python -m scripts.release --task glioma --version V --output ../dist": PACKS,
    "python -m scripts.release --task glioma --version 0.1.0 --output ../dist": PACKS,
    "python -m scripts.release ... --assets-url https://github.com/OWNER/REPO/releases/download/vV": PACKS,
    "python ../tests/benchmarks/from_zip.py --dist ../dist --work EMPTY --data glioma=DOWNLOADED": (
        "10 minutes; needs the archives, and servers: tests/test_release.py, tests/app/test_stock.py"
    ),
    f"{DOWNLOAD} --source github --repo OWNER/REPO/vV --bundle_dir DIR": PUBLISHES,
    f"{DOWNLOAD} --source huggingface_hub --repo OWNER/tissnet_glioma --bundle_dir DIR": PUBLISHES,
    "unzip dist/tissnet_glioma_vV.zip -d unpacked": PUBLISHES,
    f"HF_TOKEN=... python -m fire monai.bundle {PUSH}": PUBLISHES,
    "python -m monai.bundle push_to_hf_hub": "is said to fail: tests/test_publishing.py has what works",
    "python -m monai.bundle download_large_files --bundle_path models/NAME": PUBLISHES,
    "cd DIR && sha256sum -c tissnet_glioma_vV.zip.sha256": PUBLISHES,
    "cat train_vs.pt.* > train_vs.pt": "joins what gpu.sh left on a GPU",
    "sha256sum -c --ignore-missing weights.sha256": "checks what gpu.sh left on a GPU",
    **{
        f"bash tests/benchmarks/gpu.sh {stages}": GPU
        for stages in (
            *("install test", "install bench", "whole_scan", "waiting", "growth", "export", "weights"),
            *("localize_vs weights", "pretrain_vs train_vs weights"),
        )
    },
    **{
        f"GLIOMA=DIR bash tests/benchmarks/gpu.sh {stages}": GPU
        for stages in ("pretrain_glioma train_glioma", "source_glioma", "evaluate_glioma")
    },
}
"""Commands that are not run here: why, and the test or the command that stands for each."""
PACKAGES = "python -m pip install "  # not run either; test_packages_are_those_of_the_tests compares what it names
TENSORRT = "python -m monai.bundle trt_export "  # needs a GPU and torch_tensorrt

HISTORY = ("CHANGELOG.md",)  # names commands of versions; tells nobody to type them
WITH_COMMANDS = [document for document in documents() if document.commands and document.name not in HISTORY]
EXPERIMENTS = ("bundle/docs/results.md", "tests/benchmarks/README.md", "bundle/configs/")
LONG = ("bundle/docs/commands.md", "bundle/docs/data.md", "bundle/docs/glioma.md")  # over 20 s each
SHORT = [document for document in WITH_COMMANDS if not document.name.startswith(EXPERIMENTS)]

# Where the commands of a document are typed, if not in the repository.
RELEASED_WITH: dict[str, tuple[str, ...]] = {
    "bundle/docs/README.md": ("vs",),
    "bundle/docs/glioma.md": ("glioma",),
    "bundle/docs/commands.md": ("vs", "glioma"),
    "bundle/docs/data.md": ("vs",),
}
# What starts servers needs networks of the size that inference.json has.
WITH_RELEASED_WEIGHTS = ("README.md", "monailabel_app/README.md", "bundle/docs/slicer.md")

# At the top of a folder that is copied: models, and what runs leave behind.
LEFT_BEHIND = {"models", "runs", "data", "demo", "eval", "out", "model", "logs"}
GRID = {"vs": "[0.82,0.82,2.2]", "glioma": "[4,4,4]", "surrogate_t2_cet1": "[4,4,4]"}  # of the made scans, about
PHANTOMS = ("--training", "--validation", "--testing")  # one of each; one in all where nothing is trained on them
TINY_BENCHMARK = {
    "full_scan.py": "--size small --cases 1",
    "bench_step.py": (
        "--features 4 4 8 8 8 --discriminator-features 4 --patch 48 48 16 --turns 1 --warm-up 0 --matrix 64"
    ),
    "bench_inference.py": (
        "--features 4 4 8 8 8 --window 32 32 8 --crop 48 48 8 --scan 64 64 16 --turns 1 --warm-up 0 --matrix 64"
    ),
    "growth.py": "--quick",
}
MODULE = re.compile(r"-m (scripts\.|monai\.bundle (run|\w+_export) )")
SERVER = re.compile(r"make serve|-m monailabel_app\b(?!\.)|-m monailabel\.main")


def elsewhere(command: str) -> bool:
    """Whether a command is not run here."""
    return command in ELSEWHERE or command.startswith((PACKAGES, TENSORRT))


def is_slow(command: str) -> bool:
    """Processes that each import everything, for half a minute; servers; the demonstration; ONNX, 8 seconds."""
    return bool(SERVER.search(command) or re.search("^torchrun|scripts.demo|onnx", command))


def task_of(text: str) -> str:
    """The made data that a command is about."""
    if "surrogate" in text:
        return "surrogate_t2_cet1"
    return "glioma" if re.search("glioma|cpu_2mm", text) else "vs"


class Sandbox:
    """A copy of the project, or of a released bundle, with tiny weights; and what the names of a document stand for.

    Args:
        folder: empty.
        document: whose commands are run.
        released: the bundle that the commands are typed in, "vs" or "glioma"; None for the repository.
        releases: folder of both.
        warm: runs python.
        made: task to a folder of tiny prepared phantoms.
    """

    def __init__(
        self,
        folder: Path,
        document: Document,
        released: str | None,
        *,
        releases: Path,
        warm: Warm,
        made: Callable[[str], Path],
    ) -> None:
        self.folder, self.document, self.warm, self.made = folder, document, warm, made
        self.releases, self.log = releases, folder / "log.txt"
        self.root = folder / "project"
        self.bundle = self.root / "bundle"
        self.stamp = folder / "installed"
        self.task = released or task_of(document.name)
        if released:
            shutil.copytree(releases / RELEASES[released].name, self.bundle)
        else:
            for name in ("bundle", "monailabel_app", "tests/benchmarks"):
                copy_tree(ROOT / name, self.root / name, without=LEFT_BEHIND)
            for name in (*REQUIREMENTS, "Makefile"):
                shutil.copy(ROOT / name, self.root)
            if document.name in WITH_RELEASED_WEIGHTS:
                shutil.copytree(BUNDLE / "models", self.bundle / "models")
            else:
                write_weights(self.bundle / "models", self.task)
                write_weights(self.bundle / "models/glioma", "glioma", pooling=(2, 2, 2), planar_levels=0)
                enter_all(self.bundle)
        self.stamp.touch()
        tiny = (CONFIGS / "debug.yaml").read_text(encoding="utf-8")
        assert re.search("^localize: false", tiny, re.MULTILINE)
        (self.bundle / "configs/debug.yaml").write_text(re.sub(r"^localize: .*\n", "", tiny, flags=re.MULTILINE))
        cases = "".join(f"{case},{section}\n" for case, section in self.patients().items())
        (self.bundle / "docs/glioma_split.csv").write_text(f"case,split\n{cases}")
        if document.name == "monailabel_app/README.md":
            self.make_version()
        self.cwd = self.root

    def run(self, command: str) -> None:
        """Types a command: fills in its names, makes it small, runs it and asks for exit status 0."""
        if not self.cwd.is_relative_to(self.folder / "BUNDLES"):
            in_bundle = MODULE.search(command) or (self.document.name.startswith("bundle/") and "make " not in command)
            self.cwd = self.bundle if in_bundle else self.root
        line = re.sub(r"(?<![A-Z_])[A-Z][A-Z_]{2,}\b(?!=)(?![A-Z_])", lambda name: self.meaning(name[0]), command)
        line = line.replace("Task01_BrainTumour", str(ROOT / "tests/fixtures/Task01_BrainTumour"))
        line = line.replace(":29500", f":{free_port()}")
        words = small(shlex.split(line), GRID[task_of(f"{self.task} {command}")], trains=self.document not in SHORT)
        self.log.write_text(f"{shlex.join(words)}\n")
        if words[0] == "cd":
            self.cwd = self.cwd / words[1]
            assert self.cwd.is_dir(), command
        elif SERVER.search(command):
            self.serve(words)
        else:
            begin = time.perf_counter()
            status = self.status(words, line)
            logger.info("%.1f s: %s", time.perf_counter() - begin, command)
            assert status == 0, f"{self.document}: {command}\nin {self.cwd}\n{self.log.read_text()[-6000:]}"

    def status(self, words: list[str], line: str) -> int:
        """The exit status of a command that is no server."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": path}
        if words[0].endswith("python"):
            return self.warm.run(words[1:], self.cwd, self.log, SECONDS, environment)
        commands: list[list[str]] = [["bash", "-c", line]]
        if words[0] == "make":
            commands = [[*words, f"PY={sys.executable}", f"STAMP={self.stamp}"]]
        elif words[0] == "torchrun":
            machines = 2 if "--nnodes=2" in words else 1
            processes = "--nproc_per_node=1" if machines == 2 else "--nproc_per_node=2"
            words = [processes if word.startswith("--nproc_per_node") else word for word in words[1:]]
            alone = [] if machines == 2 else ["--standalone"]
            commands = [[sys.executable, "-m", "torch.distributed.run", *alone, *words]] * machines
        with self.log.open("a") as log:
            started = [
                subprocess.Popen(
                    command,
                    cwd=self.cwd,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | environment,
                )
                for command in commands
            ]
            return max(abs(process.wait(SECONDS)) for process in started)

    def serve(self, words: list[str]) -> None:
        """Starts a server on a free port, waits until it answers, and ends it."""
        port = str(free_port())
        if words[0] == "make":
            given = [word.removeprefix("SERVE_OPTIONS=") for word in words if word.startswith("SERVE_OPTIONS=")]
            words = [word for word in words if not word.startswith("SERVE_OPTIONS=")]
            words += [f"SERVE_OPTIONS={' '.join([*given, '--port', port])}"]
            words += [f"PY={sys.executable}", f"STAMP={self.stamp}"]
        else:
            words = [sys.executable, *words[1:], "--port", port]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with running(words, f"http://127.0.0.1:{port}", self.log, cwd=self.cwd, env=environment):
            pass

    # What names in capitals stand for.

    def meaning(self, name: str) -> str:
        """The path or word for a name; a name without a meaning, such as VS or DICOM-SEG's, stays."""
        return str(self.place(name)) if name in PLACES or hasattr(self, f"make_{name.lower()}") else name

    def place(self, name: str) -> Path | str:
        """Makes what a name stands for, once."""
        if name in PLACES:
            return PLACES[name](self)
        path = self.folder / name
        if not path.exists():
            getattr(self, f"make_{name.lower()}")(path)
        return path

    @staticmethod
    def patients() -> dict[str, str]:
        """Made patients of BraTS, and their sections: two to validate, for two processes."""
        sections = ("training", "training", "validation", "validation", "testing")
        return {f"BraTS2021_{number:05d}": section for number, section in enumerate(sections, start=1)}

    def make_downloaded(self, path: Path) -> None:
        """BraTS as downloaded."""
        cases = [entry for section in ("training", "validation", "testing") for entry in self.cases("glioma", section)]
        for patient, entry in zip(self.patients(), cases, strict=False):
            (path / patient).mkdir(parents=True)
            files = zip(("t1", "t1ce", "t2", "flair"), [*entry["image"], entry["target"]], strict=True)
            for name, file in files:
                shutil.copy(file, path / patient / f"{patient}_{name}.nii.gz")
            label = nib.load(entry["label"])
            voxels = np.asarray(label.dataobj).astype(np.uint8) * 2
            nib.save(nib.Nifti1Image(voxels, label.affine), path / patient / f"{patient}_seg.nii.gz")

    make_brats = make_glioma = make_downloaded

    def make_scans(self, path: Path) -> None:
        """Scans to segment, side by side, of the document's task (README.md: glioma)."""
        path.mkdir()
        task = "glioma" if self.document.name == "README.md" else self.task
        for file in self.cases(task, "testing")[0]["image"]:
            shutil.copy(file, path)

    make_file_or_folder = make_scans

    def make_nifti(self, path: Path) -> None:
        """A hospital's own NIfTI."""
        for entry in self.cases("vs", "training"):
            (path / entry["case"]).mkdir(parents=True)
            for name, file in (("T2", entry["image"][0]), ("ceT1", entry["target"]), ("tumor", entry["label"])):
                shutil.copy(file, path / entry["case"] / f"{name}.nii.gz")

    def make_crossmoda(self, path: Path) -> None:
        """crossMoDA as downloaded: ceT1 with label, and T2 of other patients."""
        path.mkdir()
        for number, entry in enumerate(self.cases("vs", "training"), start=1):
            shutil.copy(entry["target"], path / f"crossmoda2022_ldn_{number}_ceT1.nii.gz")
            shutil.copy(entry["label"], path / f"crossmoda2022_ldn_{number}_Label.nii.gz")
            shutil.copy(entry["image"][0], path / f"crossmoda2022_ldn_{number + 100}_hrT2.nii.gz")

    def make_archive(self, path: Path) -> None:
        """Vestibular-Schwannoma-SEG as downloaded, with what lies beside it."""
        for number in range(1, PATIENTS + 1):
            write_patient(path, number, size="tiny")

    def make_vs_seg(self, path: Path) -> None:
        """The main download alone, of one patient: registration takes its time."""
        shutil.copytree(next(Path(self.place("ARCHIVE")).rglob("VS-SEG-001")), path / "VS-SEG-001")

    def make_contours(self, path: Path) -> None:
        """One of the two further zips."""
        shutil.copytree(Path(self.place("ARCHIVE")) / "contours", path)

    def make_matrices(self, path: Path) -> None:
        """The other one."""
        shutil.copytree(Path(self.place("ARCHIVE")) / "registration_matrices", path)

    def make_published(self, path: Path) -> None:
        """The published split; `PUBLISHED.csv` in the text."""
        sections = ("training", "training", "validation", "test")
        rows = "".join(f"vs_gk_{number},{section}\n" for number, section in enumerate(sections, start=1))
        path.with_suffix(".csv").write_text(rows)
        path.touch()

    def make_new(self, path: Path) -> None:
        """A new patient's series."""
        self.new: MadePatient = write_patient(path, 9, size="tiny", extras=False, structure_sets=())

    def make_series(self, path: Path) -> None:
        """Any folder of DICOM series."""
        write_patient(path, 9, size="tiny", extras=False, structure_sets=())

    def make_dicom(self, path: Path) -> None:
        """data.md: a hospital's own series and structures, under its own names; else a folder with one series of T2."""
        write_patient(path, 5, size="tiny", extras=False)
        own = {"t2_ci3d_tra_1.5mm": "t2_space_tra", "t1_mpr_tra_C": "mprage tra post"}
        for file in path.rglob("*.dcm"):
            data = pydicom.dcmread(file)
            if self.document.name != "bundle/docs/data.md":
                if data.get("SeriesDescription") != "t2_ci3d_tra_1.5mm":
                    file.unlink()
                continue
            data.SeriesDescription = own.get(data.get("SeriesDescription", ""), "")
            for structure in data.get("StructureSetROISequence", ()):
                structure.ROIName = structure.ROIName.replace("TV", "VS left")
            data.save_as(file)

    def make_version(self) -> None:
        """Fine-tuned weights that are better than the released ones, as the server keeps them."""
        weights = self.folder / "fine_tuned.pt"
        weights.write_bytes(b"weights")
        dice = {"dice_before": 0.5, "dice_after": 0.75}
        record = {
            "created": "2026-01-01T00:00:00+00:00",
            "parent": {"version": None, "sha256": "released"},
            "training": [{"case": "a"}],
            "validation": [{"case": "b", "label_sha256": "label of b", **dice}],
            **dice,
            "epochs": 1,
            "demonstration": True,
        }
        versions.add(self.root / "monailabel_app/model", "tissnet_vs", weights, record=record)

    def make_bundles(self, path: Path) -> None:
        """Where bundles are downloaded to."""
        path.mkdir()

    def make_released(self, path: Path) -> None:
        """What is released: zips, and their checksums as sha256sum writes them."""
        (name,) = set(re.findall(r"--name (\w+)", self.document.text))
        path.mkdir()
        packed = path / f"{name}_v{VERSION}"
        content = self.folder / "content"
        shutil.copytree(self.releases / name, content / name)
        for changed in ("configs/debug.yaml", "docs/glioma_split.csv"):
            shutil.copy(self.bundle / changed, content / name / changed)
        shutil.make_archive(str(packed), "zip", content, name)
        zip_file = packed.with_name(f"{packed.name}.zip")
        zip_file.with_name(f"{zip_file.name}.sha256").write_text(f"{sha256(zip_file)}  {zip_file.name}\n")

    def make_bundle(self, path: Path) -> None:
        """A bundle that is not called a demonstration, to serve."""
        copy_tree(BUNDLE, path, without=LEFT_BEHIND - {"models"})
        metadata = json.loads((path / "configs/metadata.json").read_text())
        (path / "configs/metadata.json").write_text(json.dumps(metadata | {"demonstration_weights": []}))

    def cases(self, task: str, section: str) -> list[dict]:
        """Entries of the made data that have a tumor."""
        entries = load_datalist(str(self.made(task) / "datalist.json"), section)
        return [entry for entry in entries if np.asarray(nib.load(entry["label"]).dataobj).any()]

    def data_folder(self) -> Path:
        """DIR: prepared data; a folder to write in results.md; scans for the server."""
        if self.document.name == "bundle/docs/results.md":
            return self.folder / "written"
        if self.document.name in ("README.md", "monailabel_app/README.md"):
            path = self.folder / "DIR"
            if not path.exists():
                path.mkdir()
                shutil.copy(self.cases("vs", "testing")[0]["image"][0], path)
            return path
        return self.made(self.task)


PLACES: dict[str, Callable[[Sandbox], Path | str]] = {
    "DIR": Sandbox.data_folder,
    "VERSION": lambda sandbox: VERSION,
    "URL": lambda sandbox: f"file://{sandbox.place('RELEASED')}",
    "OUT": lambda sandbox: sandbox.folder / "OUT",
    "OUT_COHORT": lambda sandbox: sandbox.folder / "OUT_COHORT",
    "RUN_DIR": lambda sandbox: (
        sandbox.bundle / "runs" / f"vs_{'localizer' if 'localize' in str(sandbox.document) else 'tissnet'}"
    ),
    "HOST": lambda sandbox: "127.0.0.1",
    "FILE": lambda sandbox: write_weights(sandbox.folder / "FILE", "glioma", pooling=(2, 2, 2)),  # cpu_2mm.yaml
}


def copy_tree(source: Path, folder: Path, *, without: set[str]) -> None:
    """Copies a folder, but for some names directly below it, and what Python and hidden tools leave."""
    leave = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(
        source, folder, ignore=lambda at, names: {*leave(at, names), *(without if Path(at) == source else ())}
    )


def small(words: list[str], grid: str, *, trains: bool) -> list[str]:
    """A command that takes seconds: the same files and options, with small networks and numbers behind them.

    Args:
        words: the command's.
        grid: of the networks, mm.
        trains: whether there is a training on phantoms that the document makes.
    """
    words = list(words)
    if "--config_file" in words and "monai.bundle" in words:
        at = words.index("--config_file") + 1
        words[at] = str([*config_files(words), "configs/debug.yaml"])
        if "run" in words:
            words += ["--pixdim", grid, "--patch_size", "[32,32,8]"]
        if "training" in words:
            resumed = "--resume True" in " ".join(words)
            words += ["--epochs", "2" if resumed else "1", "--val_interval", "1", "--amp", "False"]
        if "--input_shape" in words:
            at = words.index("--input_shape") + 1
            words[at] = str([*json.loads(words[at])[:2], 32, 32, 8])
    elif "scripts.prepare" in words:
        words += ["--workers", "1"]
        if "phantom" in words:
            given = {name: int(words[words.index(name) + 1]) if name in words else 1 for name in PHANTOMS}
            wanted = [name for name, number in given.items() if number]
            for name in PHANTOMS:
                words += [name, str(int(name in (wanted if trains else wanted[:1])))]
            words += ["--size", "small"]
    elif "scripts.demo" in words:
        words += ["--training", "3", "--epochs", "1", "--pretrain-epochs", "1"]
    for name, options in TINY_BENCHMARK.items():
        if any(word.endswith(f"/{name}") for word in words):
            words += shlex.split(options)
            if name == "full_scan.py":
                files = words[words.index("--config") + 1 : words.index("--data")] if "--config" in words else []
                words += ["--config", *files, "configs/debug.yaml"]
    return words


def write_weights(
    folder: Path, task: str, *, pooling: tuple[int, int, int] | None = None, planar_levels: int = 2
) -> Path:
    """Untrained networks of debug.yaml's size, in the layout of models/; returns the cascade's file.

    Args:
        folder: to write.
        task: decides on the number of channels.
        pooling: of the localizer, by default the task's.
        planar_levels: of cascade and perceptor; glioma_2mm.yaml has 0.
    """
    tiny = ConfigParser.load_config_file(str(CONFIGS / "debug.yaml"))
    torch.manual_seed(0)
    channels, own = (3, (4, 4, 4)) if task == "glioma" else (1, (4, 4, 1))
    networks = {
        "model.pt": TISSNet(channels, features=tiny["features"], planar_levels=planar_levels),
        "perceptor/perceptor.pt": UNet2d5(1, features=tiny["features"], planar_levels=planar_levels),
        "localizer/localizer.pt": Localizer(channels, pooling=pooling or own, features=tiny["localizer_features"]),
    }
    for name, network in networks.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), folder / name)
    named = {"weights_sha256": sha256(folder / "model.pt")}
    (folder / "localizer/localizer.json").write_text(json.dumps(named))
    return folder / "model.pt"


def enter_all(bundle: Path) -> None:
    """Names a bundle's weights in its metadata, as scripts.weights export does."""
    for path in (bundle / "models").rglob("*.pt"):
        enter_weights(path, bundle=bundle.resolve())


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both bundles as the release tool lays them out, with tiny weights."""
    folder = tmp_path_factory.mktemp("releases")
    bundle = folder / "project/bundle"
    copy_tree(BUNDLE, bundle, without=LEFT_BEHIND)
    write_weights(bundle / "models", "vs")
    write_weights(bundle / "models/glioma", "glioma", planar_levels=0)
    shutil.rmtree(bundle / "models/glioma/localizer")  # none is released
    for arguments in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *arguments], cwd=bundle, check=True)
    for chosen in RELEASES.values():
        for name, content in contents(chosen, bundle).items():
            path = folder / chosen.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        enter_all(folder / chosen.name)
    return folder


@pytest.fixture
def sandbox(
    tmp_path: Path, warm: Warm, releases: Path, request: pytest.FixtureRequest
) -> Callable[[Document, str | None], Sandbox]:
    """Makes the copy that a document's commands are typed in."""
    made = {"vs": "vs_data", "glioma": "glioma_data", "surrogate_t2_cet1": "surrogate_data"}

    def make(document: Document, released: str | None) -> Sandbox:
        return Sandbox(
            tmp_path,
            document,
            released,
            releases=releases,
            warm=warm,
            made=lambda task: request.getfixturevalue(made[task]),
        )

    return make


def type_all(document: Document, sandbox: Sandbox, leave_out: Callable[[str], bool]) -> None:
    """All commands of a document, section by section, each once in a section; then what must be there."""
    for section in document.sections:
        sandbox.cwd = sandbox.root
        for command in dict.fromkeys(section):
            if not elsewhere(command) and not leave_out(command):
                sandbox.run(command)
    check = {"bundle/docs/data.md": route_is_whole}.get(document.name)
    if check:
        check(sandbox)


def route_is_whole(sandbox: Sandbox) -> None:
    """The route of data.md: a split, a report; its weights segment a new scan on the grid of the series."""
    datalist = json.loads((sandbox.bundle / "data/own/datalist.json").read_text())
    assert [len(datalist[name]) for name in ("training", "validation", "testing")] == [2, 1, 1]
    assert (sandbox.bundle / "runs/vs_tissnet/report/report.md").is_file()
    (mask,) = (sandbox.folder / "OUT").rglob("*_pred.nii.gz")
    image = nib.load(mask)
    assert mask.name == "VS-SEG-009_pred.nii.gz" and image.shape == sandbox.new.images["T2"].shape
    np.testing.assert_allclose(image.affine, sandbox.new.affines["T2"], atol=1e-4)


def in_each(chosen: Iterable[Document]) -> list[tuple[Document, str | None]]:
    """Documents with each place that their commands are typed in."""
    return [(document, released) for document in chosen for released in RELEASED_WITH.get(document.name, (None,))]


@pytest.mark.parametrize(("document", "released"), in_each(d for d in SHORT if d.name not in LONG), ids=str)
def test_commands(document: Document, released: str | None, sandbox: Callable[..., Sandbox]) -> None:
    """What a reader types, but for what is slow."""
    type_all(document, sandbox(document, released), leave_out=is_slow)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "released"),
    in_each(d for d in WITH_COMMANDS if d not in SHORT or d.name in LONG or any(map(is_slow, d.commands))),
    ids=str,
)
def test_all_commands(document: Document, released: str | None, sandbox: Callable[..., Sandbox]) -> None:
    """Everything that a reader types."""
    place = sandbox(document, released)
    if document.name.startswith("bundle/configs/"):
        trained_before(place)
    type_all(document, place, leave_out=lambda command: False)


def trained_before(sandbox: Sandbox) -> None:
    """What the head of a config takes for granted: the runs of other configs' heads."""
    for task in ("vs", "glioma"):
        write_weights(sandbox.folder / task, task)
        for name, file in (("perceptor", "perceptor/perceptor.pt"), ("tissnet", "model.pt")):
            path = sandbox.bundle / f"runs/{task}_{name}/checkpoints/best.pt"
            path.parent.mkdir(parents=True)
            shutil.copy(sandbox.folder / task / file, path)


# What does not need to be run.


def test_every_command_is_run_or_told() -> None:
    """The table names commands that are there, and none that another document's test would run."""
    found = {command for document in WITH_COMMANDS for command in document.commands}
    assert set(ELSEWHERE) <= found, "in the table, but in no document"
    assert found > set(ELSEWHERE)


def test_packages_are_those_of_the_tests() -> None:
    """What documents tell to install is what the requirements pin, and what metadata.json lists is among it."""
    lines = [line for file in REQUIREMENTS for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    pins = {line for line in lines if "==" in line and not line.startswith("#")}
    told = {
        package
        for document in WITH_COMMANDS
        for command in document.commands
        if command.startswith(PACKAGES)
        for package in command.removeprefix(PACKAGES).split()
    }
    assert told and told <= pins
    metadata = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
    needed = metadata["required_packages_version"]
    assert {f"{name}=={version}" for name, version in needed.items()} <= told
    assert {f"monai=={metadata['monai_version']}", f"torch=={metadata['pytorch_version']}"} <= told


MARKDOWN = [document for document in documents() if document.path.suffix == ".md"]


@pytest.mark.parametrize("document", MARKDOWN, ids=str)
def test_links_resolve(document: Document) -> None:
    """Files and anchors, from where the document lies."""
    for link in links(document.text):
        name, _, anchor = link.partition("#")
        target = (document.path.parent / name) if name else document.path
        assert target.exists(), f"{document}: no {link}"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{document}: no {link}"


@pytest.mark.parametrize("task", RELEASES)
def test_links_resolve_in_a_released_bundle(task: str, releases: Path) -> None:
    """A zip has one card, docs/README.md, and nothing of the repository around the bundle."""
    bundle = releases / RELEASES[task].name
    for path in bundle.rglob("*.md"):
        for link in links(path.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.is_relative_to(bundle) and target.exists(), f"{path.name}: no {link}"
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{path.name}: no {link}"


@pytest.mark.parametrize("card", ["README.md", "glioma.md"])
def test_a_card_has_the_sections_of_the_model_zoo(card: str) -> None:
    headings = re.findall(
        "^##? (.*)$", re.sub("```.*?```", "", (BUNDLE / "docs" / card).read_text(), flags=re.DOTALL), re.M
    )
    assert headings == [
        *("Model overview", "Data", "Preprocessing", "Training configuration and hardware", "Performance", "Commands"),
        *("Limitations", "Intended use", "License", "Citation", "References"),
    ]


# What commands write. A path with a folder of the project, and any other file of code or configuration, must be there.
WRITTEN = {
    "config.yaml",
    "datalist.json",
    "datalist_foldN.json",
    "predictions.json",
    "contours.json",
    "datastore_v2.json",
}
WRITTEN |= {"models/model_info.json", "models/NAME/large_files.yml"}  # of the model zoo
FOLDERS = ("bundle/", "configs/", "deploy/", "docs/", "models/", "monailabel_app/", "scripts/", "slicer/", "tests/")


@pytest.mark.parametrize("document", MARKDOWN, ids=str)
def test_named_files_exist(document: Document) -> None:
    around = (ROOT, BUNDLE, document.path.parent)
    everywhere = {path.name for path in ROOT.rglob("*") if ".venv" not in path.parts}
    for name in named_files(document.text) - WRITTEN:
        if name.startswith(FOLDERS) and not name.startswith("bundle/demo/"):
            assert any((folder / name).exists() for folder in around), f"{document}: no {name}"
        elif "/" not in name and name.endswith((".py", ".sh", ".json", ".yaml")):
            assert name in everywhere, f"{document}: no {name}"


@pytest.mark.parametrize("task", RELEASES)
def test_a_released_document_names_what_is_released(task: str, releases: Path) -> None:
    """A zip lacks overrides that are merged into its configs; results.md says that it is about the repository."""
    bundle = releases / RELEASES[task].name
    for path in (bundle / "docs").glob("*.md"):
        if path.name != "results.md":
            for name in named_files(path.read_text(encoding="utf-8")) - WRITTEN:
                inside = name.startswith(("configs/", "docs/", "scripts/"))
                assert not inside or (bundle / name).exists(), f"{path.name}: no {name}"


def known_options() -> set[str]:
    """Options of all command lines here, and of MONAI's that documents name."""
    sources = [*(BUNDLE / "scripts").rglob("*.py"), *ROOT.glob("monailabel_app/*.py")]
    sources += ROOT.glob("tests/benchmarks/*.*")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources if path.suffix in (".py", ".sh", ".md"))
    own = set(re.findall(r"[\"[]--([a-z][\w-]*)", text))
    monais = (monai.bundle.run, monai.bundle.download, monai.bundle.push_to_hf_hub)
    of_monai = {name for function in monais for name in inspect.signature(function).parameters}
    return own | of_monai | {*SECTIONS, "uvicorn_app", "host", "tracking"}


@pytest.mark.parametrize("document", MARKDOWN, ids=str)
def test_named_options_exist(document: Document) -> None:
    """Keys of the configs, or options of a command line."""
    bases = [["train.json", "evaluate.json"], ["train.json", "multi_gpu_train.json"], ["inference.json"]]
    bases += [["train.json", "pretrain.json", "localize.json"]]
    parsers = [ConfigParser(ConfigParser.load_config_files([str(CONFIGS / name) for name in names])) for names in bases]
    known = known_options()
    for name in named_options(document.text):
        assert name in known or any(name in parser for parser in parsers), f"{document}: no --{name}"
