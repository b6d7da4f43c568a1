"""The MONAI model zoo's checks of the bundle, offline: layout, metadata, the network's input and output, its weights.

Not a place for what the zoo does not ask (test_configs.py) nor for running workflows (test_workflows.py). The schema
in tests/data is the published one, meta_schema_20240725.json, unchanged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, load, verify_metadata, verify_net_in_out

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle"
METADATA = BUNDLE / "configs" / "metadata.json"
INFERENCE = BUNDLE / "configs" / "inference.json"
WEIGHTS = BUNDLE / "models" / "model.pt"
PERCEPTOR = BUNDLE / "models" / "perceptor" / "perceptor.pt"
SCHEMA = Path(__file__).parent / "data" / "meta_schema_20240725.json"

REQUIRED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt")
EXPORT_SHAPE = (1, 1, 32, 32, 8)
EXPORT_TOLERANCE = 1e-4  # of logits; the scripted network does the same arithmetic

needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="bundle/models/model.pt is not there yet")


def metadata() -> dict[str, Any]:
    """The bundle's metadata."""
    return json.loads(METADATA.read_text(encoding="utf-8"))


def network() -> torch.nn.Module:
    """The network of inference.json, in eval mode, without weights."""
    parser = ConfigParser()
    parser.read_config(str(INFERENCE))
    return parser.get_parsed_content("network_def").eval()


@pytest.mark.parametrize("name", REQUIRED)
def test_layout(name: str) -> None:
    if name == "models/model.pt" and not WEIGHTS.is_file():
        pytest.skip("bundle/models/model.pt is not there yet")
    path = BUNDLE / name
    assert path.is_file() and path.stat().st_size > 0


@needs_weights
def test_only_the_released_network_lies_in_models() -> None:
    """MONAI Label offers every models/*.pt as a model."""
    assert [path.name for path in (BUNDLE / "models").glob("*.pt")] == ["model.pt"]


def verify(file: Path, folder: Path) -> None:
    """verify_metadata with the local schema: a file that is there already is not downloaded."""
    shutil.copy(SCHEMA, folder / SCHEMA.name)
    verify_metadata(meta_file=str(file), filepath=str(folder / SCHEMA.name))


def test_metadata_follows_the_schema(tmp_path: Path) -> None:
    assert metadata()["schema"].endswith(SCHEMA.name)
    verify(METADATA, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("monai_version", None), ("version", 1.0), ("changelog", "none"), ("task", 3)]
)
def test_wrong_metadata_does_not(key: str, value: Any, tmp_path: Path) -> None:
    content = metadata()
    del content[key]
    if value is not None:
        content[key] = value
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Failed validating"):
        verify(tmp_path / "metadata.json", tmp_path)


def test_metadata_agrees_with_the_network() -> None:
    inputs = metadata()["network_data_format"]["inputs"]
    outputs = metadata()["network_data_format"]["outputs"]
    assert next(iter(inputs)) == "image" and next(iter(outputs)) == "pred"
    channels = json.loads(INFERENCE.read_text(encoding="utf-8"))["source_channels"]
    assert inputs["image"]["num_channels"] == len(inputs["image"]["channel_def"]) == channels
    assert outputs["pred"]["num_channels"] == 1
    assert outputs["pred"]["channel_def"] == {"0": "background", "1": "vestibular schwannoma"}


def test_network_in_and_out() -> None:
    """As the zoo calls it, with its default of 1 for every free size: shapes and types of a random input."""
    verify_net_in_out(net_id="network_def", meta_file=str(METADATA), config_file=str(INFERENCE), device="cpu")


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_wrong_channels_are_seen(name: str, tmp_path: Path) -> None:
    key = {"inputs": "image", "outputs": "pred"}[name]
    override = {f"_meta_#network_data_format#{name}#{key}#num_channels": 2}
    with pytest.raises((ValueError, RuntimeError)):
        verify_net_in_out(
            net_id="network_def", meta_file=str(METADATA), config_file=str(INFERENCE), device="cpu", **override
        )


@needs_weights
def test_weights_load_strictly_and_are_plain() -> None:
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float16}
    assert all(torch.isfinite(value).all() for value in state.values())
    network().load_state_dict(state, strict=True)


@needs_weights
def test_perceptor_loads_strictly() -> None:
    if not PERCEPTOR.is_file():
        pytest.skip("bundle/models/perceptor/perceptor.pt is not there yet")
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    state = torch.load(PERCEPTOR, map_location="cpu", weights_only=True)
    parser.get_parsed_content("perceptor_def").load_state_dict(state, strict=True)


@needs_weights
def test_torchscript_export_computes_the_same(tmp_path: Path) -> None:
    """The zoo scripts the network; the exported file carries metadata and config."""
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(WEIGHTS),
        meta_file=str(METADATA),
        config_file=str(INFERENCE),
    )
    extra = {"metadata.json": ""}
    scripted = torch.jit.load(str(tmp_path / "model.ts"), _extra_files=extra).eval()
    assert json.loads(extra["metadata.json"])["version"] == metadata()["version"]
    eager = network()
    eager.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
    x = torch.rand(EXPORT_SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = eager(x)
        assert (scripted(x) - expected).abs().max() < EXPORT_TOLERANCE
    assert expected.std() > EXPORT_TOLERANCE


@needs_weights
def test_monai_loads_the_bundle(tmp_path: Path) -> None:
    """monai.bundle.load finds network and weights in a folder of the bundle's name, without any download."""
    folder = tmp_path / "tissnet_vestibular_schwannoma"
    for name in ("configs", "models"):
        shutil.copytree(BUNDLE / name, folder / name)
    loaded = load(
        name=folder.name, bundle_dir=str(tmp_path), workflow_type="inference", source="monaihosting", version="0.1.0"
    )
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    found = loaded.state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[name], value.float()) for name, value in state.items())
