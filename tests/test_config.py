"""Tests of scripts.config: what is refused and how, that no documented command is, config.yaml.

Nothing is trained here; commands are read as a process's arguments, and one real process shows what a user sees.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import yaml
from documents import config_files, documents
from monai.bundle import ConfigWorkflow
from warm import Warm

from scripts.config import Command, check, merged, problems, read_command, record
from scripts.demo import commands as demo_commands

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"
MAIN = str(Path(monai.bundle.__file__).parent / "__main__.py")  # sys.argv[0] under `python -m monai.bundle`

TRAIN = "run training --config_file configs/train.json"
EVALUATE = "run evaluating --config_file \"['configs/train.json','configs/evaluate.json']\""
INFER = "run --config_file configs/inference.json --dataset_dir SCANS"

# (command, content of a file of overrides behind its files or "", what is said)
# Where a key's parent is missing, no dictionary or too short a list, a run ends earlier, with MONAI's own error.
MISSPELLED: list[tuple[str, str, str]] = [
    (f"{TRAIN} --epcohs 5", "", "command line: there is no epcohs; did you mean epochs?"),
    (f"{TRAIN} --datset_dir DIR", "", "there is no datset_dir; did you mean dataset_dir"),
    (f"{TRAIN} --val-intervall=2", "", "there is no val_intervall; did you mean val_interval?"),
    (f"{TRAIN} --learning_rat 1e-3", "", "there is no learning_rat; did you mean learning_rate?"),
    (f"{TRAIN} --max_epochs 3", "", "there is no max_epochs; did you mean epochs or train#trainer#max_epochs"),
    (f"{TRAIN} --lr 1e-3", "", "there is no lr; did you mean optimizer_g#lr or optimizer_d#lr?"),
    (f"{TRAIN} --no-resume", "", "there is no _resume; did you mean resume"),
    (
        f"{TRAIN} --protocol full_scan",
        "",
        "configs/evaluate.json has protocol, but this command does not name that file.",
    ),
    (f"{INFER} --patch_sise '[64,64,16]'", "", "there is no patch_sise; did you mean patch_size or"),
    (f"{EVALUATE} --protocl paper_crop", "", "there is no protocl; did you mean protocol?"),
    (f"{TRAIN} --weights#l1_globl 3", "", "there is no weights#l1_globl; did you mean weights#l1_global?"),
    (f"{TRAIN} --train#trainer#max_epoch 2", "", "no train#trainer#max_epoch; did you mean train#trainer#max_epochs?"),
    (f"{TRAIN} --train#dataloader#batch_sise 2", "", "did you mean train#dataloader#batch_size"),
    (f"{TRAIN} --validate#inferer#overlp 0.5", "", "did you mean validate#inferer#overlap?"),
    (TRAIN, "epoch: 3", "mine.yaml: there is no epoch; did you mean epochs?"),
    (TRAIN, "weights#consistncy: 0.0", "mine.yaml: there is no weights#consistncy; did you mean weights#consistency?"),
    (TRAIN, "+weights: {l1_tumour: 9.0}", "there is no weights#l1_tumour; did you mean weights#l1_tumor"),
    (TRAIN, "weights: {l1_globl: 1.0, fine: 2.0}", "there is no weights#l1_globl; did you mean weights#l1_global?"),
    (TRAIN, "optimizer_g#weight_decya: 0.1", "did you mean optimizer_g#weight_decay"),
    (TRAIN, "train#dataloder: {_target_: DataLoader}", "there is no train#dataloder; did you mean train#dataloader"),
    (TRAIN, "train#handlers#2#_disable_: true", "did you mean train#handlers#2#_disabled_?"),
    (
        TRAIN,
        "optimizer_g: {_target_: torch.optim.SGD, params: '@x', momentm: 0.9}",
        "did you mean optimizer_g#momentum?",
    ),
]

MISTYPED: list[tuple[str, str, str]] = [
    (f"{TRAIN} --epochs 2.5", "", "command line: epochs is 2.5, expected a whole number like 250."),
    (f"{TRAIN} --patch_size 128,128,16.5", "", "patch_size#2 is 16.5, expected a whole number like 128."),
    (
        "run training --config_file configs/train.json configs/glioma.yaml",
        "",
        "no file has an entry 'configs/glioma.yaml' to run. Several files are one list: --config_file",
    ),
    (f"{TRAIN} --init_id initalize", "", "command line: no file has an entry 'initalize' to run."),
    (TRAIN, "learning_rate: 2e-4", "learning_rate is the text '2e-4', expected a number: write 2.0e-4, without"),
    (TRAIN, "learning_rate: 1.5e3", "learning_rate is the text '1.5e3', expected a number: write 1.5e+3,"),
    (TRAIN, "epochs: '5'", "epochs is the text '5', expected a number: write 5, without quotes."),
    (TRAIN, "weights#fine: 1e-3", "weights#fine is the text '1e-3', expected a number: write 1.0e-3"),
    (TRAIN, "optimizer_g#lr: 2e-4", "optimizer_g#lr is the text '2e-4', expected a number: write 2.0e-4"),
    (TRAIN, "optimizer_g#weight_decay: 1e-5", "weight_decay is the text '1e-5', expected a number: write 1.0e-5"),
    (TRAIN, "pixdim: [0.5, 0.5, 15e-1]", "pixdim#2 is the text '15e-1', expected a number: write 15.0e-1"),
    (TRAIN, "network_def#dropout: [0, 0, 0, 0, 5e-1]", "network_def#dropout#4 is the text '5e-1', expected a number"),
    (f"{TRAIN} --resume true", "", "resume is the text 'true': write True on the command line, true without quotes"),
    (f"{TRAIN} --amp false", "", "amp is the text 'false': write False on the command line"),
    (TRAIN, "resume: 1", "resume is the number 1, expected a truth value like False."),
    (f"{TRAIN} --epochs", "", "True, expected a number like 250. A key without a value is True."),
    (TRAIN, "epochs:", "epochs is the null None, expected a number like 250."),
    (TRAIN, "epochs: many", "epochs is the text 'many', expected a number like 250."),
    (f"{TRAIN} --patch_size 64,64", "", "patch_size has 2 numbers, expected 3 like [128, 128, 16]: x, y, z."),
    (f"{TRAIN} --patch_size 32", "", "patch_size is the number 32, expected a list like [128, 128, 16]."),
    (TRAIN, "inputs: image", "inputs is the text 'image', expected a list like ['image']."),
    (TRAIN, "network_def: {dropout: [0]}", "component like scripts.networks.tissnet.TISSNet. To set one argument, "),
    (TRAIN, "weights: 3", "weights is the number 3, expected a dictionary like {'l1_global': 50.0"),
]  # fmt: skip

RIGHT: list[tuple[str, str]] = [
    (f"{EVALUATE} --checkpoint_path '$None'", ""),
    (f"{TRAIN} --epochs 2 --learning_rate 2e-4 --pixdim 1,1,1 --resume", ""),
    (f"{TRAIN} --noresume --amp False --device \"$torch.device('cpu')\"", ""),
    (f"{TRAIN} --epochs @val_interval --my_key 3 --seed @my_key", ""),
    (f"{TRAIN} --tracking mlflow --experiment_name mine --tracking_uri sqlite:///x.db", ""),
    (f"{TRAIN} --workflow_type train --logging_file configs/logging.conf --meta_file configs/metadata.json", ""),
    (
        f"{TRAIN} --network_def#planar_levels 3 --train#dataloader#pin_memory True --validate#inferer#sw_batch_size 4",
        "",
    ),
    (f"{TRAIN} --train::trainer::max_epochs 3", "train#handlers#-1#_disabled_: true"),
    (f"{TRAIN} --train#deterministic_transforms#0#keys image --train#padding#0#mode edge", ""),
    (TRAIN, "optimizer_d: null\n+train#handlers: [{_target_: StatsHandler}]\ncrop_size: [-1, -1, 128]"),
    (TRAIN, "validate#key_metric#val_hd95: {_target_: IgniteMetricHandler}\nresume_state#D: '@D_g'"),
    (TRAIN, "weights: {l1: 100.0, adversarial: 1.0}"),
    (TRAIN, "mine: ['$@train#trainer.run()']\ntrain#trainer#_requires_: '@mine'"),
    (INFER, "epochs: 3\nnetwork_def#dropout: [0, 0, 0, 0, 0]"),
    ("run mine --config_file configs/train.json --mine \"['$@train#trainer.run()']\"", ""),
]


@pytest.fixture(autouse=True)
def in_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are given from the bundle's folder."""
    monkeypatch.chdir(BUNDLE)


