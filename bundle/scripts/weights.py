r"""Files of weights, for bundle and app: find, verify, load strictly, and export what a training left for shipping.

    python -m scripts.weights export --run runs/vs_tissnet --output models/model.pt [--checkpoint final]
    python -m scripts.weights export --run runs/vs_localizer --output models/localizer/localizer.pt \
        --localizes models/model.pt

The metadata name the bundle's own weights by their SHA-256: a damaged or exchanged file is refused where it is loaded.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.files import sha256, whole_file
from scripts.networks.localizer import Localizer

logger = logging.getLogger(__name__)

BUNDLE = Path(__file__).resolve().parents[1]


# loading


def load_weights(network: nn.Module, *, path: str | Path) -> nn.Module:
    """Loads a network's state dict from a file, strictly.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, holds another network's weights, or lies in the bundle's models/ and is not
            what its metadata name.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: expected the best.pt of a run, or a released model.pt.")
    check_weights(Path(path))
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold the weights of the configured {type(network).__name__} ({error}): give the weights "
            "of this configuration, or the configuration (features, source_channels) of these weights."
        ) from error
    return network


def start_network(network: nn.Module, *, path: str | None = None) -> nn.Module:
    """Loads the weights that a training starts from, where there is a path; see `load_weights` for the errors."""
    return load_weights(network, path=path) if path else network


def load_perceptor(network: nn.Module, *, path: str, weight: float) -> nn.Module | None:
    """Loads the frozen perceptor S_p, or returns None where its loss has weight 0.

    Args:
        network: S_p's network, weights are loaded into it.
        path: its checkpoint, the state dict of `network`.
        weight: the perceptibility loss's weight.

    Raises:
        FileNotFoundError: there is no such file; names the command that trains it.
        ValueError: the file holds another network's weights.
    """
    if not weight:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no perceptor S_p at {path}, and the weight of the perceptibility loss is {weight:g}. Train it first, on "
            "the same task and data: python -m monai.bundle run training --config_file "
            "\"['configs/train.json','configs/pretrain.json']\" (further override files behind), or set "
            "--weights#perceptibility 0 (when evaluating: --S_p#weight 0), or point --perceptor_path to a trained one."
        )
    return load_weights(network, path=path).requires_grad_(False).eval()


def find_localizer(weights: str) -> str | None:
    """Finds the localizer that belongs to a cascade's weights: localizer/localizer.pt beside them.

    It decides where the cascade looks at all, so it has to be of the same data: localizer.json beside it, see `export`,
    holds the weights' sha256. Another one, and one without, is left alone with a warning.
    """
    path = Path(weights).parent / "localizer" / "localizer.pt"
    if not path.is_file() or not Path(weights).is_file():
        return None
    record = path.with_suffix(".json")
    if _read(record).get("weights_sha256") != sha256(Path(weights)):
        logger.warning(
            "%s is not used: %s does not name %s as the weights it belongs to. If both were trained on the same data: "
            "python -m scripts.weights export --run RUN_OF_THE_LOCALIZER --output %s --localizes %s",
            *(path, record.name, weights, path, weights),
        )
        return None
    return str(path)


def load_localizer(network: Localizer, *, path: str | None, localize: bool = True) -> Localizer | None:
    """Loads a localizer's weights, or returns None, for windows everywhere, without a path or with `localize` false.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another network's weights, or those of one that averages other blocks of voxels.
    """
    if not localize or path is None:
        logger.info("no localizer: the cascade's windows cover the whole foreground.")
        return None
    load_weights(network, path=path)
    trained = torch.as_tensor(network.trained_pooling).tolist()
    if trained != network.pooling:
        raise ValueError(f"{path} was trained with pooling {trained}, found {network.pooling}: set localizer_pooling.")
    logger.info("localizer: %s", path)
    return network.requires_grad_(False).eval()


# the bundle's own


