"""Tests of monailabel_app.bundle, infer and store: content on the scan's own grid, options, refusals, weights.

With an inferer of known answer in place of the network; the real network and server are in test_client.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from known_answer import BRIGHT
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monailabel_app import versions
from monailabel_app.bundle import DEMONSTRATION, ServedBundle, _middle_mm, load_models
from monailabel_app.errors import InputError, NotFound
from monailabel_app.store.cases import case_of, siblings, source_files, start_image
from monailabel_app.tasks.infer import TISSNetInferTask
from scripts.networks.tissnet import TISSNet, name_outputs

SHAPE, SPACING = (72, 66, 24), (0.9, 0.9, 2.5)
TINY = "features: [2, 2, 2, 2, 2]\npatch_size: [32, 32, 8]\nlocalize: false\n"
KNOWN = TINY + "inferer:\n  _target_: known_answer.KnownAnswer\npixdim: [0.9, 0.9, 2.5]\nsmallest_mm3: 0.0\n"
GLIOMA = "task: glioma\nsource_channels: 3\n"

ORIENTATIONS = ("LPS", "RAS", "PIR", "SLA", "oblique")


@pytest.fixture(scope="module")
def make_bundle(bundle_root, tmp_path_factory):
    """Serves the bundle's code and configs with a tiny network's weights and an override."""

    def make(override: str = KNOWN, **options) -> ServedBundle:
        folder = tmp_path_factory.mktemp("override")
        (folder / "override.yaml").write_text(override)
        parser = ConfigParser()
        parser.read_config([str(bundle_root / "configs" / "inference.json"), str(folder / "override.yaml")])
        torch.manual_seed(0)
        torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
        return ServedBundle(
            "tiny", bundle_root, overrides=[folder / "override.yaml"], weights=folder / "model.pt", **options
        )

    return make


@pytest.fixture(scope="module")
def task(make_bundle):
    return TISSNetInferTask(make_bundle())


def affine_of(orientation: str) -> np.ndarray:
    """Voxels to RAS millimeters; the third voxel axis is the coarse one."""
    if orientation == "oblique":
        columns = Rotation.from_euler("XYZ", (12, -20, 33), degrees=True).as_matrix() * SPACING
    else:
        columns = np.zeros((3, 3))
        for axis, (world, sign) in enumerate(nib.orientations.axcodes2ornt(tuple(orientation))):
            columns[int(world), axis] = sign * SPACING[axis]
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = 7, -11, 5
    return affine


def make_scan(orientation: str, *, height: float = 500) -> nib.Nifti1Image:
    """A head without any symmetry, with a bright lump, smooth in all directions."""
    affine = affine_of(orientation)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    center = affine[:3, :3] @ (np.array(SHAPE) / 2) + affine[:3, 3]
    x, y, z = np.moveaxis(world - center, -1, 0)
    head = (x / 26) ** 2 + (y / 27) ** 2 + (z / 26) ** 2 < 1
    lump = np.exp(-(((x - 8) / 6) ** 2 + ((y + 5) / 7) ** 2 + ((z - 4) / 8) ** 2))
    voxels = np.where(head, 300 + 2 * x + 3 * y + 4 * z + height * lump, 0)
    image = nib.Nifti1Image(np.rint(voxels).astype(np.int16), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    return image


@pytest.fixture
def scan(tmp_path):
    file = tmp_path / "x.nii.gz"
    nib.save(make_scan("RAS"), file)
    return file


def expected_mask(voxels: np.ndarray) -> np.ndarray:
    """Where the normalized scan is bright, by the definition of the normalization."""
    inside = voxels[voxels != 0]
    low, high = np.percentile(inside, (0.5, 99.5))
    return (voxels != 0) & ((voxels - low) / (high - low) * 2 - 1 > BRIGHT)


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_content_lies_on_the_scans_own_grid(task, tmp_path, orientation):
    file = tmp_path / "scan_T2.nii.gz"
    scan = make_scan(orientation)
    nib.save(scan, file)
    voxels = np.asarray(scan.dataobj, dtype=np.float64)
    expected = expected_mask(voxels)
    answer = task.answer([file], {"result_extension": ".nrrd"}, case="scan")

    mask = sitk.ReadImage(str(answer.mask))
    source = sitk.ReadImage(str(file))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == source.GetSize()
    for of in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, of)() == pytest.approx(getattr(source, of)(), abs=1e-4)
    assert dice(sitk.GetArrayFromImage(mask).T > 0, expected) == 1.0

    head = voxels != 0
    for name, sign in (("synthetic", -1), ("error", 1)):
        extra = nib.load(answer.extra[name])
        assert extra.shape == scan.shape
        assert extra.affine == pytest.approx(scan.affine, abs=1e-5)
        for of in ("get_sform", "get_qform"):
            assert getattr(extra, of)() == pytest.approx(getattr(scan, of)(), abs=1e-4)
        assert extra.get_data_dtype() == np.float32
        assert sign * np.corrcoef(extra.get_fdata()[head], voxels[head])[0, 1] > 0.99
    assert answer.params["volume_mm3"] == pytest.approx(np.count_nonzero(expected) * np.prod(SPACING), rel=1e-4)
    for path in (answer.mask, *answer.extra.values()):
        path.unlink()


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_mask_comes_as_it_was_asked_for(task, tmp_path, extension, dtype):
    image = make_scan("LPS")
    nib.save(image, tmp_path / "a b [1].nii.gz")
    options = {"result_extension": extension, "result_dtype": dtype, "result_compress": True}
    answer = task.answer([tmp_path / "a b [1].nii.gz"], options, case="a b [1]")
    mask = sitk.ReadImage(str(answer.mask))
    assert mask.GetPixelID() == {"uint8": sitk.sitkUInt8, "uint16": sitk.sitkUInt16}[dtype]
    assert dice(sitk.GetArrayFromImage(mask).T > 0, expected_mask(np.asarray(image.dataobj))) == 1.0


def test_the_reply_says_what_was_done(task, scan):
    params = task.answer([scan], {}, case="x").params
    assert params["weights_sha256"] == task.bundle.sha256
    assert (params["device"], params["model"], params["demonstration"]) == ("cpu", "tiny", False)
    assert params["label_names"] == {"vestibular schwannoma": 1}
    assert params["volume_cm3"] == pytest.approx(params["volume_mm3"] / 1000, abs=5e-4)
    assert params["seconds"] > 0
    assert json.loads(json.dumps(params)) == params


def nothing(self, inputs, network):
    return name_outputs(torch.cat([inputs[:, :1] * 0] * 4, dim=1), TISSNet.outputs)


def test_no_tumor_is_an_answer(make_bundle, scan):
    task = TISSNetInferTask(make_bundle(KNOWN))
    task.bundle.inferer.__class__ = type("Nothing", (task.bundle.inferer.__class__,), {"__call__": nothing})
    answer = task.answer([scan], {}, case="x")
    assert answer.params["notes"][0] == "No tumor was found."
    assert answer.params["volume_mm3"] == 0
    assert answer.params["confidence"] == 1.0
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(answer.mask))).any()


def test_a_part_that_was_removed_gives_no_confidence(make_bundle, scan):
    """The scan has one bright lump, which is smaller than the smallest part that is kept."""
    task = TISSNetInferTask(make_bundle(KNOWN.replace("smallest_mm3: 0.0", "smallest_mm3: 1.0e+6")))
    answer = task.answer([scan], {}, case="x")
    assert answer.params["notes"][0] == "No tumor was found."
    assert answer.params["confidence"] == 0.0  # the inferer was sure of what was removed


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-100, 100, 0.0),  # air on both sides
        (-100, 60, None),  # the head goes on
        (-30, 85, None),  # 115 mm of it, cut off on one side
        (0, 100, None),  # one side
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_is_known_only_where_both_sides_are_seen(low, high, expected, turned):
    """A head of 160 mm around x = 0, with some noise in the air, in a field of view from low to high."""
    x = np.arange(low, high, 1.0)
    y = np.arange(-110, 110, 2.0)
    inside = (x[:, None] / 80) ** 2 + (y[None] / 95) ** 2 < 1
    image = np.where(inside, 0.2, -0.95)[None, :, :, None].repeat(6, -1)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:2, 3] = low, -110
    if turned:
        image, affine = image.transpose(0, 2, 1, 3), affine[:, [1, 0, 2, 3]]
    found = _middle_mm(MetaTensor(torch.from_numpy(image.copy()), affine=torch.from_numpy(affine)))
    assert found is None if expected is None else found == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"flips": "perhaps"}, "flips is 'perhaps'"),
        ({"device": "tpu"}, "no device"),
        ({"result_extension": ".png"}, ".png"),
        ({"result_dtype": "object"}, "object"),
    ],
)
def test_options_that_cannot_be_used(task, scan, options, message):
    with pytest.raises(InputError, match=message):
        task.answer([scan], options, case="x")


def test_a_truncated_file_is_refused(task, scan):
    scan.write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    with pytest.raises(InputError, match=r"unreadable file: found case x: .*, expected a complete NIfTI file"):
        task.answer([scan], {}, case="x")


@pytest.mark.parametrize(
    ("qform", "sform", "moved", "message"),
    [
        (
            1,
            1,
            20.0,
            "affine: found case x: x_T2.nii.gz: sform and qform differ by 20 mm, .* correct or remove",
        ),
        (0, 0, 0.0, "orientation: found case x: x_T2.nii.gz: no position, .* convert it from DICOM again"),
    ],
)
def test_what_prepare_refuses_is_refused_in_its_words(task, tmp_path, qform, sform, moved, message):
    image = make_scan("RAS")
    other = image.affine.copy()
    other[0, 3] += moved
    image.set_sform(image.affine, code=1)
    image.set_qform(other, code=1)
    image.header["qform_code"], image.header["sform_code"] = qform, sform
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "x_T2.nii.gz")
    with pytest.raises(InputError, match=message):
        task.answer([tmp_path / "x_T2.nii.gz"], {}, case="x")


def test_nothing_is_left_behind_when_a_request_fails(task, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), affine_of("RAS")), tmp_path / "in" / "x.nii.gz")
    with pytest.raises(InputError):
        task.answer([tmp_path / "in" / "x.nii.gz"], {}, case="x")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


# --- The real inferer with a tiny network


@pytest.mark.parametrize("device", ["cuda:99", "cuda:-1", "cuda:", "gpu", "cpu:7", "x" * 500, 1, [3], {"cpu": 1}])
def test_a_device_that_is_not_there_is_refused(task, scan, device):
    with pytest.raises(InputError, match="no device.* on the server: expected one of cpu"):
        task.answer([scan], {"device": device}, case="x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("device", "used"), [("cuda", None), ("", "cpu"), (None, "cpu"), (["cpu"], "cpu"), ([], "cpu")]
)
def test_without_a_gpu_nothing_but_the_processor_is_asked_for_in_vain(task, scan, device, used):
    if used is None:
        with pytest.raises(InputError, match="no device 'cuda' on the server: expected one of cpu"):
            task.answer([scan], {"device": device}, case="x")
    else:
        assert task.answer([scan], {"device": device}, case="x").params["device"] == used


def test_a_method_of_two_outputs_is_served(make_bundle, tmp_path):
    """As pix2pix: a mask and a synthetic image, no coarse mask and no error map, of which nothing is claimed."""
    two = "network_def: {_target_: made.pix2pix.Pix2Pix, in_channels: 1, features: [2, 2, 2, 2, 2]}\n"
    nib.save(make_scan("RAS"), tmp_path / "a_T2.nii.gz")
    answer = TISSNetInferTask(make_bundle(TINY + two)).answer([tmp_path / "a_T2.nii.gz"], {}, case="a")
    assert answer.mask.is_file() and set(answer.extra) == {"synthetic"}
    assert answer.params["disagreement"] is None and answer.params["error_mass_mm3"] is None


def test_flips_and_overlap_reach_the_inferer(make_bundle, scan):
    bundle = make_bundle(TINY + "pixdim: [0.9, 0.9, 2.5]\nengine: torch\n")
    task = TISSNetInferTask(bundle)
    plain = task.answer([scan], {}, case="x")
    again = task.answer([scan], {"flips": True, "overlap": 0.5}, case="x")
    errors = [nib.load(answer.extra["error"]).get_fdata() for answer in (plain, again)]
    assert not np.allclose(*errors)
    back = task.answer([scan], {}, case="x")  # one request's options are not the next one's
    assert np.array_equal(nib.load(back.extra["error"]).get_fdata(), errors[0])


def test_out_of_memory_on_the_gpu_goes_to_the_processor(make_bundle, tmp_path, scan, monkeypatch):
    bundle = make_bundle()
    real = bundle.inferer.__class__.__call__
    asked = []

    def call(self, inputs, network):
        asked.append(len(asked))
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, inputs, network)

    monkeypatch.setattr(bundle.inferer.__class__, "__call__", call)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    found = bundle.segment([scan], tmp_path / "out", case="x", threshold=0.5, overlap=0.25, flips=False, device="cpu:0")
    assert found.device == "cpu"
    assert "too little memory" in found.notes[0]


# --- Weights


def test_damaged_released_weights_are_refused(bundle_root, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_root / "configs", folder / "configs")
    (folder / "models").mkdir()
    content = bytearray((bundle_root / "models" / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "models" / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match="sha256 .* the file is damaged"):
        ServedBundle("tampered", folder)


def test_the_repositorys_glioma_model_is_as_its_metadata_say(bundle_root):
    """Grid, weights and label are those of the released glioma bundle, and they are no demonstration."""
    served = load_models({"models": "tissnet_glioma"})["tissnet_glioma"]
    metadata = ConfigParser.load_config_file(str(bundle_root / "configs" / "metadata_glioma.yaml"))
    assert served.sha256 == metadata["weights_sha256"]["models/model.pt"]
    assert not served.demonstration
    assert served.labels == {"whole tumor": 1} and served.source_modalities == ("T1", "ceT1", "T2")
    assert served.inferer.size == (64, 80, 64)


def test_damaged_glioma_weights_are_refused(bundle_root, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_root / "configs", folder / "configs")
    (folder / "models" / "glioma").mkdir(parents=True)
    (folder / "models" / "glioma" / "model.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="tissnet_glioma: .* the file is damaged"):
        load_models({"models": "tissnet_glioma", "bundle": str(folder)})


def test_another_networks_weights_are_refused(bundle_root, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not hold the weights"):
        ServedBundle("other", bundle_root, weights=tmp_path / "other.pt")


def test_bundles_of_one_code_are_served_together_and_of_another_not(bundle_root, tmp_path):
    for name in ("same", "other"):
        for part in ("configs", "scripts"):
            shutil.copytree(bundle_root / part, tmp_path / name / part)
        (tmp_path / name / "models").symlink_to(bundle_root / "models")
    assert ServedBundle("same", tmp_path / "same").task == "vs"
    (tmp_path / "other" / "scripts" / "transforms.py").write_text("")
    with pytest.raises(ValueError, match="model other: the code of .* differs .* start a second server"):
        ServedBundle("other", tmp_path / "other")


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"models": "unknown"}, "no model 'unknown'"),
        ({"allow_demo_weights": "perhaps"}, "--conf allow_demo_weights is 'perhaps': expected a valid boolean"),
        ({"alow_demo_weights": "true"}, "--conf alow_demo_weights: there is no such option, expected models, bundle,"),
        ({"device": "cuda:3"}, "--conf device: there is no such option"),
        ({}, "They are not served unless"),
    ],
)
def test_options_of_a_server_that_cannot_be_used(conf, message):
    with pytest.raises(ValueError, match=message):
        load_models(conf)


def test_missing_weights_are_said(bundle_root, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pt"):
        ServedBundle("none", bundle_root, weights=tmp_path / "none.pt")


def test_promoted_weights_are_served_from_the_next_request_on(make_bundle, tmp_path):
    """A damaged file that was promoted does not end the service: it goes on with what it has, the log says so."""
    bundle = make_bundle(fine_tuned=tmp_path / "versions")
    released = bundle.sha256
    better = {"validation": [{"case": "a", "label_sha256": "", "dice_before": 0.1, "dice_after": 0.2}]}
    parent = {"parent": {"version": None, "sha256": released}}
    weights = {key: value + 1 for key, value in torch.load(bundle.weights, weights_only=True).items()}
    torch.save(weights, tmp_path / "trained.pt")
    versions.add(tmp_path / "versions", "tiny", tmp_path / "trained.pt", record=better | parent)
    bundle.refresh()
    assert bundle.sha256 == released
    versions.promote(tmp_path / "versions", "tiny", 1)
    bundle.refresh()
    assert bundle.sha256 == versions.sha256(tmp_path / "trained.pt") and bundle.version.endswith("fine-tuned 1")

    with (tmp_path / "versions" / "tiny" / "1" / "model.pt").open("r+b") as file:
        file.write(b"damaged")
    bundle.refresh()
    assert bundle.sha256 == versions.sha256(tmp_path / "trained.pt")
    with pytest.raises(ValueError, match="changed or damaged; .*roll-back"):
        make_bundle(fine_tuned=tmp_path / "versions")
    versions.roll_back(tmp_path / "versions", "tiny")
    bundle.refresh()
    assert bundle.sha256 == released and "fine-tuned" not in bundle.version


def test_fine_tuned_weights_of_an_older_release_are_not_served(make_bundle, tmp_path, scan):
    record = {
        "validation": [{"case": "a", "label_sha256": "", "dice_before": 0.1, "dice_after": 0.2}],
        "parent": {"version": None, "sha256": "older"},
        "released_sha256": "older",
        "bundle_version": "0.1.0",
    }
    torch.save({}, tmp_path / "trained.pt")
    versions.add(tmp_path / "versions", "tiny", tmp_path / "trained.pt", record=record)
    versions.promote(tmp_path / "versions", "tiny", 1)
    bundle = make_bundle(fine_tuned=tmp_path / "versions")
    assert bundle.sha256 == bundle.released_sha256
    notes = TISSNetInferTask(bundle).answer([scan], {}, case="x").params["notes"]
    assert any("fine-tuned version 1 was promoted, and is not used" in note and "0.1.0" in note for note in notes)


def test_demonstration_weights_say_so_and_have_their_localizer(bundle_root, make_bundle):
    task = TISSNetInferTask(ServedBundle("tissnet_vs", bundle_root))
    assert task.bundle.demonstration
    assert DEMONSTRATION in task.info()["description"]
    assert task.bundle.localizer == bundle_root / "models" / "localizer" / "localizer.pt"
    assert make_bundle().localizer is None


# --- Which files make a case


class Store:
    """The part of MONAI Label's data store that is asked here."""

    def __init__(self, *ids):
        self.ids = ids

    def list_images(self):
        return list(self.ids)

    def get_image_uri(self, image_id):
        return f"/store/{image_id}.nii.gz"