def read(line: str, override: str = "", folder: Path | None = None) -> Command:
    """A command of the documentation, with a file of overrides behind its configs."""
    argv = shlex.split(line)
    if override:
        assert folder is not None
        (folder / "mine.yaml").write_text(override, encoding="utf-8")
        at = argv.index("--config_file") + 1
        argv[at] = str([*re.findall(r"[\w./]+\.(?:json|yaml)", argv[at]), str(folder / "mine.yaml")])
    command = read_command([MAIN, *argv])
    assert command is not None
    return command


@pytest.mark.parametrize(("line", "override", "said"), MISSPELLED + MISTYPED)
def test_a_wrong_override_is_named(line: str, override: str, said: str, tmp_path: Path) -> None:
    found = list(problems(read(line, override, tmp_path)))
    assert len(found) == 1
    assert said in found[0]
    assert found[0].startswith(f"{tmp_path / 'mine.yaml'}: " if override else "command line: ")


@pytest.mark.parametrize(("line", "override"), RIGHT)
def test_a_right_override_passes(line: str, override: str, tmp_path: Path) -> None:
    assert list(problems(read(line, override, tmp_path))) == []


def documented() -> list[str]:
    """Every `monai.bundle run` of the documents (not of a run's config.yaml) and of the demo, without its python."""
    found = [
        line
        for document in documents()
        for command in document.commands
        for line in re.findall(r"-m monai\.bundle (run .+)", command)
        if all((BUNDLE / file).is_file() for file in config_files(shlex.split(line)))
    ]
    steps = demo_commands(Path("demo"), training=4, epochs=2, pretrain_epochs=2).values()
    found += [shlex.join(step[1:]) for step in steps if step[0] == "monai.bundle"]
    return sorted(set(found))


