"""Which weights are the bundle's own: the metadata name them by their SHA-256. Reading networks goes to `trainer.py`.

A damaged or exchanged file is refused; `scripts.export` enters the weights that it puts in their place.
"""

from __future__ import annotations

import json
from pathlib import Path

from scripts.data.record import sha256
from scripts.files import whole_file

BUNDLE = Path(__file__).resolve().parents[1]


def check_weights(path: Path, *, bundle: Path = BUNDLE) -> None:
    """Refuses a file of the bundle's models/ that is not the one which its metadata name.

    Files elsewhere, and those that the metadata do not name, pass.

    Raises:
        ValueError: another SHA-256 than that of the metadata.
    """
    name, metadata = _name(path, bundle), _metadata(bundle)
    expected = metadata.get("weights_sha256", {}).get(name)
    if expected is not None and (found := sha256(path)) != expected:
        raise ValueError(
            f"{path} has sha256 {found}, configs/metadata.json names {expected} for {name}: the file is damaged or "
            "was exchanged. Download the bundle again; weights of your own are put there by python -m scripts.export."
        )


def enter_weights(path: Path, *, bundle: Path = BUNDLE) -> bool:
    """Writes the SHA-256 of what replaced the bundle's own weights into its metadata; it is no demonstration any more.

    Returns:
        Whether the metadata name the file, and now with what it holds.
    """
    name, metadata = _name(path, bundle), _metadata(bundle)
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


def _metadata(bundle: Path) -> dict:
    """The bundle's metadata; empty where there is no such file."""
    file = bundle / "configs" / "metadata.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
