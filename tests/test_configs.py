"""Tests of bundle/configs: every file resolves and instantiates, and says the same as its neighbors and the code."""

from __future__ import annotations

import copy
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from documents import Document, config_files
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor

from scripts.networks.discriminator import PatchDiscriminator3d
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import FEATURES, UNet2d5
from scripts.training.methods.segmentation import SegmentationMethod
from scripts.training.methods.tissnet import TISSNetMethod

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
JSONS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.json"))
METADATA = "metadata.json"
METADATA_GLIOMA = "metadata_glioma.yaml"  # no config: scripts.release lays it over metadata.json
YAMLS = sorted({path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")} - {METADATA_GLIOMA})
DEBUG = "debug.yaml"
PROCESSES = "multi_gpu_train.json"
PAPER = "paper.yaml"


def read(name: str) -> dict[str, Any]:
    """A config file as MONAI reads it."""
    return ConfigParser.load_config_file(str(CONFIGS / name))


def commands(name: str) -> list[list[str]]:
    """The commands in a file's own head, split into words; `torchrun --nproc_per_node=2 -m` counts as `python -m`."""
    found = Document(f"bundle/configs/{name}").commands
    return [shlex.split(re.sub(r"torchrun \S+ -m ", "python -m ", command)) for command in found]


def stacks(name: str) -> list[tuple[str, list[str]]]:
    """(entry, config files below configs/) of every `monai.bundle run` in a file's own header."""
    return [
        (command[4] if not command[4].startswith("-") else "run", [f.removeprefix("configs/") for f in files])
        for command in commands(name)
        if command[2] == "monai.bundle"
        for files in [config_files(command)]
    ]


def overrides_of(name: str) -> dict[str, Any]:
    """A YAML file's content."""
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8")) or {}


def without_descriptions(value: Any) -> Any:
    """A config without its comments."""
    if isinstance(value, dict):
        return {key: without_descriptions(item) for key, item in value.items() if key != "_desc_"}
    return [without_descriptions(item) for item in value] if isinstance(value, list) else value


def defaults(function: Callable) -> dict[str, Any]:
    """The default values of a callable's arguments."""
    signature = inspect.signature(function)
    return {n: p.default for n, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}


# What only inference, evaluation and the localizer's training have.
LOCALIZER = {key for key in read("evaluate.json") if key.startswith("localize")}

# Every stack of files that a header documents; those for evaluation and inference are below.
DOCUMENTED = sorted({(entry, tuple(files)) for name in JSONS + YAMLS for entry, files in stacks(name)})


def test_every_file_is_in_a_documented_stack() -> None:
    known = {name for _, files in DOCUMENTED for name in files}
    assert known == {*JSONS, *YAMLS} - {METADATA}


@pytest.mark.parametrize("name", [name for name in JSONS + YAMLS if name != METADATA])
def test_a_file_starts_with_its_own_command(name: str) -> None:
    assert name in YAMLS or next(iter(read(name))) == "_desc_"
    assert any(name in files for _, files in stacks(name)), f"no command in the head of {name} names {name}"


@pytest.mark.parametrize("name", JSONS + YAMLS)
def test_commands_name_existing_files_in_the_documented_order(name: str) -> None:
    for command in commands(name):
        assert command[0:2] == ["python", "-m"]
        if command[2].startswith("scripts."):
            assert (ROOT / "bundle" / command[2].replace(".", "/")).with_suffix(".py").is_file()
            continue
        assert command[2:4] == ["monai.bundle", "run"]
        files = config_files(command)
        for file in files:
            assert (ROOT / "bundle" / file).is_file(), f"{name}: no {file}"
        assert files[0] in ("configs/train.json", "configs/inference.json")
        assert f"configs/{PAPER}" not in files[2:], "what is behind train.json changes it"
        kinds = [Path(file).suffix for file in files if file != f"configs/{PAPER}"]
        assert kinds == sorted(kinds), "JSON before the overrides"


@pytest.mark.parametrize("name", YAMLS + ["pretrain.json", "localize.json", "evaluate.json", PROCESSES])
def test_overrides_change_only_what_the_base_has(name: str) -> None:
    """A misspelled key is accepted in silence by MONAI, and the run goes on with the base's value."""
    introduced = {
        "evaluate.json": {"protocol", "crop_size", "section", "checkpoint_path", "evaluate", "evaluating"}
        | {"flips", "ensemble", "most_candidates", "smallest_mm3"}
        | LOCALIZER,
        "localize.json": LOCALIZER,
        "pretrain.json": set(),
        PROCESSES: {"minutes_to_wait", "finalize", "validate#sampler"},
    }
    evaluate = read("evaluate.json")
    base = ConfigParser({**read("train.json"), **{key: evaluate[key] for key in ("crop_size", *LOCALIZER)}})
    for key in read(name):
        if key == "_desc_" or key in introduced.get(name, ()):
            continue
        top, *nested = key.removeprefix("+").split("#")
        assert top in base, f"{name}: {key}, but train.json and evaluate.json have no {top}"
        # Below `_target_` a key is an argument, and instantiation refuses a wrong one; elsewhere it must exist.
        parent = "#".join([top, *nested[:-1]])
        if nested and "_target_" not in base[parent]:
            assert key.removeprefix("+") in base, f"{name}: {key} is not in train.json"


@pytest.mark.parametrize("name", JSONS + YAMLS)
def test_no_override_addresses_a_list_by_index(name: str) -> None:
    """Else an entry that is inserted in train.json moves the override to another one."""
    assert not [key for key in read(name) if re.search(r"#-?\d+(#|$)", key)]


def test_training_handlers_are_a_plain_list_of_dictionaries() -> None:
    """MONAI Label's own training asks every entry for its `_target_`."""
    assert all(handler["_target_"] for handler in read("train.json")["train"]["handlers"])


def test_an_evaluation_without_checkpoint_is_of_the_network_as_initialized(
    open_workflow: Callable[..., ConfigWorkflow], data: dict[str, Path], tmp_path: Path
) -> None:
    loaders = []
    for more in ({}, {"checkpoint_path": "$None"}):
        given = {"dataset_dir": str(data["vs"]), "run_dir": str(tmp_path), "cache_rate": 0.0, "S_p#weight": 0.0, **more}
        parser = open_workflow(["train.json", "evaluate.json", DEBUG], given).parser
        handlers = parser.get_parsed_content("evaluate#handlers")
        loaders.append([type(handler).__name__ for handler in handlers])
    assert loaders == [["WeightsLoader", "EvaluationHandler"], ["EvaluationHandler"]]


def test_python_defaults_are_those_of_train_json() -> None:
    train = ConfigParser(read("train.json"))
    assert list(FEATURES) == train["features"] == list(defaults(UNet2d5.__init__)["features"])
    assert defaults(TISSNet.__init__)["in_channels"] == train["source_channels"]
    assert defaults(UNet2d5.__init__)["in_channels"] == train["perceptor_def#in_channels"]
    discriminator = defaults(PatchDiscriminator3d.__init__)
    assert discriminator["features"] == train["discriminator_features"]
    assert discriminator["in_channels"] == train["source_channels"] + 1
    options = defaults(TISSNetMethod.__init__)
    for name in ("cross_entropy", "detach_coarse", "error_loss", "error_target"):
        assert options[name] == train[name] and train[f"method#{name}"] == f"@{name}", name
    assert defaults(SegmentationMethod.__init__)["cross_entropy"] == train["cross_entropy"]


def test_the_perceptor_is_trained_as_it_is_loaded() -> None:
    assert read("pretrain.json")["network_def"] == read("train.json")["perceptor_def"]


def test_train_and_inference_share_network_and_preprocessing() -> None:
    train, inference = (without_descriptions(read(name)) for name in ("train.json", "inference.json"))
    network = {key: value for key, value in train["network_def"].items() if key != "dropout"}  # of training alone
    assert network == inference["network_def"]
    shared = ("pixdim", "patch_size", "overlap", "source_channels", "features", "planar_levels", "task")
    for key in (*shared, "upsample", "attention", "engine", "precision"):
        assert train[key] == inference[key], key
    windows = ("roi_size", "overlap", "engine", "precision")
    assert {k: train["validate"]["inferer"][k] for k in windows} == {k: inference["inferer"][k] for k in windows}

    def on_image_alone(transforms: list[dict]) -> list[dict]:
        """Transforms of several keys, as they treat `image`."""
        reduced = []
        for transform in transforms:
            index = transform["keys"].index("image")
            assert transform.pop("allow_missing_keys") == "$not @require_target"  # the others than image
            assert transform.pop("labels", "label") == "label"
            of_image = {k: v[index] if k == "mode" and isinstance(v, list) else v for k, v in transform.items()}
            reduced.append(of_image | {"keys": "image"})
        return reduced

    files = ("DeleteItemsd", "scripts.transforms.FindSiblingsd", "CopyItemsd")
    own = [t for t in inference["preprocessing"]["transforms"] if t["_target_"] not in files]
    assert own == on_image_alone(train["train"]["deterministic_transforms"])


def test_evaluation_localizes_as_inference_does_with_the_localizer_that_was_trained() -> None:
    evaluate, inference, localize = (
        without_descriptions(read(name)) for name in ("evaluate.json", "inference.json", "localize.json")
    )
    own = {"perceptor": "@S_p"}
    without = {"compile", "threshold"}  # an evaluation measures at 0.5, the inferer's default
    assert evaluate["validate#inferer"] == {k: v for k, v in inference["inferer"].items() if k not in without} | own
    shared = [key for key in inference if key.startswith("localize") and key != "localizer_path"]
    for key in [*shared, "most_candidates", "flips", "ensemble"]:
        assert evaluate[key] == inference[key], key
    for key in ("localizer_pooling", "localizer_patch_size", "localizer_features"):
        assert localize[key] == inference[key], key
    assert localize["network_def"] == inference["localizer_def"]


@pytest.mark.parametrize(("name", "parent"), [("inference.json", None), ("evaluate.json", "evaluate")])
def test_parts_of_a_mask_are_removed_by_their_volume(name: str, parent: str | None) -> None:
    """A part of 27 and one of 18 voxels of 1 mm3: the smaller one goes, and with smallest_mm3 0 neither."""
    config = read(name)
    transforms = (config[parent] if parent else config)["postprocessing"]["transforms"]
    (found,) = [t for t in transforms if t["_target_"] == "RemoveSmallObjectsd"]
    assert config["smallest_mm3"] == read("inference.json")["smallest_mm3"]
    mask = torch.zeros(1, 12, 12, 12)
    mask[0, 1:4, 1:4, 1:4] = 1
    mask[0, 7:10, 7:10, 7:9] = 1
    for smallest, expected in ((config["smallest_mm3"], 27), (0.0, 45)):
        remove = ConfigParser({"remove": found, "smallest_mm3": smallest}).get_parsed_content("remove")
        assert int(remove({"pred": MetaTensor(mask.clone(), affine=torch.eye(4))})["pred"].sum()) == expected


def open_documented(
    open_workflow: Callable[..., ConfigWorkflow], data: dict[str, Path], folder: Path, files: list[str]
) -> ConfigWorkflow:
    """A stack of files on phantoms, with small networks behind it, and untrained weights where some are asked for."""
    infer = files[0] == "inference.json"
    content = ConfigParser.load_config_files([str(CONFIGS / name) for name in files])
    task = content["task"]
    weights = folder / "perceptor.pt"
    small = overrides_of(DEBUG)["features"]
    same = {key: content[key] for key in ("planar_levels", "upsample", "attention")}
    perceptor = UNet2d5(1, features=small, **same)
    torch.save(perceptor.state_dict(), weights)
    overrides: dict[str, Any] = {
        "dataset_dir": str(data[task]),
        "output_dir" if infer else "run_dir": str(folder / "out"),
        "device": "$torch.device('cpu')",
    }
    if not infer:
        overrides |= {"perceptor_path": str(weights), "cache_rate": 0.0}
    return open_workflow([*files, DEBUG], overrides, kind="infer" if infer else "train")


@pytest.fixture(scope="module")
def data(vs_data: Path, glioma_data: Path, surrogate_data: Path) -> dict[str, Path]:
    """Phantoms by task."""
    return {"vs": vs_data, "glioma": glioma_data, "surrogate_t2_cet1": surrogate_data}


INFERENCE_STACKS = [
    ("run", ("inference.json", *files))
    for files in (
        ("glioma.yaml",),
        ("surrogate_t2_cet1.yaml",),
        ("paper_size.yaml",),
        ("experiments/phantom_demo.yaml",),
    )
]
EVALUATION_STACKS = sorted(
    {
        ("evaluating", ("train.json", "evaluate.json", *files[1:]))
        for _, files in DOCUMENTED
        if files[0] == "train.json" and not {"evaluate.json", PROCESSES} & set(files)
    }
)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torchrun tells a process that has no others, on CPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("files", [["train.json"], ["train.json", "pretrain.json"]], ids=len)
def test_the_first_of_several_processes_logs_and_draws(files: list[str]) -> None:
    """By one key, wherever the handlers stand in their lists; all others run everywhere."""
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / name) for name in files]))
    disabled = [
        (part, handler["_target_"])
        for part in ("train", "validate")
        for handler in parser[f"{part}#handlers"]
        if isinstance(handler, dict) and handler.get("_disabled_") == "$not @first_process"
    ]
    assert disabled == [
        *(("train", name) for name in ("StatsHandler", "TensorBoardStatsHandler")),
        *(
            ("validate", name)
            for name in ("StatsHandler", "TensorBoardStatsHandler", "scripts.evaluation.handlers.PreviewHandler")
        ),
    ]
    assert parser["first_process"] is True
    assert read(PROCESSES)["first_process"] == "$torch.distributed.get_rank() == 0"
    assert not [key for key in read(PROCESSES) if "handlers" in key]


