"""Packs a task as the bundle that is published: NAME_vVERSION.zip, self-contained, the same bytes on every run.

    python -m scripts.release --task vs --version 0.1.0 --output ../dist
    python -m scripts.release --task glioma --version 0.1.0 --output ../dist

Run from the repository's folder bundle/. The overrides of a task are merged into the JSON files that they lie over, its
weights become models/model.pt, its card docs/README.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from monai.bundle import ConfigParser

from scripts.files import sha256, whole_file
from scripts.weights import load_weights, not_finite

logger = logging.getLogger(__name__)

BUNDLE = Path(__file__).resolve().parents[1]
METADATA = "configs/metadata.json"
CHANGED = (1980, 1, 1, 0, 0, 0)  # of every file in the archive: the earliest that the format can say
LARGE_BYTES = 25_000_000  # the model zoo keeps larger files elsewhere
# The network of each file of weights: the config that defines it, and the name there.
NETWORKS = {
    "models/model.pt": ("configs/inference.json", "network_def"),
    "models/localizer/localizer.pt": ("configs/inference.json", "localizer_def"),
    "models/perceptor/perceptor.pt": ("configs/train.json", "perceptor_def"),
}
REQUIRED_FILES = ("LICENSE", METADATA, "configs/train.json", "configs/inference.json", "models/model.pt")
REQUIRED_KEYS = (
    *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
    *("required_packages_version", "supported_apps", "name", "task", "description"),
    *("authors", "copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes"),
    *("eval_metrics", "weights_sha256", "demonstration_weights", "intended_use", "references", "network_data_format"),
)
REQUIREMENTS = ("requirements-bundle.txt", "requirements.txt")
PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


@dataclass(frozen=True)
class Release:
    """What a task's bundle is called and how it differs from the folder bundle/.

    Attributes:
        name: of the bundle.
        overrides: configs that are merged into every JSON config which has their keys.
        metadata: what lies over metadata.json.
        moved: files and folders of the repository that lie elsewhere in the bundle.
        left_out: files and folders of the repository that are not in it.
    """

    name: str
    overrides: tuple[str, ...]
    metadata: str | None
    moved: Mapping[str, str]
    left_out: tuple[str, ...]


ALWAYS_LEFT_OUT = ("scripts/release.py",)
RELEASES = {
    "vs": Release(
        name="tissnet_vestibular_schwannoma",
        overrides=(),
        metadata=None,
        moved={},
        left_out=("models/glioma", "docs/glioma.md", "configs/metadata_glioma.yaml"),
    ),
    "glioma": Release(
        name="tissnet_glioma",
        overrides=("configs/glioma.yaml", "configs/glioma_2mm.yaml"),
        metadata="configs/metadata_glioma.yaml",
        moved={"models/glioma": "models", "docs/glioma.md": "docs/README.md"},
        left_out=(
            *("models/model.pt", "models/localizer", "models/perceptor", "docs/README.md", "docs/tutorial.ipynb"),
            *("configs/surrogate_t2_cet1.yaml", "scripts/demo.py"),
            *("configs/experiments/phantom_demo.yaml", "configs/experiments/phantom_weights.yaml"),
            "configs/experiments/phantom_whole.yaml",
        ),
    ),
}


def release(task: str, version: str, output: Path, *, bundle: Path, assets_url: str | None = None) -> Path:
    """Writes the archive of a task, its .sha256, and large_files.yml where it is wanted; returns the archive's path.

    Args:
        task: a key of `RELEASES`.
        version: the bundle's version, as the metadata have it.
        output: folder to write to; made where missing.
        bundle: the repository's folder bundle/.
        assets_url: address below which files over 25 MB will lie; writes them and a large_files.yml for the model zoo.

    Raises:
        ValueError: the tree is not committed, the metadata lack something or do not fit, or weights do not load.
        FileNotFoundError: a file of the bundle is missing.
    """
    _check_committed(bundle.parent)
    chosen = RELEASES[task]
    files = contents(chosen, bundle)
    _check_metadata(files, version, bundle.parent)
    _check_weights(files)
    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"{chosen.name}_v{version}.zip"
    with whole_file(archive) as partial:
        _pack(files, chosen.name, partial)
    archive.with_name(f"{archive.name}.sha256").write_text(f"{sha256(archive)}  {archive.name}\n", encoding="utf-8")
    large = [name for name, content in files.items() if len(content) > LARGE_BYTES]
    if large and assets_url:
        _write_large_files(files, large, output, archive.stem, assets_url)
    elif large:
        logger.info("%s over 25 MB: --assets-url writes a large_files.yml for the model zoo.", ", ".join(large))
    return archive


def contents(chosen: Release, bundle: Path) -> dict[str, bytes]:
    """Every file of a released bundle by its path there, in order of path.

    Raises:
        FileNotFoundError: an override, the metadata or a required file is missing.
        ValueError: an override has a key that no JSON config has, or one that is not at the top.
    """
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=bundle, capture_output=True, check=True, text=True).stdout
    merged_away = {*chosen.overrides, *((chosen.metadata,) if chosen.metadata else ())}
    files: dict[str, bytes] = {}
    for name in filter(None, listed.split("\0")):
        if name not in merged_away and not _below(name, (*ALWAYS_LEFT_OUT, *chosen.left_out)):
            files[_moved(name, chosen.moved)] = (bundle / name).read_bytes()
    overrides: dict[str, Any] = {}
    for name in chosen.overrides:
        overrides |= _read(bundle / name)
    files |= _merge(files, overrides)
    if chosen.metadata:
        metadata = json.loads(files[METADATA]) | _read(bundle / chosen.metadata)
        files[METADATA] = _json(metadata)
    for name in files:
        if PurePosixPath(name).suffix in (".json", ".yaml", ".md"):
            files[name] = _without_merged(files[name], chosen.overrides)
    if missing := [name for name in REQUIRED_FILES if name not in files]:
        raise FileNotFoundError(f"{chosen.name}: no {', '.join(missing)}: expected in {bundle}, committed.")
    return dict(sorted(files.items()))


def _merge(files: Mapping[str, bytes], overrides: Mapping[str, Any]) -> dict[str, bytes]:
    """The JSON configs that have a key of the overrides, with its value."""
    merged, unused = {}, set(overrides)
    for name, content in files.items():
        path = PurePosixPath(name)
        if path.parent.name == "configs" and path.suffix == ".json" and name != METADATA:
            config = json.loads(content)
            if common := overrides.keys() & config.keys():
                merged[name] = _json(config | {key: overrides[key] for key in common})
                unused -= common
    if unused:
        raise ValueError(f"no JSON config has {', '.join(sorted(unused))}: an override can only be merged at the top.")
    return merged


def _check_committed(repository: Path) -> None:
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repository, capture_output=True, check=True, text=True
    ).stdout.splitlines()
    if status:
        raise ValueError(
            f"{repository} has {len(status)} uncommitted changes ({'; '.join(line.strip() for line in status[:5])}): "
            "commit or remove them; a release is made of what is committed."
        )


def _check_metadata(files: Mapping[str, bytes], version: str, repository: Path) -> None:
    metadata = json.loads(files[METADATA])
    if missing := [key for key in REQUIRED_KEYS if key not in metadata]:
        raise ValueError(f"{METADATA} has no {', '.join(missing)}: add what is missing.")
    if version not in metadata["changelog"]:
        raise ValueError(
            f"version {version} is not in the changelog of {METADATA} ({', '.join(metadata['changelog'])}): add it."
        )
    if version != metadata["version"]:
        raise ValueError(f"{METADATA} has version {metadata['version']}, asked for was {version}: make them equal.")
    if f"## [{version}]" not in (repository / "CHANGELOG.md").read_text(encoding="utf-8"):
        raise ValueError(f"CHANGELOG.md has no section for version {version}: add it.")
    lines = [line for file in REQUIREMENTS for line in (repository / file).read_text(encoding="utf-8").splitlines()]
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    stated = {package: metadata[key] for key, package in PACKAGES.items()}
    stated |= metadata["required_packages_version"]
    if wrong := [
        f"{name} {found} (pinned {pins.get(name)})" for name, found in stated.items() if pins.get(name) != found
    ]:
        raise ValueError(f"{METADATA} names other versions than {' and '.join(REQUIREMENTS)}: {', '.join(wrong)}.")


def _check_weights(files: Mapping[str, bytes]) -> None:
    """Loads every file of weights, strictly, into the network of the bundle's own configs, and compares its SHA-256."""
    shipped = {name for name in files if name.startswith("models/") and name.endswith(".pt")}
    named = json.loads(files[METADATA])["weights_sha256"]
    if shipped != named.keys():
        raise ValueError(f"{METADATA} names the weights {sorted(named)}, the bundle has {sorted(shipped)}.")
    if strange := set(json.loads(files[METADATA])["demonstration_weights"]) - shipped:
        raise ValueError(f"{METADATA} calls {sorted(strange)} a demonstration, the bundle has {sorted(shipped)}.")
    for name in sorted(shipped):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_bytes(files[name])
            if (found := sha256(file)) != named[name]:
                raise ValueError(
                    f"{name} has sha256 {found}, {METADATA} names {named[name]}: export the weights again."
                )
            if name not in NETWORKS:
                raise ValueError(f"no network is known for {name}: expected {', '.join(NETWORKS)}.")
            config, definition = NETWORKS[name]
            network = ConfigParser(json.loads(files[config])).get_parsed_content(definition)
            load_weights(network, path=file)
        if broken := not_finite(network.state_dict()):
            raise ValueError(f"{name} has NaN or infinite weights in {broken}: it cannot be released.")