GLIOMA_STORE = Store("a b [1]_T1", "a b [1]_ceT1", "a b [1]_T2", "lone_T2", "plain")
SOURCES = ("T1", "ceT1", "T2")


def test_names_are_split():
    assert case_of("a b [1]_ceT1") == ("a b [1]", "ceT1")
    assert case_of("a_b") == ("a_b", None)
    assert case_of("_T2") == case_of("T2") == ("", "T2")
    assert case_of("sub-01_ce-gadolinium_T1w") == ("sub-01", "ceT1")
    assert case_of("p1_flair") == ("p1", "FLAIR") and case_of("p1_seg") == ("p1_seg", None)


@pytest.mark.parametrize("opened", ["a b [1]_T1", "a b [1]_ceT1", "a b [1]_T2"])
def test_siblings_come_in_the_models_order(opened):
    files = source_files(GLIOMA_STORE, opened, SOURCES)
    assert [file.name for file in files] == [f"a b [1]_{m}.nii.gz" for m in SOURCES]


def test_a_plain_image_is_a_case_of_a_task_with_one_source():
    assert source_files(GLIOMA_STORE, "plain", ("T2",)) == [Path("/store/plain.nii.gz")]
    assert start_image(GLIOMA_STORE, "plain", ("T2",)) == "plain"
    assert start_image(GLIOMA_STORE, "plain", SOURCES) is None
    assert start_image(GLIOMA_STORE, "a b [1]_T1", SOURCES) == "a b [1]_T2"
    assert siblings(GLIOMA_STORE, "lone_T2") == {"T2": "lone_T2"}


