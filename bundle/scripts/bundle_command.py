"""The arguments of a `python -m monai.bundle run`, for the commands that start others."""

from __future__ import annotations

from collections.abc import Sequence

TRAIN, EVALUATE, PRETRAIN = (f"configs/{name}.json" for name in ("train", "evaluate", "pretrain"))


def bundle_run(entry: str, files: Sequence[str], **overrides: object) -> list[str]:
    """Lists what stands behind `python -m`: an entry to run, config files from the base on, single values."""
    listed = ",".join(f"'{file}'" for file in files)
    arguments = ["monai.bundle", "run", entry, "--config_file", f"[{listed}]"]
    for name, value in overrides.items():
        arguments += [f"--{name}", str(value)]
    return arguments
