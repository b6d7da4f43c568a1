"""Segments scans from Python with nothing but this bundle's folder: an example to copy into a service.

    python segment_scan.py BUNDLE SCAN... --output DIR

BUNDLE is the unpacked zip; SCAN a NIfTI file (of several modalities any one, the others lie beside it) or a folder of
cases. Mask, synthetic scan and error map go to DIR/CASE/, on the scan's own grid. Loading, resampling, inference and
saving are those of configs/inference.json, without its volumes.csv, pictures and resuming. A scan that cannot be
segmented raises an error that says why. Research use only.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow

logger = logging.getLogger("segment_scan")


class Segmenter:
    """The bundle, loaded once; call it for as many cases as there are, one at a time.

    Args:
        bundle: the bundle's folder.
        output: where results are written.
        overrides: values of inference.json, such as device="$torch.device('cpu')" or localize=False.
    """

    def __init__(self, bundle: Path, output: Path, **overrides: object) -> None:
        root = bundle.resolve()
        sys.path.insert(0, str(root))  # what the config names as scripts.* lies there
        from scripts.data.inputs import find_inputs
        from scripts.weights import load_weights

        overrides = {"bundle_root": str(root), "output_dir": str(output.resolve()), **overrides}
        config = str(root / "configs" / "inference.json")
        workflow = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **overrides)
        workflow.initialize()
        content = workflow.parser.get_parsed_content
        self.preprocessing, self.postprocessing = workflow.preprocessing, workflow.postprocessing
        self.inferer, self.device = workflow.inferer, workflow.device
        self.network = load_weights(workflow.network_def.to(self.device), path=content("checkpoint_path"))
        self.cases = lambda path: find_inputs(path, content("task"), names=content("names"))

    @torch.no_grad()
    def __call__(self, case: dict) -> dict:
        """Segments {"case": name, "image": [source files, in the task's order]}; writes and returns the results."""
        data = self.preprocessing(case)
        data["pred"] = self.inferer(data["image"][None].to(self.device), self.network)[0]
        return self.postprocessing(data)


def main() -> None:
    """Segments every case and logs the mask's volume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("scan", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logger.setLevel(logging.INFO)
    segment = Segmenter(args.bundle, args.output)
    for scan in args.scan:
        for case in segment.cases(scan):
            mask = segment(case)["pred"]
            volume = float(mask.sum() * mask.pixdim.prod())
            logger.info("%s: %.1f mm3; looked at %s", case["case"], volume, segment.inferer.looked_at)


if __name__ == "__main__":
    main()
