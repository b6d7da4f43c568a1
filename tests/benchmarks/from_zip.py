"""What a reader does with a released archive, from an empty folder: download over HTTP, train, evaluate, infer, MONAI's
checks, and both MONAI Label apps. Prints the whole transcript; exit status 1 if a step fails.

    python tests/benchmarks/from_zip.py --dist dist --work EMPTY_FOLDER --data glioma=FOLDER_OF_BRATS

Run with the python of the environment that is to be tried. Trainings are made small (configs/debug.yaml); the released
weights are evaluated in full.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import http.server
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import requests

sys.path.insert(0, str(Path(__file__).parents[1]))

from running import TORCHVISION_SHIM, free_port, running  # noqa: E402

ROOT = Path(__file__).parents[2]
BUNDLES = {"vs": "tissnet_vestibular_schwannoma", "glioma": "tissnet_glioma"}
SOURCES = {"vs": ("T2",), "glioma": ("T1", "ceT1", "T2")}
LABELS = {"vs": {"vestibular schwannoma": 1}, "glioma": {"whole tumor": 1}}
# Phantoms to train on, and the 30 of docs/results.md.
SMALL = "phantom --task vs --training 4 --validation 1 --testing 0 --seed 0"
TESTED = "phantom --task vs --training 0 --validation 0 --testing 30 --seed 1 --without-tumor 0.334"
DEBUG = "\"['configs/train.json',{}'configs/debug.yaml']\""
LAST_LINES = 6  # of a step's output, in the transcript
LOAD = """
from monai.bundle import create_workflow, load
network = load(name="{name}", bundle_dir="..", version="{version}", workflow_type="inference", source="monaihosting")
print(type(network).__name__, sum(p.numel() for p in network.parameters()), "parameters")
for kind, file in (("train", "train.json"), ("infer", "inference.json")):
    workflow = create_workflow(workflow_type=kind, bundle_root=".", config_file=f"configs/{{file}}",
        meta_file="configs/metadata.json", logging_file="configs/logging.conf", dataset_dir="{data}", perceptor_path=
        "models/perceptor/perceptor.pt", **({{"output_dir": "eval"}} if kind == "infer" else {{}}))
    workflow.initialize()
    print(kind, "properties missing:", workflow.check_properties())
