"""How seconds and memory grow with the scan's size, the number of tumors, the batch and the features: table and figure.

    python tests/benchmarks/growth.py --output DIR [--quick] [--large]

Inference runs as inference.json does, windows everywhere or localized, on flat made scans: a localizer of the real
one's cost points at marked places, and the masks are empty, so that exactly these places are looked at. Training steps
are `MethodTrainer`'s in bfloat16. Every point is measured in a process of its own, which warms up once and takes the
median of --turns. Peak memory is the process's, libraries included; on a GPU what torch allocates. --quick is for a
look at the script itself; --large is for a GPU: real patches, discriminators and batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_step import make_step
from measured import child, machine, most_resident_gib, timed
from torch import Tensor, nn

from scripts.inference.inferer import FullScanInferer
from scripts.networks.localizer import Localizer
from scripts.networks.tissnet import TISSNet

FLAT, MARKED = -0.5, 1.0
NO_TUMOR, TUMOR = -10.0, 10.0  # logits
PANELS = {  # panel: the label of x
    "size": "scan, million voxels",
    "tumors": "places that the localizer points at",
    "batch": "patches per training step",
    "features": "channels of the first level",
}


class Pointer(nn.Module):
    """A localizer of the real one's cost that points at marked voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.localizer = Localizer(1)

    def forward(self, x: Tensor) -> Tensor:
        marked = (x > (FLAT + MARKED) / 2).to(x.dtype)
        return 1e-6 * self.localizer(x) + NO_TUMOR + (TUMOR - NO_TUMOR) * marked


def points(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every measurement: its panel, its arm, its place on x, and what `measure` needs."""
    quick, large = args.quick, args.large
    window = [32, 32, 8] if quick else [128, 128, 16]
    sizes = [[32, 32, 8], [64, 64, 8]] if quick else [[128, 128, 32], [256, 256, 40], [384, 384, 48]]
    sizes += [[512, 512, 80], [512, 512, 160]] if large else []
    features = [[4, 4, 8, 8, 8], [8, 8, 8, 8, 8]] if quick else [[n * 2**i for i in range(5)] for n in (8, 16, 32)]
    base = features[0] if quick else features[1]
    step = {"kind": "step", "patch": window if large else [48, 48, 16] if quick else [64, 64, 16]}
    step["discriminator_features"] = 64 if large else 4 if quick else 16
    scan = {"kind": "scan", "window": window, "features": base, "places": 1}
    found = []
    for size in sizes:
        x = size[0] * size[1] * size[2] / 1e6
        found.append({"panel": "size", "arm": "windows everywhere", "x": x, **scan, "size": size, "places": None})
        found.append({"panel": "size", "arm": "localized", "x": x, **scan, "size": size})
    for places in (0, 1) if quick else (0, 1, 2, 4):
        largest = sizes[-1]
        found.append({"panel": "tumors", "arm": "localized", "x": places, **scan, "size": largest, "places": places})
    for batch in (1, 2) if quick else (1, 2, 4, 8, 16) if large else (1, 2, 4):
        found.append({"panel": "batch", "arm": "training step", "x": batch, **step, "features": base, "batch": batch})
    for some in features:
        found.append({"panel": "features", "arm": "training step", "x": some[0], **step, "features": some, "batch": 1})
        one = {**scan, "features": some, "size": window, "places": None}
        found.append({"panel": "features", "arm": "a window", "x": some[0], **one})
    return found


def measure(point: dict[str, Any], args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Seconds and peak memory of one point; to be called in a fresh process."""
    torch.manual_seed(0)
    work: Callable[[], Any]
    if point["kind"] == "step":
        options = argparse.Namespace(**point, compile_mode=None)
        arm = "bfloat16 channels-last compiled" if device.type == "cuda" else "bfloat16"
        step = make_step(arm, options, device)

        def work() -> Any:
            return step(1)
    else:
        network = TISSNet(1, features=point["features"]).to(device).eval()
        for unet in (network.G, network.S):
            nn.init.constant_(unet.decoders[-1 if unet is network.G else 0].head.bias, NO_TUMOR)  # type: ignore[union-attr, arg-type]
        x, places = scan(point, device)
        localizer = Pointer().to(device).eval() if places else None
        inferer = FullScanInferer(point["window"], overlap=0.25, engine="auto", localizer=localizer)

        def work() -> Any:
            with torch.no_grad():
                return inferer(x, network)

    work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed(work, device) for _ in range(args.turns))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else most_resident_gib()
    return {"seconds": seconds, "peak_gib": memory}


def scan(point: dict[str, Any], device: torch.device) -> tuple[Tensor, bool]:
    """A flat scan with marked places, and whether there is a localizer to find them (None: windows everywhere)."""
    X, Y, Z = point["size"]
    x = torch.full((1, 1, X, Y, Z), FLAT)
    if point["places"] is None:
        return x.to(device), False
    corners = [(0.15, 0.15), (0.85, 0.85), (0.15, 0.85), (0.85, 0.15)]
    for a, b in corners[: point["places"]]:
        x[0, 0, int(a * X) : int(a * X) + 8, int(b * Y) : int(b * Y) + 8, Z // 2 - 1 : Z // 2 + 1] = MARKED
    return x.to(device), True


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Four panels, seconds on the left (lines) and GiB on the right (dotted)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(4.4 * len(PANELS), 3.6), layout="constrained")
    for ax, (panel, label) in zip(axes, PANELS.items(), strict=True):
        memory = ax.twinx()
        arms = list(dict.fromkeys(p["arm"] for p in found if p["panel"] == panel))
        for i, arm in enumerate(arms):
            own = [p for p in found if p["panel"] == panel and p["arm"] == arm]
            ax.plot([p["x"] for p in own], [p["seconds"] for p in own], "o-", color=f"C{i}", label=arm)
            memory.plot([p["x"] for p in own], [p["peak_gib"] for p in own], "o:", color=f"C{i}", alpha=0.5)
        for axis, name in ((ax, "seconds (solid)"), (memory, "peak GiB (dotted)")):
            axis.set_ylim(bottom=0)
            axis.set_ylabel(name)
        ax.set_xlabel(label)
        ax.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--point", help=argparse.SUPPRESS)  # a child: one point
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.point:
        sys.stdout.write(json.dumps(measure(json.loads(args.point), args, device)) + "\n")
        return
    args.output.mkdir(parents=True, exist_ok=True)
    found = []
    for point in points(args):
        found.append(point | child("--point", json.dumps(point)))
        content = {**machine(device), "points": found}
        (args.output / "growth.json").write_text(json.dumps(content, indent=1))
    lines = ["| panel | arm | x | seconds | peak GiB |", "|---|---|---|---|---|"]
    lines += [f"| {p['panel']} | {p['arm']} | {p['x']:g} | {p['seconds']:.3f} | {p['peak_gib']:.2f} |" for p in found]
    (args.output / "growth.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")
    draw(found, args.output / "growth.png")


if __name__ == "__main__":
    main()