def test_the_documentation_has_commands() -> None:
    assert len(documented()) > 20
    assert {line.split()[1] for line in documented()} >= {"training", "evaluating", "--config_file"}


@pytest.mark.parametrize("line", documented())
def test_a_documented_command_passes(line: str) -> None:
    assert list(problems(read(line))) == []


@pytest.mark.parametrize(
    "path", sorted({*CONFIGS.rglob("*.yaml")} - {CONFIGS / "metadata_glioma.yaml"}), ids=lambda path: path.stem
)
@pytest.mark.parametrize(
    "before", [["train.json", "evaluate.json"], ["train.json", "pretrain.json"], ["inference.json"]]
)
def test_every_file_of_overrides_fits_every_base(before: list[str], path: Path) -> None:
    files = [*(f"configs/{name}" for name in before), str(path)]
    if path.stem in ("source_only", "upper_bound", "fine_tune", "paper") and before == ["inference.json"]:
        pytest.skip("of training alone")
    assert list(problems(read(f'run --config_file "{files}"'))) == []


def test_all_errors_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [MAIN, *shlex.split(f"{TRAIN} --epcohs 5 --resume true --seed 1")])
    with pytest.raises(ValueError, match="epcohs.*\n.*resume") as raised:
        check()
    assert str(raised.value).count("\n") == 1