"""


class Transcript:
    """Runs commands one after the other, prints them with the end of their output, and counts failures."""

    def __init__(self) -> None:
        self.failed = 0

    def say(self, text: str, ok: bool = True) -> None:
        """One finding that no command printed."""
        self.failed += not ok
        print(f"  {'ok' if ok else 'FAILED'}: {text}", flush=True)

    def run(self, command: str, folder: Path, *, expected: int = 0, told: str = "") -> None:
        """One command as a reader types it, in this environment; shown is what has `told` in it, or the end."""
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        print(f"\n{folder.name}$ {command}", flush=True)
        started = time.perf_counter()
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        shown = [line for line in (done.stdout + done.stderr).replace("\r", "\n").splitlines() if line.strip()]
        ok = done.returncode == expected
        found = [line for line in shown if told in line] if told else shown
        for line in found[-LAST_LINES:] if ok else shown[-60:]:
            print(f"  | {line[:400]}")
        status = f"exit status {done.returncode}, {time.perf_counter() - started:.0f} s"
        self.say(status, ok and bool(found or not told))


def steps(task: str, version: str, data: Mapping[str, str], patch_size: list[int]) -> Iterator[str]:
    """The commands in the bundle's own folder, in a reader's order; `data` is prepared below data/, by name."""
    for name, source in data.items():
        yield f"python -m scripts.prepare {source} --output data/{name}"
    train = f"--dataset_dir data/{next(iter(data))} --run_dir runs/{{}}"
    test = f"--dataset_dir data/{task} --run_dir runs/released"
    yield (
        "python -m monai.bundle run training --config_file "
        + DEBUG.format("'configs/pretrain.json',")
        + " "
        + (train.format("small_perceptor"))
    )
    yield f"python -m monai.bundle run training --config_file {DEBUG.format('')} {train.format('small')} " + (
        "--perceptor_path runs/small_perceptor/checkpoints/best.pt"
    )
    evaluate = "\"['configs/train.json','configs/evaluate.json']\""
    yield f"python -m monai.bundle run evaluating --config_file {evaluate} {test} " + (
        "--checkpoint_path models/model.pt --perceptor_path models/perceptor/perceptor.pt"
    )
    yield "python -m scripts.report runs/released --output runs/report"
    yield "python -m monai.bundle run --config_file configs/inference.json --dataset_dir scans --output_dir out"
    yield "python -c " + shlex.quote(LOAD.format(name=BUNDLES[task], version=version, data=f"data/{next(iter(data))}"))
    meta, config = "--meta_file configs/metadata.json", "--config_file configs/inference.json"
    yield f"python -m monai.bundle verify_metadata {meta} --filepath eval/schema.json"
    yield f"python -m monai.bundle verify_net_in_out network_def {meta} {config}"
    weights = "--ckpt_file models/model.pt"
    yield f"python -m monai.bundle ckpt_export network_def --filepath models/model.ts {weights} {meta} {config}"
    shape = str([1, len(SOURCES[task]), *patch_size]).replace(" ", "")
    onnx = f'--filepath eval/model.onnx --input_shape "{shape}"'
    yield f"python -m monai.bundle onnx_export network_def {onnx} {weights} {meta} {config}"


def serve_files(folder: Path) -> http.server.ThreadingHTTPServer:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined, method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def scans_of_one_case(folder: Path, task: str) -> list[Path]:
    """The sources of the first test case, copied as a reader's new scans."""
    entry = json.loads((folder / f"data/{task}/datalist.json").read_text())["testing"][0]
    (folder / "scans").mkdir(exist_ok=True)
    return [Path(shutil.copy(folder / f"data/{task}" / name, folder / "scans")) for name in entry["image"]]


def ask(url: str, model: str, image: str, labels: dict, transcript: Transcript) -> np.ndarray | None:
    """The mask that a server gives, on the scan's grid, and whether it names the label right."""
    found = requests.get(f"{url}/info/", timeout=60).json()["models"]
    transcript.say(f"/info names {model} with labels {found[model]['labels']}", found[model]["labels"] == labels)
    options = '{"result_extension": ".nii.gz", "result_dtype": "uint8"}'
    response = requests.post(
        f"{url}/infer/{model}?image={image}&output=image", files={"params": (None, options)}, timeout=600
    )
    transcript.say(f"POST /infer/{model}?image={image}: {response.status_code}", response.status_code == 200)
    if not response.ok:
        print(f"  | {response.text[:500]}")
        return None
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(response.content)).dataobj)


def apps(task: str, bundle: Path, work: Path, transcript: Transcript) -> None:
    """Our app and MONAI Label's stock one serve the downloaded bundle; both masks are those of inference.json."""
    store = bundle / "scans"
    image = f"{next(iter(sorted(store.glob('*_T2.nii.gz')))).name.removesuffix('.nii.gz')}"
    case = image.removesuffix("_T2")
    expected = np.asarray(nib.load(next((bundle / "out").rglob(f"{case}_pred.nii.gz"))).dataobj)
    (work / "shim").mkdir(exist_ok=True)
    (work / "shim/sitecustomize.py").write_text(TORCHVISION_SHIM)
    stock = work / f"app_{task}"
    shutil.copytree(Path(sys.prefix) / "monailabel/sample-apps/monaibundle", stock)
    shutil.unpack_archive(work / f"{bundle.name}.zip", stock / "model")
    for label, arguments, cwd in (
        ("our app", ["monailabel_app", "--models", str(bundle), "--conf", "allow_demo_weights", "true"], ROOT),
        ("monaibundle", ["monailabel.main", "start_server", "--app", str(stock), "--host", "127.0.0.1",
                         "--conf", "models", bundle.name, "--conf", "zoo_source", "local", "--conf", "sam2", "false"],
         work),
    ):  # fmt: skip
        port = free_port()
        command = [sys.executable, "-W", "ignore", "-m", *arguments, "--studies", str(store), "--port", str(port)]
        print(f"\n{cwd.name}$ {shlex.join(['python', *command[1:]])}", flush=True)
        env = os.environ | ({"PYTHONPATH": str(work / "shim")} if label == "monaibundle" else {})
        url = f"http://127.0.0.1:{port}"
        mask = None
        try:
            with running(command, url, work / f"{task}_{label.replace(' ', '_')}.log", cwd=cwd, env=env):
                mask = ask(url, bundle.name, image, LABELS[task], transcript)
        except RuntimeError as error:
            transcript.say(f"{label}: {error}", False)
        if mask is not None:
            same = mask.shape == expected.shape and np.array_equal(mask > 0, expected > 0)
            values = sorted(np.unique(mask).tolist())
            transcript.say(
                f"{label}: the mask of inference.json, voxel for voxel; values {values}", same and max(values) <= 1
            )


