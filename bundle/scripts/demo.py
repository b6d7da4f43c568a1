"""The whole path on phantoms, in minutes: prepare, train S_p and the cascade, evaluate, report, segment scans.

    python -m scripts.demo [--output demo]

It prints every command it runs, so that each can be typed alone. No patient is involved.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.bundle_command import EVALUATE, PRETRAIN, TRAIN, bundle_run

logger = logging.getLogger(__name__)

DEMO = "configs/experiments/phantom_demo.yaml"
SEED = 1


def commands(output: Path, *, training: int, epochs: int, pretrain_epochs: int) -> dict[str, list[str]]:
    """All steps by name, in order; the arguments behind `python -m`."""
    data, runs = output / "data", output / "runs"
    perceptor = f"{runs}/perceptor/checkpoints/best.pt"
    return {
        "phantoms": [
            *("scripts.prepare", "phantom", "--task", "vs", "--output", str(data), "--seed", str(SEED), "--overwrite"),
            *("--training", str(training), "--validation", "3", "--testing", "6"),
        ],
        "perceptor S_p": bundle_run(
            "training",
            [TRAIN, PRETRAIN, DEMO],
            dataset_dir=data,
            run_dir=runs / "perceptor",
            epochs=pretrain_epochs,
            val_interval=max(1, pretrain_epochs // 4),
        ),
        "cascade": bundle_run(
            "training",
            [TRAIN, DEMO],
            dataset_dir=data,
            run_dir=runs / "tissnet",
            perceptor_path=perceptor,
            epochs=epochs,
            val_interval=max(1, epochs // 4),
        ),
        "evaluation": bundle_run(
            "evaluating", [TRAIN, EVALUATE, DEMO], dataset_dir=data, run_dir=runs / "tissnet", perceptor_path=perceptor
        ),
        "evaluation of the untrained network": bundle_run(
            "evaluating",
            [TRAIN, EVALUATE, DEMO],
            dataset_dir=data,
            run_dir=runs / "untrained",
            perceptor_path=perceptor,
            checkpoint_path="$None",  # MONAI drops a plain None
        ),
        "report": ["scripts.report", f"{runs}/untrained", f"{runs}/tissnet", "--output", f"{output}/report"],
        "segmentation of a scan": bundle_run(
            "run",
            ["configs/inference.json", DEMO],
            dataset_dir=output / "scans",
            output_dir=output / "segmented",
            checkpoint_path=runs / "tissnet" / "checkpoints" / "best.pt",
        ),
    }


def copy_scans(output: Path, number: int = 2) -> None:
    """Copies the T2 scans of the first test phantoms into a folder of their own, as a clinic would have them."""
    from scripts.data.datalist import load_datalist

    scans = output / "scans"
    scans.mkdir(parents=True, exist_ok=True)
    for entry in load_datalist(output / "data" / "datalist.json", "testing")[:number]:
        shutil.copy(entry["image"][0], scans)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status of the first step that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder; an earlier demo in it is replaced")
    parser.add_argument("--training", type=int, default=16, help="phantoms to train on")
    parser.add_argument("--epochs", type=int, default=36, help="of the cascade; one patch per phantom each")
    parser.add_argument("--pretrain-epochs", type=int, default=24, help="of the perceptor S_p")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("runs", "scans", "segmented", "report"):
        shutil.rmtree(args.output / name, ignore_errors=True)
    begin = time.perf_counter()
    steps = commands(args.output, training=args.training, epochs=args.epochs, pretrain_epochs=args.pretrain_epochs)
    for name, arguments in steps.items():
        if name == "segmentation of a scan":
            copy_scans(args.output)
        logger.info("\n== %s ==\npython -m %s\n", name, shlex.join(arguments))
        start = time.perf_counter()
        status = subprocess.run([sys.executable, "-W", "ignore", "-m", *arguments], check=False).returncode
        logger.info("-- %s: %.0f s", name, time.perf_counter() - start)
        if status:
            logger.error("%s failed with exit status %d; the message is above.", name, status)
            return status
    logger.info(
        "\nDone in %.1f minutes, in %s:\n"
        "  data/overview.html    three planes of every phantom, with the outline of its tumor\n"
        "  report/report.md      Dice, ASSD, HD95, PSNR, SSIM: trained against untrained, on phantoms not trained on\n"
        "  report/figures/       source, synthetic, real target, contours, error map of every test phantom\n"
        "  runs/tissnet/previews how the validation phantom came on during training\n"
        "  segmented/            mask, synthetic ceT1, error map (NIfTI), overlay picture, volumes.csv",
        (time.perf_counter() - begin) / 60,
        args.output.resolve(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
