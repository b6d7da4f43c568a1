"""What both of our model zoo unit tests share: made scans, small networks, one training, evaluation and inference.

With the two test_*.py beside it this is what goes to ci/unit_tests/ of the model zoo, where its runner starts them from
the zoo's root with the bundle in models/. Needs the zoo's packages alone; tests of our own repository do not go here.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

MASKS = ("y_f", "y_c", "y_r", "mean")  # rows of a case in per_case.csv
SHAPE, SECTIONS = (40, 40, 16), {"training": 2, "validation": 1, "testing": 1}
SMALL = {
    "features": [4, 4, 8, 8, 8],
    "patch_size": [32, 32, 8],
    "device": "$torch.device('cpu')",
}
TRAINING = {
    "discriminator_features": 4,
    "epochs": 1,
    "val_interval": 1,
    "num_workers": 0,
    "weights#perceptibility": 0.0,
    "pixdim": [1.0, 1.0, 1.0],
}


class BundleTest:
    """One workflow after the other; a subclass is also a `unittest.TestCase` and names bundle, sources and target."""

    name: str
    task: str
    sources: tuple[str, ...]
    target: str

    def setUp(self) -> None:
        self.root = os.path.join("models", self.name)
        sys.path.insert(0, self.root)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)  # type: ignore[attr-defined]
        self.addCleanup(sys.path.remove, self.root)  # type: ignore[attr-defined]
        self.folder = folder.name
        self.write_cases()

    def write_cases(self) -> None:
        """Heads with a ball in them, one voxel a millimeter, and the list of them."""
        random = np.random.default_rng(0)
        grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
        head = np.linalg.norm((grid - np.array(SHAPE) / 2) / np.array(SHAPE), axis=-1) < 0.45
        listed: dict[str, list] = {}
        for section, count in SECTIONS.items():
            for index in range(count):
                case = f"{section}{index}"
                tumor = np.linalg.norm(grid - (20, 14, 8), axis=-1) < 5
                entry = {"case": case, "patient": case, "label": f"{case}_label.nii.gz"}
                nib.save(nib.Nifti1Image(tumor.astype(np.uint8), np.eye(4)), os.path.join(self.folder, entry["label"]))
                for modality in (*self.sources, self.target):
                    voxels = np.where(head, 300 + 200 * tumor + random.integers(0, 100, SHAPE), 0).astype(np.int16)
                    nib.save(nib.Nifti1Image(voxels, np.eye(4)), os.path.join(self.folder, f"{case}_{modality}.nii.gz"))
                entry["image"] = [f"{case}_{modality}.nii.gz" for modality in self.sources]
                entry["target"] = f"{case}_{self.target}.nii.gz"
                listed.setdefault(section, []).append(entry)
        with open(os.path.join(self.folder, "datalist.json"), "w") as file:
            json.dump({"task": self.task} | listed, file)

    def run_workflow(self, kind: str, files: list[str], **overrides: object) -> None:
        """Initializes, checks the properties, runs and finalizes."""
        workflow = ConfigWorkflow(
            workflow_type=kind,
            config_file=[os.path.join(self.root, "configs", file) for file in files],
            logging_file=os.path.join(self.root, "configs", "logging.conf"),
            meta_file=os.path.join(self.root, "configs", "metadata.json"),
            bundle_root=self.root,
            dataset_dir=self.folder,
            **SMALL,
            **overrides,
        )
        workflow.initialize()
        self.assertFalse(workflow.check_properties())  # type: ignore[attr-defined]
        workflow.run()
        workflow.finalize()

    def test_1_train_and_evaluate(self) -> None:
        run = os.path.join(self.folder, "run")
        self.run_workflow("train", ["train.json"], run_dir=run, **TRAINING)
        evaluating = TRAINING | {"run_dir": run, "run_id": "evaluating", "S_p#weight": 0}
        self.run_workflow("train", ["train.json", "evaluate.json"], **evaluating)
        with open(os.path.join(run, "per_case.csv")) as file:
            self.assertEqual(len(file.read().splitlines()) - 1, len(MASKS) * SECTIONS["testing"])  # type: ignore[attr-defined]

    def test_2_infer(self) -> None:
        scans, out = os.path.join(self.folder, "scans"), os.path.join(self.folder, "out")
        os.mkdir(scans)
        for modality in self.sources:
            name = f"testing0_{modality}.nii.gz"
            os.rename(os.path.join(self.folder, name), os.path.join(scans, name))
        weights = os.path.join(self.folder, "tiny.pt")
        parser = ConfigWorkflow(
            workflow_type="infer",
            config_file=os.path.join(self.root, "configs", "inference.json"),
            features=SMALL["features"],
        ).parser
        torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
        self.folder = scans
        self.run_workflow("infer", ["inference.json"], output_dir=out, checkpoint_path=weights, pixdim=[1.0, 1.0, 1.0])
        mask = nib.load(os.path.join(out, "testing0", "testing0_pred.nii.gz"))
        self.assertEqual(mask.shape, SHAPE)  # type: ignore[attr-defined]


def make_test(name: str, task: str, sources: tuple[str, ...], target: str) -> type[unittest.TestCase]:
    """The test case of one bundle."""
    return type(name, (BundleTest, unittest.TestCase), dict(name=name, task=task, sources=sources, target=target))