def tampered(bundle: Path, archive: Path, work: Path, transcript: Transcript) -> None:
    """One flipped bit in the weights, and one in the archive: who notices, with what message."""
    weights = bundle / "models/model.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    kept = weights.rename(weights.with_suffix(".kept"))
    weights.write_bytes(content)
    command = "python -m monai.bundle run --config_file configs/inference.json --dataset_dir scans --output_dir refused"
    transcript.run(command, bundle, expected=1, told="the file is damaged or was exchanged")
    kept.replace(weights)
    folder = work / "tampered"
    folder.mkdir()
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    (folder / archive.name).write_bytes(content)
    shutil.copy(archive.with_name(f"{archive.name}.sha256"), folder)
    transcript.run(f"sha256sum -c {archive.name}.sha256", folder, expected=1)
    transcript.run(
        f"python -m monai.bundle download --name {bundle.name} --url {(folder / archive.name).as_uri()} --bundle_dir x",
        folder,
        expected=1,
        told="BadZipFile: ",
    )
    shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--work", type=Path, required=True, help="folder that is not there yet")
    parser.add_argument("--data", default="", help="glioma=FOLDER: BraTS as downloaded; without it only vs is tried")
    parser.add_argument("--schema", type=Path, default=ROOT / "tests/fixtures/meta_schema_20240725.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    work, transcript = args.work.resolve(), Transcript()
    real = args.data.removeprefix("glioma=")
    sources = {"vs": {"small": SMALL, "vs": TESTED}}
    if real:
        split = "--split docs/glioma_split.csv"
        sources["glioma"] = {"glioma": f"brats --input {shlex.quote(str(Path(real).resolve()))} --task glioma {split}"}
    server = serve_files(args.dist.resolve())
    for task, data in sources.items():
        (archive,) = args.dist.resolve().glob(f"{BUNDLES[task]}_v*.zip")
        version = archive.stem.rpartition("_v")[2]
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        transcript.run(f"sha256sum -c {archive.name}.sha256", archive.parent)
        name = f"--name {BUNDLES[task]} --version {version}"
        transcript.run(f"python -m monai.bundle download {name} --url {url} --bundle_dir .", work)
        bundle = work / BUNDLES[task]
        got = hashlib.sha256((work / f"{BUNDLES[task]}.zip").read_bytes()).hexdigest()
        transcript.say(f"sha256 of what came: {got}", got in archive.with_name(f"{archive.name}.sha256").read_text())
        patch_size = json.loads((bundle / "configs/inference.json").read_text())["patch_size"]
        for command in steps(task, version, data, patch_size):
            if "inference.json --dataset_dir scans" in command:
                scans_of_one_case(bundle, task)
            if "verify_metadata" in command:  # the schema lies on the internet; one that is there is not downloaded
                (bundle / "eval").mkdir(exist_ok=True)
                shutil.copy(args.schema, bundle / "eval/schema.json")
            transcript.run(command, bundle)
        tampered(bundle, archive, work, transcript)
        apps(task, bundle, work, transcript)  # the last: they write beside the scans
    server.shutdown()
    print(f"\n{transcript.failed} failed")
    return min(transcript.failed, 1)


if __name__ == "__main__":
    sys.exit(main())
