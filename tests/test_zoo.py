"""The MONAI model zoo's checks, offline, of bundle/ as it stands and of the released glioma bundle: metadata, the
network's input and output, its weights, and our unit tests for the zoo.

The schema in tests/fixtures is the published one, meta_schema_20240725.json, unchanged.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, load, verify_metadata, verify_net_in_out

from scripts.release import RELEASES

ROOT = Path(__file__).parents[1]
SCHEMA = Path(__file__).parent / "fixtures" / "meta_schema_20240725.json"
ZOO_TESTS = Path(__file__).parent / "zoo"

STRUCTURE = {"vs": "vestibular schwannoma", "glioma": "whole tumor"}
EXPORT_SIZE = (32, 32, 8)
EXPORT_TOLERANCE = 1e-4  # of logits; the scripted network does the same arithmetic


@pytest.fixture(params=RELEASES)
def task(request: pytest.FixtureRequest) -> str:
    """vs, which is bundle/ itself, and glioma."""
    return request.param


@pytest.fixture
def bundle(task: str, request: pytest.FixtureRequest) -> Path:
    """The task's bundle; not to be changed by a test."""
    if task == "vs":
        return ROOT / "bundle"
    return request.getfixturevalue("released") / RELEASES[task].name


def metadata(bundle: Path) -> dict[str, Any]:
    """A bundle's metadata."""
    return json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))


def network(bundle: Path, config: str = "inference.json", definition: str = "network_def") -> torch.nn.Module:
    """A network of a bundle's config, in eval mode, without weights."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / config))
    return parser.get_parsed_content(definition).eval()


def verify(file: Path, folder: Path) -> None:
    """verify_metadata with the local schema: a file that is there already is not downloaded."""
    shutil.copy(SCHEMA, folder / SCHEMA.name)
    verify_metadata(meta_file=str(file), filepath=str(folder / SCHEMA.name))


def test_metadata_follows_the_schema(bundle: Path, tmp_path: Path) -> None:
    assert metadata(bundle)["schema"].endswith(SCHEMA.name)
    verify(bundle / "configs/metadata.json", tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("monai_version", None), ("version", 1.0), ("changelog", "none"), ("task", 3)]
)
def test_wrong_metadata_does_not(key: str, value: Any, tmp_path: Path) -> None:
    content = metadata(ROOT / "bundle")
    del content[key]
    if value is not None:
        content[key] = value
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Failed validating"):
        verify(tmp_path / "metadata.json", tmp_path)


def test_metadata_agrees_with_the_network(task: str, bundle: Path) -> None:
    inputs = metadata(bundle)["network_data_format"]["inputs"]
    outputs = metadata(bundle)["network_data_format"]["outputs"]
    assert next(iter(inputs)) == "image" and next(iter(outputs)) == "pred"
    config = json.loads((bundle / "configs/inference.json").read_text(encoding="utf-8"))
    assert config["task"] == task
    assert inputs["image"]["num_channels"] == len(inputs["image"]["channel_def"]) == config["source_channels"]
    assert outputs["pred"]["num_channels"] == 1
    assert outputs["pred"]["channel_def"] == {"0": "background", "1": STRUCTURE[task]}


def test_network_in_and_out(bundle: Path) -> None:
    """As the zoo calls it, with its default of 1 for every free size: shapes and types of a random input."""
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        device="cpu",
    )


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_wrong_channels_are_seen(name: str, bundle: Path) -> None:
    key = {"inputs": "image", "outputs": "pred"}[name]
    with pytest.raises((ValueError, RuntimeError)):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(bundle / "configs/metadata.json"),
            config_file=str(bundle / "configs/inference.json"),
            device="cpu",
            **{f"_meta_#network_data_format#{name}#{key}#num_channels": 2},
        )


def test_weights_load_strictly_and_are_plain(bundle: Path) -> None:
    state = torch.load(bundle / "models/model.pt", map_location="cpu", weights_only=True)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    assert all(torch.isfinite(value).all() for value in state.values())
    network(bundle).load_state_dict(state, strict=True)


def test_torchscript_export_computes_the_same(bundle: Path, tmp_path: Path) -> None:
    """The zoo scripts the network; the exported file carries metadata and config."""
    weights = bundle / "models/model.pt"
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(weights),
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
    )
    extra = {"metadata.json": ""}
    scripted = torch.jit.load(str(tmp_path / "model.ts"), _extra_files=extra).eval()
    assert json.loads(extra["metadata.json"])["version"] == metadata(bundle)["version"]
    eager = network(bundle)
    eager.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    channels = metadata(bundle)["network_data_format"]["inputs"]["image"]["num_channels"]
    x = torch.rand((1, channels, *EXPORT_SIZE), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = eager(x)
        assert (scripted(x) - expected).abs().max() < EXPORT_TOLERANCE
    assert expected.std() > EXPORT_TOLERANCE


def test_monai_loads_the_bundle(task: str, bundle: Path, tmp_path: Path) -> None:
    """monai.bundle.load finds network and weights in a folder of the bundle's name, without any download."""
    folder = tmp_path / RELEASES[task].name
    for name in ("configs", "models"):
        shutil.copytree(bundle / name, folder / name)
    version = metadata(bundle)["version"]
    loaded = load(
        name=folder.name, bundle_dir=str(tmp_path), workflow_type="inference", source="monaihosting", version=version
    )
    state = torch.load(bundle / "models/model.pt", map_location="cpu", weights_only=True)
    found = loaded.state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[name], value.float()) for name, value in state.items())


@pytest.mark.slow
def test_our_unit_test_for_the_zoo(task: str, released: Path, tmp_path: Path) -> None:
    """As the zoo's runner starts it: by its name, from a folder whose models/ holds the bundle."""
    (tmp_path / "models").mkdir()
    name = RELEASES[task].name
    shutil.copytree(released / name, tmp_path / "models" / name, ignore=shutil.ignore_patterns("*.pt"))
    environment = {**os.environ, "PYTHONPATH": str(ZOO_TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "unittest", f"test_{name}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Ran 2 tests" in done.stderr
