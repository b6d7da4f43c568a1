"""Turns a run's best checkpoint into the weights that are shipped, a float16 state dict. MONAI exports other formats.

    python -m scripts.export --run runs/vs_tissnet --output models/model.pt
    python -m scripts.export --run runs/vs_localizer --output models/localizer/localizer.pt --localizes models/model.pt

Training, evaluation and packing a release do not go here.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import sys
from pathlib import Path

import torch

from scripts.data.record import sha256
from scripts.files import whole_file
from scripts.weights import enter_weights

logger = logging.getLogger(__name__)


def export(run: Path, output: Path, *, localizes: Path | None = None) -> int:
    """Writes the run's best weights in half precision, in one step; returns the file's size in bytes.

    What replaces weights in the bundle's models/ is entered into its metadata, see `released.enter_weights`.

    Args:
        run: folder of a run, with checkpoints/best.pt, a network's state dict.
        output: the file to write; missing folders are made.
        localizes: for a localizer, the exported weights of the cascade that it belongs to; a .json file beside `output`
            names them by their sha256, see `inferer.find_localizer`.

    Raises:
        FileNotFoundError: the run has no best checkpoint, or there are no weights to localize for.
        ValueError: the checkpoint is not a plain state dict, or holds NaN or infinite weights (also after rounding).
    """
    if localizes is not None and not localizes.is_file():
        raise FileNotFoundError(f"no weights at {localizes}: export those of the cascade first.")
    source = run / "checkpoints" / "best.pt"
    if not source.is_file():
        raise FileNotFoundError(f"no {source}: expected the run of a finished training, which validated at least once.")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{source} cannot be read ({error}): train again, or restore the file.") from error
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{source} is not a network's state dict: expected best.pt, not last.pt.")
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    broken = [name for name, value in half.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(
            f"{source} has NaN or infinite weights in {broken[:3]}: the training diverged; do not ship it."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as partial:
        torch.save(half, partial)
    if enter_weights(output):
        logger.info(
            "configs/metadata.json has its sha256 now; name, description and results there are still the old ones."
        )
    if localizes is not None:
        with whole_file(output.with_suffix(".json")) as partial:
            partial.write_text(json.dumps({"weights_sha256": sha256(localizes)}) + "\n", encoding="utf-8")
    return output.stat().st_size


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--localizes", type=Path, help="weights of the cascade that this localizer belongs to")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        size = export(args.run, args.output, localizes=args.localizes)
    except (FileNotFoundError, ValueError) as error:
        logger.error("%s", error)
        return 1
    logger.info("%s: %.1f MB", args.output, size / 1e6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