def _pack(files: Mapping[str, bytes], folder: str, archive: Path) -> None:
    """Stored, not compressed: weights hardly shrink, and compressors differ from machine to machine."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for name, content in files.items():
            entry = zipfile.ZipInfo(f"{folder}/{name}", CHANGED)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            packed.writestr(entry, content)


def _write_large_files(files: Mapping[str, bytes], large: list[str], output: Path, stem: str, address: str) -> None:
    """large_files.yml as the model zoo reads it, beside the large files under the names of their addresses."""
    entries = []
    for name in large:
        asset = f"{stem}_{PurePosixPath(name).name}"
        with whole_file(output / asset) as partial:
            partial.write_bytes(files[name])
        entries.append(
            {
                "path": name,
                "url": f"{address.rstrip('/')}/{asset}",
                "hash_val": sha256(output / asset),
                "hash_type": "sha256",
            }
        )
    text = yaml.safe_dump({"large_files": entries}, sort_keys=False)
    (output / f"{stem}_large_files.yml").write_text(text, encoding="utf-8")


def _without_merged(content: bytes, overrides: tuple[str, ...]) -> bytes:
    """Text whose commands no longer name the merged files."""
    for name in overrides:
        content = content.replace(f",'{name}'".encode(), b"")
    return content


def _below(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def _moved(name: str, moved: Mapping[str, str]) -> str:
    for old, new in moved.items():
        if _below(name, (old,)):
            return new + name.removeprefix(old)
    return name


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: expected, to be merged into the released bundle.")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=RELEASES, required=True)
    parser.add_argument("--version", required=True, help="as configs/metadata.json has it")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--assets-url", help="where files over 25 MB will lie: writes them and large_files.yml")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        archive = release(args.task, args.version, args.output, bundle=BUNDLE, assets_url=args.assets_url)
    except (FileNotFoundError, ValueError) as error:
        logger.error("%s", error)
        return 1
    digest = archive.with_name(f"{archive.name}.sha256").read_text(encoding="utf-8").split()[0]
    logger.info("%s: %.1f MB, sha256 %s", archive, archive.stat().st_size / 1e6, digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