@pytest.mark.parametrize(
    ("entry", "files"),
    sorted({*DOCUMENTED, *INFERENCE_STACKS, *EVALUATION_STACKS}),
    ids=lambda value: value if isinstance(value, str) else "+".join(Path(name).stem for name in value),
)
def test_every_stack_instantiates(
    entry: str,
    files: tuple[str, ...],
    open_workflow: Callable[..., ConfigWorkflow],
    data: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if PROCESSES in files:
        request.getfixturevalue("one_process")
    workflow = open_documented(open_workflow, data, tmp_path, list(files))
    if PROCESSES not in files:
        workflow.initialize()  # a second time; processes are started once
    assert entry in workflow.parser
    if files[0] == "inference.json":
        assert len(workflow.parser.get_parsed_content("dataset")) > 0
        assert workflow.check_properties() == []
        workflow.parser.get_parsed_content("evaluator")
        return
    assert workflow.check_properties() == []
    trainer = workflow.parser.get_parsed_content("train#trainer")
    assert len(trainer.method.generator_parameters()) > 0
    channels = len(data_sources(workflow))
    assert workflow.parser.get_parsed_content("source_channels") == channels
    if "evaluate.json" in files:
        evaluator = workflow.parser.get_parsed_content("evaluate#evaluator")
        assert evaluator.inferer is workflow.parser.get_parsed_content("validate#inferer")


def test_training_does_not_write_into_the_cached_scans(
    open_workflow: Callable[..., ConfigWorkflow], vs_data: Path, tmp_path: Path
) -> None:
    """Samples are cropped from the cache itself: nothing in it changes, and they are those of a copied cache."""
    given = {"dataset_dir": str(vs_data), "run_dir": str(tmp_path / "run"), "patch_size": [16, 16, 8]}
    dataset, copied = (
        open_workflow(["train.json"], {**given, "train#dataset#copy_cache": copying}).parser.get_parsed_content(
            "train#dataset"
        )
        for copying in (False, True)
    )
    before = copy.deepcopy(dataset._cache)
    for epoch in range(4):
        for index in range(len(dataset)):
            (sample,), (expected,) = dataset[epoch, index], copied[epoch, index]
            assert sample.keys() == expected.keys()
            assert all(torch.equal(sample[key], expected[key]) for key in ("image", "target", "label"))
    for now, then in zip(dataset._cache, before, strict=True):
        assert now.keys() == then.keys()
        assert all(torch.equal(now[key], then[key]) for key in ("image", "target", "label"))


def data_sources(workflow: ConfigWorkflow) -> list[str]:
    """The source files of the first training case."""
    return workflow.parser.get_parsed_content("train#dataset#data")[0]["image"]


def test_canonical_ids_are_all_there(open_workflow: Callable[..., ConfigWorkflow], data: dict, tmp_path: Path) -> None:
    """Also the optional ones: check_properties only reports what is required."""
    train = open_documented(open_workflow, data, tmp_path, ["train.json"])
    train.initialize()
    infer = open_documented(open_workflow, data, tmp_path, ["inference.json"])
    infer.initialize()
    for workflow in (train, infer):
        assert workflow.check_properties() == []
    for name in ("train_handlers", "train_preprocessing", "train_dataset_data", "evaluator", "val_handlers"):
        assert getattr(train, name) is not None, name
    for name in ("preprocessing", "postprocessing", "handlers", "inferer", "dataset_data", "network_def"):
        assert getattr(infer, name) is not None, name


def test_check_properties_can_fail(open_workflow: Callable[..., ConfigWorkflow], vs_data: Path) -> None:
    workflow = open_workflow(["inference.json"], {"dataset_dir": str(vs_data)}, kind="infer")
    del workflow.parser.config["network_def"]
    workflow.initialize()
    with pytest.raises(ValueError, match="network_def"):
        workflow.check_properties()


def test_paper_size_has_the_published_number_of_parameters(open_workflow: Callable[..., ConfigWorkflow]) -> None:
    workflow = open_workflow(["train.json", "paper_size.yaml"])
    networks = [workflow.parser.get_parsed_content(name) for name in ("network_def", "D_g", "D_t")]
    assert networks[1] is not networks[2]
    assert (
        sum(p.numel() for network in networks for p in network.parameters()) == 126_918_076
    )  # in METHOD's reading of 126.96 M


def test_paper_yaml_has_the_papers_values() -> None:
    """Section 4.1 and equations 1 to 11; what they leave open (betas, flips) is in docs/method.md."""
    paper = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / name) for name in ("train.json", PAPER)]))
    assert paper["weights"] == {
        **{"l1_global": 50.0, "l1_tumor": 200.0, "adversarial_global": 1.0, "adversarial_tumor": 1.0},
        **{"perceptibility": 25.0, "coarse": 1.0, "segmentor": 25.0, "fine": 1.0, "error": 1.0, "consistency": 1.0},
    }
    formulas = {"cross_entropy": 0.0, "detach_coarse": False, "error_loss": "dice", "error_target": "hard"}
    assert {name: paper[name] for name in formulas} == formulas
    assert (paper["epochs"], paper["batch_size"], paper["learning_rate"]) == (250, 2, 1e-4)
    for optimizer in ("optimizer_g", "optimizer_d"):
        assert paper[f"{optimizer}#_target_"] == "torch.optim.Adam" and paper[f"{optimizer}#betas"] == [0.5, 0.999]
    for scheduler in ("scheduler_g", "scheduler_d"):
        assert paper[f"{scheduler}#_target_"] == "scripts.training.schedule.two_phase_schedule"
    assert [step["_target_"] for step in paper["train#augmentation"]] == ["RandFlipd", "RandFlipd"]


def test_metadata_names_the_pinned_monai_label() -> None:
    """The other versions, and the changelogs, are checked at a release."""
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    assert read(METADATA)["supported_apps"] == {"monai-label": pins["monailabel"]}


def test_metadata_holds_no_path_and_no_hyperparameter() -> None:
    own = set(read("train.json")) & set(read(METADATA)) - {"task"}
    assert own == set()
