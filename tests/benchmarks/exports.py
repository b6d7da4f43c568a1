"""Exports a bundle's network as its model card says, and compares every format with PyTorch on one case, in one run.

    python tests/benchmarks/exports.py                          # the demonstration weights, on a phantom
    python tests/benchmarks/exports.py --bundle DIR --image T1.nii.gz ceT1.nii.gz T2.nii.gz --label MASK.nii.gz

MONAI's and OpenVINO's own commands make the files, in the bundle's folder; each is printed before it runs. They hold
`network_def` alone, the logits of y_f: no synthetic scan, no error map. Compared is the mask's probability on the
scan's own grid, with the preprocessing, window and blending of inference.json over the whole foreground; the localizer
and the removal of small parts are left out. Every format runs on every window, beside PyTorch in float32. A format that
disagrees beyond its tolerance, or cannot be made, makes the exit status 1; one that this machine has no library or
device for is told.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Invertd, LoadImage
from torch import Tensor

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
SEED = 90_000  # of the phantom; far from those of any training
PYTORCH = "PyTorch"
# Largest difference of the probability. Other libraries' instance norm is less exact than PyTorch's (at full resolution
# OpenVINO's in float32 by 1e-3, PyTorch's by 1e-6); the network enlarges that most in windows that are mostly air.
SAME_KERNELS, OTHER_KERNELS, LESS_EXACT = 5e-3, 0.02, 0.25
# Smallest Dice of the mask with PyTorch's.
DICE, DICE_16_BITS = 0.999, 0.99


class Format(NamedTuple):
    """A way to run the network: the exported file, what it needs installed, where it runs, how far it may differ."""

    file: str
    packages: tuple[str, ...]
    devices: tuple[str, ...]
    difference: float
    dice: float


ONNX, OPENVINO = ("onnx", "onnxscript", "onnxruntime"), ("onnx", "onnxscript", "openvino")
FORMATS = {
    "TorchScript": Format("model.ts", (), ("cpu", "cuda"), SAME_KERNELS, DICE),
    "ONNX Runtime": Format("model.onnx", ONNX, ("cpu", "cuda"), OTHER_KERNELS, DICE),
    "OpenVINO, float32": Format("model.xml", OPENVINO, ("cpu",), LESS_EXACT, DICE),
    "OpenVINO, its own choice": Format("model.xml", OPENVINO, ("cpu",), LESS_EXACT, DICE_16_BITS),
    "TensorRT, float16": Format("model_trt.ts", ("torch_tensorrt",), ("cuda",), LESS_EXACT, DICE_16_BITS),
}

Forward = Callable[[Tensor], Tensor]


def lacking(name: str, device: torch.device) -> str | None:
    """Why a format cannot be tried on this machine; None if it can."""
    needed = FORMATS[name]
    if device.type not in needed.devices:
        return f"not on {device.type}, only on {needed.devices[0]}"
    missing = [package for package in needed.packages if importlib.util.find_spec(package) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if name == "ONNX Runtime" and device.type == "cuda":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "onnxruntime-gpu not installed"
    return None


def command(file: str, folder: Path, input_shape: Sequence[int]) -> list[str]:
    """What makes one of the files, behind `python -m`."""
    network = ["network_def", "--filepath", str(folder / file), "--ckpt_file", "models/model.pt"]
    network += ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    shape = ["--input_shape", json.dumps(list(input_shape), separators=(",", ":"))]
    return {
        "model.ts": ["monai.bundle", "ckpt_export", *network],
        "model.onnx": ["monai.bundle", "onnx_export", *network, *shape],
        "model.xml": ["openvino.tools.ovc", str(folder / "model.onnx"), "--output_model", str(folder / file)],
        "model_trt.ts": [
            *("monai.bundle", "trt_export", *network, *shape),
            *("--precision", "fp16", "--dynamic_batchsize", "[1,1,1]"),
        ],
    }[file]


def make(file: str, bundle: Path, folder: Path, input_shape: Sequence[int]) -> None:
    """Makes one of the files; RuntimeError, with what its command printed, where that fails."""
    arguments = command(file, folder, input_shape)
    sys.stdout.write(f"python -m {shlex.join(arguments)}\n")
    sys.stdout.flush()
    silent = {**os.environ, "CI": "true"}  # else ovc tells its maker of its use
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *arguments], cwd=bundle, env=silent, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"ended with status {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


def load(name: str, folder: Path, device: torch.device) -> Forward:
    """A format's forward pass, from the file: (1, C, x, y, z) to the logits of y_f, on the device."""
    file = folder / FORMATS[name].file
    if name == "ONNX Runtime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        cuda = [("CUDAExecutionProvider", {"use_tf32": 0})] if device.type == "cuda" else []
        session = onnxruntime.InferenceSession(file, options, providers=[*cuda, "CPUExecutionProvider"])
        given = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {given: x.cpu().numpy()})[0]).to(device)
    if name.startswith("OpenVINO"):
        from scripts.inference.engine import _core  # tells nobody of its use, and is kept to the process's end

        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        if name.endswith("float32"):
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = _core().compile_model(file, "CPU", settings)
        return lambda x: torch.from_numpy(compiled([x.numpy()])[0].copy())
    if name.startswith("TensorRT"):
        import torch_tensorrt  # noqa: F401 (brings the operations that the file holds)
    return torch.jit.load(str(file), map_location=device).eval()


