"""Localize, then refine, against windows everywhere: time, Dice, missed tumors, false positives, case by case.

    python tests/benchmarks/full_scan.py --output DIR                          # 10 vs phantoms of real size
    python tests/benchmarks/full_scan.py --output DIR --size small --cases 30  # small ones
    python tests/benchmarks/full_scan.py --output DIR --same-weights           # one arm more: the cascade as localizer
    python tests/benchmarks/full_scan.py --output DIR --config configs/glioma.yaml configs/experiments/cpu_2mm.yaml \\
        --data PREPARED --weights FILE                                         # the test cases of prepared data

Both arms run on the fast path of this machine, with the preprocessing and the inferer of inference.json, one after the
other on every case. The localizer is the one beside the weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Invertd
from scipy import ndimage
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.data.datalist import load_datalist  # noqa: E402
from scripts.data.phantom.make import SIZES, make_phantom  # noqa: E402
from scripts.inference.engine import Engine  # noqa: E402
from scripts.inference.inferer import FullScanInferer  # noqa: E402
from scripts.inference.stages import Outputs  # noqa: E402
from scripts.networks.localizer import Localizer  # noqa: E402
from scripts.weights import load_weights  # noqa: E402

VOLUMES_CM3 = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the phantoms with tumor; two more have none
SMALLEST_MM3 = (0, 10, 20, 40, 80)  # thresholds of what counts as a component, see `components`
FIRST_SEED = 70_000  # far from those of any training


def phantoms(size: str, cases: int) -> Any:
    """Yields name, image and truth of made cases, a fifth without tumor; real size: of the volumes above."""
    shape, spacing = SIZES[("vs", size)]
    for i in range(cases):
        tumor = i % 5 != 4
        volume = VOLUMES_CM3[i - i // 5] if size == "real" and tumor and i - i // 5 < len(VOLUMES_CM3) else None
        diameter = (6e3 * volume / np.pi) ** (1 / 3) if volume else None
        case = make_phantom(FIRST_SEED + i, shape=shape, spacing=spacing, tumor=tumor, diameter=diameter)
        image = MetaTensor(torch.from_numpy(case.images["T2"])[None], affine=case.affine)
        yield f"phantom_{FIRST_SEED + i}", {"image": image}, case.label > 0


def prepared(config: ConfigParser, data: Path) -> Any:
    from scripts.loading import LoadScansd

    load = LoadScansd(["image", "label"], labels="label")
    for entry in load_datalist(str(data / "datalist.json"), section="testing", task=config["task"]):
        loaded = load(dict(entry))
        yield entry["case"], {"image": loaded["image"]}, loaded["label"][0].numpy() > 0


def components(prediction: np.ndarray, truth: np.ndarray, voxel: float, smallest: float) -> dict[str, float]:
    """Dice, false positives (components that touch no tumor), and whether the tumor is missed, without components below
    `smallest` mm3."""
    labels, count = ndimage.label(prediction)
    sizes = ndimage.sum_labels(prediction, labels, range(1, count + 1)) * voxel
    keep = [i + 1 for i, size in enumerate(sizes) if size >= smallest]
    kept = np.isin(labels, keep)
    hit = set(np.unique(labels[truth & kept]).tolist()) - {0}
    total = kept.sum() + truth.sum()
    return {
        "dice": 2 * float((kept & truth).sum()) / float(total) if total else 1.0,
        "missed": float(truth.any() and not hit),
        "false_positives": float(len(set(keep) - hit)),
        "false_mm3": float(sum(sizes[i - 1] for i in set(keep) - hit)),
    }


class FineLogits(nn.Module):
    """The cascade's fine mask alone, as the localizer's U-Net gives its map: for the same weights on a reduced grid."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.cascade = Outputs(network)

    def forward(self, x: Tensor) -> Tensor:
        return torch.logit(self.cascade(x)[:, :1], eps=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", choices=("small", "real"), default="real")
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--config", nargs="*", default=[], help="overrides of inference.json, from the bundle's folder")
    parser.add_argument("--data", type=Path, help="a prepared folder, in place of phantoms")
    parser.add_argument("--weights", type=Path, default=ROOT / "bundle" / "models" / "model.pt")
    parser.add_argument("--threshold", type=float, nargs="+", help="of the localizer, in place of the config's")
    parser.add_argument("--same-weights", action="store_true", help="one arm more: the cascade itself as localizer")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args.output.mkdir(parents=True, exist_ok=True)
    config = ConfigParser()
    config.read_config([str(ROOT / "bundle" / name) for name in ("configs/inference.json", *args.config)])
    config["bundle_root"], config["checkpoint_path"] = str(ROOT / "bundle"), str(args.weights.resolve())
    preprocess = config.get_parsed_content("preprocessing")
    preprocess.transforms = [t for t in preprocess.transforms if type(t).__name__ != "LoadScansd"]
    invert = Invertd("pred", transform=preprocess, orig_keys="image", nearest_interp=False)
    network = load_weights(config.get_parsed_content("network"), path=args.weights).eval()
    arms: dict[str, FullScanInferer] = {}
    for threshold in args.threshold or [config["localizer_threshold"]]:
        config["localizer_threshold"] = threshold
        config.parse(reset=True)
        arms[f"localized_{threshold:g}"] = config.get_parsed_content("inferer")
        if arms[f"localized_{threshold:g}"].localizer is None:
            raise SystemExit(f"no localizer beside {args.weights}: nothing to compare.")
    if args.same_weights:
        config.parse(reset=True)
        pooling = config["localizer_pooling"]
        same = config.get_parsed_content("inferer")
        same.localizer = Localizer(config["source_channels"], pooling=pooling)
        same.localizer.unet = FineLogits(network)
        same.localize.roi_size = [n * p for n, p in zip(config["patch_size"], pooling, strict=True)]
        same.localize.engine = Engine("torch")  # OpenVINO takes minutes to convert the cascade in one piece
        arms["same_weights"] = same
    config["localize"] = False
    config.parse(reset=True)
    arms = {"everywhere": config.get_parsed_content("inferer")} | arms
    device = config.get_parsed_content("device")
    cases = prepared(config, args.data) if args.data else phantoms(args.size, args.cases)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for name, batch, truth in cases:
            data = preprocess({**batch, "case": name})
            image = data["image"][None].to(device)
            voxel = float(np.prod(np.asarray(batch["image"].pixdim)))
            for arm, inferer in arms.items():
                if not rows or len(rows) < len(arms):
                    inferer(image[..., :128, :128, :16], network)  # compiles
                begin = time.perf_counter()
                out = inferer(image, network)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - begin
                inverse = invert({**data, "pred": MetaTensor(out[0, :1].cpu())})["pred"]
                prediction = np.asarray(inverse[0]) > 0.5
                windows = sum(map(inferer.windows, inferer.regions))
                for smallest in SMALLEST_MM3:
                    row = {"case": name, "arm": arm, "smallest_mm3": smallest, "truth_mm3": truth.sum() * voxel}
                    row |= {"seconds": seconds, "windows": windows, "regions": len(inferer.regions)}
                    rows.append(row | components(prediction, truth, voxel, smallest))
                shown = rows[-len(SMALLEST_MM3)]
                logging.info("%s", {k: round(v, 3) if isinstance(v, float) else v for k, v in shown.items()})
            pd.DataFrame(rows).to_csv(args.output / "cases.csv", index=False)
    table = pd.DataFrame(rows)
    with_tumor = table[table["truth_mm3"] > 0]
    summary = table.groupby(["arm", "smallest_mm3"], sort=False).agg(
        scans=("case", "size"),
        seconds=("seconds", "mean"),
        windows=("windows", "mean"),
        missed=("missed", "sum"),
        false_positives_per_scan=("false_positives", "mean"),
        false_mm3_per_scan=("false_mm3", "mean"),
    )
    dice = with_tumor.groupby(["arm", "smallest_mm3"], sort=False)["dice"].agg(["mean", "std"])
    summary["dice_with_tumor"] = [f"{m:.4f} +- {s:.4f}" for m, s in dice.to_numpy()]
    first = table[table["smallest_mm3"] == 0].pivot(index="case", columns="arm", values="seconds")
    summary["time_ratio"] = [float((first["everywhere"] / first[arm]).median()) for arm, _ in summary.index]
    text = summary.reset_index().to_string(index=False, float_format=lambda value: f"{value:.3f}")
    (args.output / "summary.json").write_text(json.dumps(summary.reset_index().to_dict("records"), indent=1))
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