@pytest.mark.parametrize("argv", [["pytest", "run"], [MAIN], [MAIN, "ckpt_export", "x"], [""], [MAIN, "run", "--help"]])
def test_another_process_is_left_alone(argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    check()
    record(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_arguments_are_read_as_monai_reads_them(tmp_path: Path) -> None:
    """Files, merges (`+`), an args_file and fire's spellings end in the content that ConfigWorkflow has."""
    (tmp_path / "args.yaml").write_text("epochs: 7\nseed: 3\nconfig_file: configs/train.json\n")
    (tmp_path / "more.yaml").write_text("+weights: {fine: 2.0}\n+initialize: ['$None']\ntrain#dataset#seed: 5\n")
    files = ["configs/train.json", "configs/glioma.yaml", str(tmp_path / "more.yaml")]
    given = f"--args_file {tmp_path / 'args.yaml'} --seed=4 --weights#fine 3 --val-interval 1 --noresume --amp"
    command = read(f'run training --config_file "{files}" {given}')
    expected = ConfigWorkflow(
        files,
        logging_file=False,
        **{"epochs": 7, "seed": 4, "weights#fine": 3, "val_interval": 1, "resume": False, "amp": True},
    ).parser.get()
    assert merged(command) == {key: value for key, value in expected.items() if key != "_meta_"}
    assert command.run_id == "training"


# config.yaml


@pytest.fixture()
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Keeps a command as a training does; returns the files of its run's folder."""

    def run(line: str = TRAIN, **environment: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [MAIN, *shlex.split(line)])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        record(str(tmp_path / "run"))
        return sorted(path.name for path in (tmp_path / "run").glob("*"))

    return run


def test_a_training_leaves_its_config(started: Callable[..., list[str]], tmp_path: Path) -> None:
    line = "run training --config_file \"['configs/train.json','configs/glioma.yaml']\" --epochs 5 --pixdim 1,1,2"
    assert started(line) == ["config.yaml"]
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert text.splitlines()[0].endswith(f": python -m monai.bundle {line}")
    content = yaml.safe_load(text)
    assert (content["task"], content["epochs"], content["pixdim"]) == ("glioma", 5, [1, 1, 2])
    assert content["ckpt_dir"] == "$@run_dir + '/checkpoints'"
    again = read(f"run training --config_file {tmp_path / 'run' / 'config.yaml'} --epochs 6")
    assert merged(again) == {**content, "epochs": 6}
    assert list(problems(again)) == []
    assert len(list(problems(read(f"run --config_file {tmp_path / 'run' / 'config.yaml'} --epcohs 6")))) == 1


def test_the_same_config_is_not_written_twice(started: Callable[..., list[str]], tmp_path: Path) -> None:
    started()
    before = (tmp_path / "run" / "config.yaml").stat().st_mtime_ns
    assert started() == ["config.yaml"]
    assert (tmp_path / "run" / "config.yaml").stat().st_mtime_ns == before


def test_another_config_keeps_the_one_before(
    started: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epochs in (1, 2, 3):
        with caplog.at_level("INFO", logger="scripts.config"):
            started(f"{TRAIN} --epochs {epochs} --resume True")
    files = ("config_1.yaml", "config_2.yaml", "config.yaml")
    assert [yaml.safe_load((tmp_path / "run" / name).read_text())["epochs"] for name in files] == [1, 2, 3]
    assert "now config_2.yaml, in epochs" in caplog.text


def test_only_the_first_process_of_a_training_writes(started: Callable[..., list[str]]) -> None:
    assert started(RANK="1") == []
    assert started(RANK="0") == ["config.yaml"]


# As MONAI runs it.


@pytest.mark.parametrize(
    ("names", "kind"),
    [(["train.json"], "train"), (["train.json", "evaluate.json"], "train"), (["inference.json"], "infer")],
)
def test_a_run_checks_first(
    names: list[str],
    kind: str,
    run_workflow: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    messages_of: Callable[..., str],
) -> None:
    monkeypatch.chdir(BUNDLE)
    files = str([f"configs/{name}" for name in names])
    monkeypatch.setattr(sys, "argv", [MAIN, "run", "--config_file", files, "--tsak", "vs"])
    with pytest.raises(RuntimeError) as raised:
        run_workflow(names, kind=kind)
    assert "command line: there is no tsak; did you mean task?" in messages_of(raised.value)


def test_a_run_that_is_refused_leaves_no_config(
    run_workflow: Callable[..., Any], vs_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another run's last.pt lies in the folder: LastCheckpoint ends the run before its config is written."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    monkeypatch.chdir(BUNDLE)
    monkeypatch.setattr(sys, "argv", [MAIN, *shlex.split(TRAIN)])
    changes = {"dataset_dir": str(vs_data), "run_dir": str(tmp_path), "weights#perceptibility": 0}
    with pytest.raises(RuntimeError):
        run_workflow(["train.json", "debug.yaml"], changes)
    assert not (tmp_path / "config.yaml").exists()


def test_a_process_ends_with_the_message(warm: Warm, tmp_path: Path) -> None:
    given = {"config_file": CONFIGS / "train.json", "bundle_root": BUNDLE, "run_dir": tmp_path / "run", "epcohs": 3}
    command = ["-m", "monai.bundle", "run", *(f"--{name}={value}" for name, value in given.items())]
    assert warm.run(command, tmp_path, tmp_path / "log", 240, {}) != 0
    assert "ValueError: command line: there is no epcohs; did you mean epochs?" in (tmp_path / "log").read_text()
    assert not (tmp_path / "run").exists()