def read_config(bundle: Path) -> ConfigParser:
    """The bundle's inference.json; its `scripts` have to be importable."""
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "inference.json"))
    return config


@torch.no_grad()
def compare(
    config: ConfigParser, runs: Mapping[str, Forward], files: Sequence[Path], device: torch.device
) -> tuple[Tensor, dict[str, list[float]]]:
    """Runs all formats on a case, window by window.

    Returns:
        the mask's probability on the scan's own grid, (formats, X, Y, Z), and every format's seconds, a window each.
    """
    from scripts.inference.regions import foreground_box
    from scripts.networks.unet2d5 import BACKGROUND

    preprocessing = config.get_parsed_content("preprocessing")
    data = preprocessing({"image": [str(file) for file in files]})
    x_s = data["image"].as_tensor()[None].to(device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def window(x: Tensor) -> Tensor:
        results = []
        for name, run in runs.items():
            begin = time.perf_counter()
            results.append(torch.sigmoid(run(x).float()))
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
        return torch.cat(results, dim=1)

    inferer = SlidingWindowInferer(
        config["patch_size"], 1, config["overlap"], mode="gaussian", padding_mode="constant", cval=BACKGROUND
    )
    window(torch.full((1, x_s.shape[1], *config["patch_size"]), BACKGROUND, device=device))  # compiles, allocates
    seconds.update({name: [] for name in runs})
    box = foreground_box(x_s)
    predicted = torch.zeros(len(runs), *x_s.shape[2:])
    predicted[(..., *box)] = inferer(x_s[(..., *box)], window)[0].cpu()  # type: ignore[index]
    data["pred"] = MetaTensor(predicted, meta=data["image"].meta)
    back = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    return back(data)["pred"].as_tensor(), seconds


def dice(a: Tensor, b: Tensor) -> float:
    voxels = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / voxels if voxels else 1.0


def phantom(task: str, bundle: Path, folder: Path) -> tuple[list[Path], Path]:
    made = ["scripts.prepare", "phantom", "--task", task, "--training", "0", "--validation", "0", "--testing", "1"]
    made += ["--seed", str(SEED), "--output", str(folder)]
    subprocess.run([sys.executable, "-W", "ignore", "-m", *made], cwd=bundle, check=True, capture_output=True)
    from scripts.data.datalist import load_datalist

    (entry,) = load_datalist(folder / "datalist.json", "testing")
    return [Path(file) for file in entry["image"]], Path(entry["label"])


def report(
    predicted: Tensor,
    seconds: Mapping[str, Sequence[float]],
    *,
    sizes: Mapping[str, float],
    truth: Tensor | None,
    least: float,
) -> tuple[str, list[str]]:
    """The table, PyTorch first, and what disagrees; a voxel of probability `least` or more is tumor."""
    title = "| format | MB | s a window | to PyTorch | largest difference of probability | Dice with PyTorch's mask |"
    lines = [title + (" Dice with the label |" if truth is not None else "")]
    lines.append("|---" * (title.count("|") - 1 + (truth is not None)) + "|")
    exact = predicted[0]
    wrong = [] if (exact >= least).any() else ["PyTorch's mask is empty: compare on a case with a tumor"]
    for name, found in zip(seconds, predicted, strict=True):
        median = statistics.median(seconds[name])
        difference, agreement = float((found - exact).abs().max()), dice(found >= least, exact >= least)
        row = [name, f"{sizes[name]:.1f}", f"{median:.3f}", f"{median / statistics.median(seconds[PYTORCH]):.2f}"]
        row += [f"{difference:.2g}", f"{agreement:.5f}"]
        if truth is not None:
            row.append(f"{dice(found >= least, truth):.4f}")
        lines.append(f"| {' | '.join(row)} |")
        if name == PYTORCH:
            continue
        allowed = FORMATS[name]
        if not (difference <= allowed.difference and agreement >= allowed.dice):
            wrong.append(
                f"{name}: the probability differs by {difference:.3g} (allowed {allowed.difference}), Dice with "
                f"PyTorch's mask {agreement:.5f} (expected {allowed.dice} or more)"
            )
    return "\n".join(lines), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="a bundle's folder, such as an unpacked release")
    parser.add_argument("--image", type=Path, nargs="+", help="source scans in the task's order; default: a phantom")
    parser.add_argument("--label", type=Path, help="the case's mask; any value above 0 is tumor")
    parser.add_argument("--output", type=Path, help="folder to keep the exported files in")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if missing := [str(file) for file in [*(args.image or ()), args.label] if file and not file.is_file()]:
        parser.error(f"no file {', '.join(missing)}")
    torch.backends.cudnn.allow_tf32 = False  # PyTorch in float32 is the reference
    bundle, device = args.bundle.resolve(), args.device
    sys.path.insert(0, str(bundle))
    config = read_config(bundle)
    from scripts.weights import load_weights

    network = load_weights(config.get_parsed_content("network_def"), path=bundle / "models" / "model.pt")
    runs: dict[str, Forward] = {PYTORCH: network.to(device).eval()}
    sizes = {PYTORCH: (bundle / "models" / "model.pt").stat().st_size / 1e6}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.output or Path(temporary) / "exports").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        made: set[str] = set()
        for name, (file, *_) in FORMATS.items():
            if reason := lacking(name, device):
                sys.stdout.write(f"{name}: left out, {reason}\n")
                continue
            try:
                if file not in made:
                    make(file, bundle, folder, [1, config["source_channels"], *config["patch_size"]])
                made.add(file)
                runs[name] = load(name, folder, device)
            except Exception as error:  # libraries have classes of their own for what they cannot convert or load
                wrong.append(f"{name}: {error}")
                continue
            parts = [folder / file, *([(folder / file).with_suffix(".bin")] if file.endswith(".xml") else [])]
            sizes[name] = sum(part.stat().st_size for part in parts) / 1e6
        files, label = args.image, args.label
        if not files:
            files, label = phantom(config["task"], bundle, Path(temporary) / "data")
        predicted, seconds = compare(config, runs, files, device)
        truth = LoadImage(image_only=True)(label).as_tensor() > 0 if label else None
    table, disagreements = report(predicted, seconds, sizes=sizes, truth=truth, least=config["threshold"])
    hardware = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    sys.stdout.write(
        f"\n{', '.join(file.name for file in files)}: {len(seconds[PYTORCH])} windows of "
        f"{'x'.join(map(str, config['patch_size']))}, {int((predicted[0] >= config['threshold']).sum())} voxels in "
        f"PyTorch's mask; {hardware}, torch {torch.__version__}\n\n{table}\n"
    )
    if wrong + disagreements:
        sys.exit("\n".join(["failed, or disagrees with PyTorch:", *wrong, *disagreements]))


if __name__ == "__main__":
    main()