@pytest.mark.parametrize(
    ("image", "sources", "error", "message"),
    [
        ("nobody", ("T2",), NotFound, "no image 'nobody'"),
        ("../../etc/passwd", ("T2",), NotFound, "no image"),
        ("lone_T2", SOURCES, InputError, "no T1 and no ceT1.*upload lone_T1, lone_ceT1"),
        ("plain", SOURCES, InputError, "does not say which it is"),
        (
            "a b [1]_T1",
            ("T2",),
            InputError,
            "is T1 by its name, this model starts from T2: .* save it under a name that says so, such as NAME_T2",
        ),
    ],
)
def test_cases_that_cannot_be_asked(image, sources, error, message):
    with pytest.raises(error, match=message):
        source_files(GLIOMA_STORE, image, sources)


def test_glioma_scans_on_different_grids_are_refused(make_bundle, tmp_path):
    bundle = make_bundle(KNOWN + GLIOMA)
    assert bundle.labels == {"whole tumor": 1}
    files = [tmp_path / f"g_{m}.nii.gz" for m in SOURCES]
    for file, orientation, height in zip(files, ("RAS", "RAS", "LPS"), (300, 400, 500), strict=True):
        nib.save(make_scan(orientation, height=height), file)
    with pytest.raises(InputError, match="is not on the grid of"):
        TISSNetInferTask(bundle).answer(files, {}, case="g")
    nib.save(make_scan("RAS"), files[2])
    assert TISSNetInferTask(bundle).answer(files, {}, case="g").params["volume_mm3"] > 0


@pytest.mark.parametrize("name", ["sub-01_T1w", "p1_t1ce", "p1_flair", "sub-01_desc-brain_mask", "p1_0000"])
def test_a_scan_that_is_called_otherwise_is_refused(make_bundle, tmp_path, name):
    file = tmp_path / f"{name}.nii.gz"
    nib.save(make_scan("RAS"), file)
    with pytest.raises(
        InputError, match=f"{name}.* is .* by its name, this model starts from T2: .* save it under a name"
    ):
        TISSNetInferTask(make_bundle(KNOWN)).answer([file], {}, case=name)


def test_one_scan_for_two_modalities_is_refused(make_bundle, tmp_path):
    files = [tmp_path / f"g_{m}.nii.gz" for m in SOURCES]
    for file in files:
        nib.save(make_scan("RAS"), file)
    with pytest.raises(InputError, match="g_T1.nii.gz and g_ceT1.nii.gz have the same voxels"):
        TISSNetInferTask(make_bundle(KNOWN + GLIOMA)).answer(files, {}, case="g")