def check_weights(path: Path, *, bundle: Path = BUNDLE) -> None:
    """Refuses a file of the bundle's models/ that is not the one which its metadata name.

    Files elsewhere, and those that the metadata do not name, pass.

    Raises:
        ValueError: another SHA-256 than that of the metadata.
    """
    name, metadata = _name(path, bundle), _read(bundle / "configs" / "metadata.json")
    expected = metadata.get("weights_sha256", {}).get(name)
    if expected is not None and (found := sha256(path)) != expected:
        raise ValueError(
            f"{path} has sha256 {found}, configs/metadata.json names {expected} for {name}: the file is damaged or was "
            "exchanged. Download the bundle again; weights of your own are put there by python -m scripts.weights "
            "export."
        )


def enter_weights(path: Path, *, bundle: Path = BUNDLE) -> bool:
    """Writes the SHA-256 of what replaced the bundle's own weights into its metadata; it is no demonstration any more.

    Returns:
        Whether the metadata name the file, and now with what it holds.
    """
    name, metadata = _name(path, bundle), _read(bundle / "configs" / "metadata.json")
    if name not in metadata.get("weights_sha256", {}):
        return False
    metadata["weights_sha256"][name] = sha256(path)
    metadata["demonstration_weights"] = [file for file in metadata.get("demonstration_weights", ()) if file != name]
    with whole_file(bundle / "configs" / "metadata.json") as partial:
        partial.write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def _name(path: Path, bundle: Path) -> str | None:
    """The path within the bundle, where it lies in its models/."""
    path = path.resolve()
    return path.relative_to(bundle).as_posix() if path.is_relative_to(bundle / "models") else None


def _read(file: Path) -> dict[str, Any]:
    """A JSON file's content; empty where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


# export


def export(run: Path, output: Path, *, checkpoint: str = "best", localizes: Path | None = None) -> int:
    """Writes a run's weights in half precision, in one step; returns the file's size in bytes.

    What replaces weights in the bundle's models/ is entered into its metadata, see `enter_weights`.

    Args:
        run: folder of a run, with checkpoints/best.pt and final.pt, a network's state dict.
        checkpoint: which of them: "best" on the validation cases, or "final", of the last epoch.
        output: the file to write; missing folders are made.
        localizes: for a localizer, the exported weights of the cascade that it belongs to; a .json file beside `output`
            names them by their sha256, see `find_localizer`.

    Raises:
        FileNotFoundError: the run has no best checkpoint, or there are no weights to localize for.
        ValueError: the checkpoint is not a plain state dict, or holds NaN or infinite weights (also after rounding).
    """
    if localizes is not None and not localizes.is_file():
        raise FileNotFoundError(f"no weights at {localizes}: export those of the cascade first.")
    source = run / "checkpoints" / f"{checkpoint}.pt"
    if not source.is_file():
        raise FileNotFoundError(
            f"no {source}: expected the run of a finished training, which for best.pt validated at least once."
        )
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{source} cannot be read ({error}): train again, or restore the file.") from error
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{source} is not a network's state dict: expected best.pt or final.pt, not last.pt.")
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    if broken := not_finite(half):
        raise ValueError(f"{source} has NaN or infinite weights in {broken}: the training diverged; do not ship it.")
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


def not_finite(state: dict[str, torch.Tensor]) -> list[str]:
    """The first names, at most 3, of a state dict's tensors that hold NaN or infinite values."""
    return [name for name, value in state.items() if not torch.isfinite(value).all()][:3]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    given = commands.add_parser("export", help="write a run's best weights as a float16 state dict, to be shipped")
    given.add_argument("--run", type=Path, required=True)
    given.add_argument("--output", type=Path, required=True)
    given.add_argument("--checkpoint", choices=("best", "final"), default="best", help="default %(default)s")
    given.add_argument("--localizes", type=Path, help="weights of the cascade that this localizer belongs to")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        size = export(args.run, args.output, checkpoint=args.checkpoint, localizes=args.localizes)
    except (FileNotFoundError, ValueError) as error:
        logger.error("%s", error)
        return 1
    logger.info("%s: %.1f MB", args.output, size / 1e6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
