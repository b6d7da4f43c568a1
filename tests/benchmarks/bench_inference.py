"""Seconds, memory and agreement of the cascade's forward pass on every engine, interleaved in one run.

    python tests/benchmarks/bench_inference.py [--device cuda] [--features 16 32 64 128 256] [--json FILE]
    python tests/benchmarks/bench_inference.py --planar         # planar convolutions: 3-D against folded 2-D
    python tests/benchmarks/bench_inference.py --whole-scan     # a scan of 512 x 512 x 80: windows everywhere in eager
                                                                # float32 and on the engine, and inference.json's way
    python tests/benchmarks/bench_inference.py --arms "eager float32" "OpenVINO int8"  # by NNCF, only if asked for

The input is a normalized phantom, the weights are the released ones (features 16 to 256; others are random). In the
same run every arm's output is compared with eager float32's; a difference beyond its tolerance is told, and makes the
exit status 1. Peak memory is that of an arm alone, libraries included; on a GPU what torch allocates. An arm that needs
a library that is not installed is left out; one that fails to build is told as failed, unless it is the default.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measured
import numpy as np
import torch
from measured import BUNDLE, FEATURES, child, interleaved, matrix_product, most_allocated_gib, most_resident_gib, timed
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.utils import convert_to_onnx
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scripts.data.phantom.make import make_phantom
from scripts.inference.engine import Engine
from scripts.inference.stages import Outputs
from scripts.networks.tissnet import TISSNet
from scripts.transforms import NormalizeForegroundd
from scripts.weights import load_weights

SPACING = (0.41, 0.41, 1.5)
SEED = 80_000  # far from those of any training
FLOAT32_TOLERANCE = 5e-3  # largest difference of the mask's probability; sums in another order, TensorFloat-32 off
DEFAULT_TOLERANCE = 0.02  # of the path that inference.json takes
BFLOAT16_TOLERANCE = 0.25  # of arms that are bfloat16 throughout: single voxels at a tumor's border
OTHERS = 5  # times as much for the probabilities of the coarse mask and of the error map
DICE_TOLERANCE = 0.001  # of the default path's mask against the truth, whole scan
EAGER, DEFAULT, INT8 = "eager float32", "engine, as inference.json", "OpenVINO int8"
EAGER_SCAN, ENGINE_SCAN, DEFAULT_SCAN = "everywhere, eager float32", "everywhere, engine", "inference.json"
CALIBRATION_WINDOWS = 8
TOLERANCES = {
    EAGER: 0.0,
    "compiled float32": FLOAT32_TOLERANCE,
    "ONNX Runtime float32": FLOAT32_TOLERANCE,
    "OpenVINO float32": FLOAT32_TOLERANCE,
    "OpenVINO bfloat16": DEFAULT_TOLERANCE,
    DEFAULT: DEFAULT_TOLERANCE,
}
PLANAR = (("16 to 16", 1, 16, 16), ("32 to 16", 1, 32, 16), ("16 to 32", 2, 16, 32), ("64 to 32", 2, 64, 32))

Forward = Callable[[Tensor], Tensor]
FAILURES = (RuntimeError, ImportError, OSError, AttributeError, TypeError)  # of an arm that cannot be built or run


def make_module(features: list[int]) -> nn.Module:
    """The cascade in eval mode, with released weights where they fit."""
    torch.manual_seed(0)
    network = TISSNet(1, features=features)
    if features == FEATURES:
        load_weights(network, path=BUNDLE / "models" / "model.pt")
    return Outputs(network).eval()


def make_scan(shape: list[int], *, diameter: float | None = None, seed: int = SEED) -> tuple[Tensor, np.ndarray]:
    """A normalized phantom (1, 1, X, Y, Z) and its truth."""
    case = make_phantom(seed, shape=shape, spacing=SPACING, diameter=diameter)
    image = MetaTensor(torch.from_numpy(case.images["T2"])[None], affine=case.affine)
    return NormalizeForegroundd("image")({"image": image})["image"].as_tensor()[None].float(), case.label > 0


def autocast(module: nn.Module, device: torch.device) -> Forward:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return module(x)

    return run


def build(arm: str, features: list[int], x: Tensor) -> Forward | None:
    """An arm's forward pass for inputs like x; None where its library is not installed."""
    device, module = x.device, make_module(features).to(x.device)
    wide = copy.deepcopy(module).to(memory_format=torch.channels_last_3d)
    if arm == EAGER:
        return module
    if arm == "compiled float32":
        return torch.compile(module, dynamic=False)
    if arm == "bfloat16":
        return autocast(module, device)
    if arm.startswith("bfloat16 channels-last"):
        options = {"mode": "reduce-overhead"} if arm.endswith("CUDA graphs") else {}
        forward = autocast(wide if arm.endswith("last") else torch.compile(wide, dynamic=False, **options), device)
        return lambda x: forward(x.to(memory_format=torch.channels_last_3d))
    if arm == INT8:
        return quantized(module, x)
    if arm == DEFAULT or arm.startswith("OpenVINO"):
        if arm != DEFAULT and importlib.util.find_spec("openvino") is None:
            return None
        engine = Engine("auto") if arm == DEFAULT else Engine("openvino", precision=arm.removeprefix("OpenVINO "))
        return lambda x: engine(module, x)
    if arm == "TensorRT bfloat16":
        if importlib.util.find_spec("torch_tensorrt") is None:
            return None
        import torch_tensorrt

        precisions = {torch.float32, torch.bfloat16}
        return torch_tensorrt.compile(module, ir="dynamo", inputs=[x], enabled_precisions=precisions)
    if arm == "ONNX Runtime float32":
        return onnx_runtime(module, x)
    raise ValueError(f"arm {arm!r}: expected one of {[*arms_of(device), INT8]}")


def quantized(module: nn.Module, x: Tensor) -> Forward | None:
    """The cascade in 8-bit integers by NNCF, calibrated on windows of other phantoms around their tumors."""
    if importlib.util.find_spec("nncf") is None or importlib.util.find_spec("openvino") is None:
        return None
    import nncf
    import openvino

    traced = torch.jit.freeze(torch.jit.trace(module, x, check_trace=False))
    model = openvino.convert_model(traced, input=[(list(x.shape), openvino.Type.f32)])
    shape = list(x.shape[2:])
    windows = [make_scan(shape, seed=SEED + 1 + i)[0].numpy() for i in range(CALIBRATION_WINDOWS)]
    preset = nncf.QuantizationPreset.MIXED
    small = nncf.quantize(model, nncf.Dataset(windows), preset=preset, subset_size=len(windows))
    compiled = openvino.Core().compile_model(small, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda x: torch.from_numpy(compiled([x.numpy()])[0].copy())


def onnx_runtime(module: nn.Module, x: Tensor) -> Forward | None:
    """MONAI's converter to ONNX, as `monai.bundle onnx_export` calls it, run by ONNX Runtime."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return None
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/cascade.onnx"
        convert_to_onnx(module, [x], input_names=["image"], output_names=["pred"], filename=path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = [p for p in onnxruntime.get_available_providers() if not p.startswith("Tensorrt")]
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    return lambda x: torch.from_numpy(session.run(None, {"image": x.cpu().numpy()})[0]).to(x.device)


def arms_of(device: torch.device) -> list[str]:
    on_a_gpu = ["bfloat16 channels-last compiled", "bfloat16 channels-last CUDA graphs", "TensorRT bfloat16"]
    on_a_cpu = ["OpenVINO float32", "OpenVINO bfloat16"]
    more = on_a_gpu if device.type == "cuda" else on_a_cpu
    return [EAGER, "compiled float32", "bfloat16", "bfloat16 channels-last", *more, "ONNX Runtime float32", DEFAULT]


def differences(found: Tensor, exact: Tensor) -> dict[str, float]:
    """The largest difference of each channel: probabilities, and the synthetic image."""
    distance = (found.float().cpu() - exact.cpu()).abs()
    return {name: float(distance[:, i].max()) for i, name in enumerate(("y_f", "x_t_syn", "y_c", "y_e"))}


def forward_passes(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Every arm on every size: agreement, seconds, memory."""
    scan, _ = make_scan(args.crop)
    corner = [(n - w) // 2 for n, w in zip(args.crop, args.window, strict=True)]
    inside = tuple(slice(c, c + w) for c, w in zip(corner, args.window, strict=True))
    inputs = {"window": scan[(..., *inside)].contiguous().to(device), "crop": scan.to(device)}
    found: dict[str, Any] = {}
    wrong: list[str] = []
    product = matrix_product(device, args.matrix)
    for size, x in inputs.items():
        with FlopCounterMode(display=False) as counter:
            exact = make_module(args.features).to(device)(x)
        flop = counter.get_total_flops()
        built: dict[str, Forward] = {}
        rows: dict[str, dict[str, Any]] = {}
        for arm in args.arms or arms_of(device):
            memory = peak_gib(arm, size, args, x)
            try:
                forward = build(arm, args.features, x)
                output = None if forward is None else forward(x).clone()
            except FAILURES as error:
                if arm in (EAGER, DEFAULT):
                    raise
                rows[arm] = {"failed": f"{type(error).__name__}: {error}".split("\n")[0][:200]}
                continue
            if forward is None or output is None:
                continue
            distance = differences(output, exact)
            allowed = TOLERANCES.get(arm, BFLOAT16_TOLERANCE)
            for name, most in {"y_f": allowed, "y_c": OTHERS * allowed, "y_e": OTHERS * allowed}.items():
                if not distance[name] <= most:
                    wrong.append(f"{arm}, {size}: {name} differs by {distance[name]:.3g}, allowed {most:g}")
            built[arm] = forward
            rows[arm] = {"difference": distance, "peak_gib": memory}
        seconds = interleaved({arm: partial(repeat, forward, x) for arm, forward in built.items()}, args, device)
        for arm, values in seconds.items():
            median = statistics.median(values)
            ratio = statistics.median(seconds[EAGER]) / median
            share = flop / median / product
            rows[arm] |= {"seconds": values, "median_seconds": median, "ratio_to_eager": ratio}
            rows[arm] |= {"share_of_matrix_product": share}
        found[size] = {"shape": list(x.shape), "flop": flop, "arms": rows}
        torch._dynamo.reset()
    return {"sizes": found, "matrix_product_flop_per_second": product, "disagreements": wrong}


def peak_gib(arm: str, size: str, args: argparse.Namespace, x: Tensor) -> float:
    """Peak memory of two forward passes of one arm alone, in a process of its own on a CPU."""
    try:
        if x.device.type == "cuda":
            return most_allocated_gib(lambda: run_twice(arm, args.features, x))
        return child("--memory-of", arm, size)
    except (*FAILURES, subprocess.CalledProcessError):  # told where the arm is measured
        return float("nan")


def repeat(work: Callable[..., Any], *given: Any) -> None:
    *inputs, times = given
    for _ in range(times):
        work(*inputs)


def run_twice(arm: str, features: list[int], x: Tensor) -> None:
    """Two forward passes; none where the arm's library is not installed."""
    forward = build(arm, features, x)
    for _ in range(2 if forward is not None else 0):
        forward(x)  # type: ignore[misc]


def table(figures: dict[str, Any]) -> str:
    lines = []
    for size, found in figures["sizes"].items():
        lines += [f"\n{size} {found['shape']}, {found['flop'] / 1e9:.0f} GFLOP; y_f, y_c, y_e: largest difference\n"]
        lines += ["| arm | median s | ratio to eager | peak GiB | share of matrix product | y_f | y_c | y_e |"]
        lines += ["|---" * 8 + "|"]
        for arm, f in found["arms"].items():
            if "failed" in f:
                lines.append(f"| {arm} | failed: {f['failed']} | | | | | | |")
                continue
            errors = [f"{f['difference'][name]:.4f}" for name in ("y_f", "y_c", "y_e")]
            lines.append(
                f"| {arm} | {f['median_seconds']:.4f} | {f['ratio_to_eager']:.2f} | {f['peak_gib']:.2f} "
                f"| {f['share_of_matrix_product']:.1%} "
                f"| {' | '.join(errors)} |"
            )
    return "\n".join(lines)


def planar(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One planar convolution per channel count of the two highest levels: 3 x 3 x 1 in 3-D, and folded into 2-D.

    "folded" turns (B, C, X, Y, Z) into (B * Z, C, X, Y) and back, "kept folded" only convolves.
    """
    rows: dict[str, dict[str, Any]] = {}
    wrong: list[str] = []
    X, Y, Z = args.crop
    factor = args.features[0] / 16
    for dtype in (torch.float32, torch.bfloat16):
        for name, scale, c_in, c_out in PLANAR:
            torch.manual_seed(0)
            c_in, c_out = round(c_in * factor), round(c_out * factor)
            x = torch.randn(1, c_in, X // scale, Y // scale, Z, device=device, dtype=dtype)
            w = torch.randn(c_out, c_in, 3, 3, 1, device=device, dtype=dtype) / (9 * c_in) ** 0.5
            x_last, w_last = (t.to(memory_format=torch.channels_last_3d) for t in (x, w))
            flat, w_flat = fold(x).contiguous(), w[..., 0].contiguous()
            flat_last, w_flat_last = (t.contiguous(memory_format=torch.channels_last) for t in (flat, w_flat))
            arms: dict[str, Callable[[], Tensor]] = {
                "3-D": lambda x=x, w=w: F.conv3d(x, w, padding=(1, 1, 0)),
                "3-D channels-last": lambda x=x_last, w=w_last: F.conv3d(x, w, padding=(1, 1, 0)),
                "folded": lambda x=x, w=w_flat: unfold(F.conv2d(fold(x), w, padding=1)),
                "kept folded": lambda x=flat, w=w_flat: F.conv2d(x, w, padding=1),
                "kept folded channels-last": lambda x=flat_last, w=w_flat_last: F.conv2d(x, w, padding=1),
            }
            exact = F.conv3d(x.float(), w.float(), padding=(1, 1, 0))
            allowed = FLOAT32_TOLERANCE if dtype == torch.float32 else 0.05
            for arm, work in arms.items():
                out = work().float()
                out = unfold(out) if out.dim() == 4 else out
                distance = float((out - exact).abs().max())
                if not distance <= allowed:
                    wrong.append(f"{arm}, {name}, {dtype}: a value differs by {distance:.3g}, allowed {allowed:g}")
            seconds = interleaved({arm: partial(repeat, work) for arm, work in arms.items()}, args, device)
            key = f"{str(dtype).removeprefix('torch.')}, {c_in} to {c_out}, {tuple(x.shape[2:])}"
            rows[key] = {arm: statistics.median(values) for arm, values in seconds.items()}
    return {"planar": rows, "disagreements": wrong}


def fold(x: Tensor) -> Tensor:
    return x.permute(0, 4, 1, 2, 3).flatten(0, 1)


def unfold(x: Tensor) -> Tensor:
    return x[None].permute(0, 2, 3, 4, 1).contiguous()


def planar_table(figures: dict[str, Any]) -> str:
    names = list(next(iter(figures["planar"].values())))
    lines = [f"| ms of one planar convolution | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for key, row in figures["planar"].items():
        lines.append(f"| {key} | {' | '.join(f'{1000 * row[name]:.2f}' for name in names)} |")
    return "\n".join(lines)


def whole_scan(args: argparse.Namespace) -> dict[str, Any]:
    """A whole scan: three arms, each in a process of its own; Dice, largest difference, seconds, peak memory.

    Between eager float32 and the engine, both everywhere, only arithmetic differs; the default also looks elsewhere.
    """
    with tempfile.TemporaryDirectory() as folder:
        child("--scan-part", "make", folder)
        figures = {arm: child("--scan-part", arm, folder) for arm in (EAGER_SCAN, ENGINE_SCAN, DEFAULT_SCAN)}
        truth = np.load(f"{folder}/truth.npy")
        outputs = {arm: np.load(f"{folder}/{arm}.npy") for arm in figures}
    for arm, probability in outputs.items():
        mask = probability > 0.5
        figures[arm]["dice"] = 2 * float((mask & truth).sum()) / max(float(mask.sum() + truth.sum()), 1.0)
    for arm in (ENGINE_SCAN, DEFAULT_SCAN):
        figures[arm]["ratio"] = figures[EAGER_SCAN]["seconds"] / figures[arm]["seconds"]
    difference = float(np.abs(outputs[EAGER_SCAN] - outputs[ENGINE_SCAN]).max())
    figures[ENGINE_SCAN]["difference"] = difference
    wrong: list[str] = []
    if difference > DEFAULT_TOLERANCE:
        wrong.append(f"{ENGINE_SCAN}: y_f differs by {difference:.3g}, allowed {DEFAULT_TOLERANCE:g}")
    if args.features == FEATURES:  # others have random weights: their masks say nothing
        eager, engine, default = (figures[arm]["dice"] for arm in figures)
        if abs(engine - eager) > DICE_TOLERANCE:
            wrong.append(f"{ENGINE_SCAN}: Dice differs by more than {DICE_TOLERANCE}")
        if default < eager - DICE_TOLERANCE:
            wrong.append(f"{DEFAULT_SCAN}: Dice is lower than everywhere by more than {DICE_TOLERANCE}")
    return {"whole_scan": figures, "shape": args.scan, "disagreements": wrong}


def scan_part(what: str, folder: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """A child of `whole_scan`: makes the scan, or runs one arm on it."""
    if what == "make":
        x, truth = make_scan(args.scan)
        np.save(f"{folder}/x_s.npy", x.numpy())
        np.save(f"{folder}/truth.npy", truth)
        return {}
    x = torch.from_numpy(np.load(f"{folder}/x_s.npy")).to(device)
    config = ConfigParser()
    config.read_config(str(BUNDLE / "configs" / "inference.json"))
    config["bundle_root"], config["device"], config["features"] = str(BUNDLE), device, args.features
    config["patch_size"] = args.window
    network = config.get_parsed_content("network").eval()
    if args.features == FEATURES:
        load_weights(network, path=BUNDLE / "models" / "model.pt")
    config["localize"] = what == DEFAULT_SCAN
    if what == EAGER_SCAN:
        config["engine"], config["precision"] = "torch", "float32"
    inferer = config.get_parsed_content("inferer")
    # Once before: the default as a whole, so that the localizer is compiled too; everywhere a window tells enough.
    before = x if what == DEFAULT_SCAN else x[(..., *(slice(n) for n in args.window))]
    outputs: list[Tensor] = []
    with torch.no_grad():
        first = timed(lambda: inferer(before, network), device)
        seconds = timed(lambda: outputs.append(inferer(x, network)[0, 0].cpu()), device)
    np.save(f"{folder}/{what}.npy", outputs[0].numpy())
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else most_resident_gib()
    found: dict[str, Any] = {"seconds": seconds, "peak_gib": memory}
    if what == DEFAULT_SCAN:
        found |= {"seconds_with_compiling": first, "looked_at": inferer.looked_at}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--features", type=int, nargs=5, default=FEATURES)
    parser.add_argument("--window", type=int, nargs=3, default=[128, 128, 16], help="voxels x, y, z")
    parser.add_argument("--crop", type=int, nargs=3, default=[256, 128, 40], help="voxels x, y, z")
    parser.add_argument("--scan", type=int, nargs=3, default=[512, 512, 80], help="voxels x, y, z, of --whole-scan")
    parser.add_argument("--arms", nargs="+", help="default: all of the device; eager float32 is always there")
    parser.add_argument("--turns", type=int, default=5, help="measured turns over all arms")
    parser.add_argument("--warm-up", type=int, default=2, help="turns before")
    parser.add_argument("--block", type=int, help="forward passes of an arm per turn; default 20 on a GPU, 1 on a CPU")
    parser.add_argument("--matrix", type=int, help="rows of the matrix product")
    parser.add_argument("--planar", action="store_true")
    parser.add_argument("--whole-scan", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # a child: one arm alone, on one size
    parser.add_argument("--scan-part", nargs=2, help=argparse.SUPPRESS)  # a child of --whole-scan
    args = parser.parse_args()
    device = torch.device(args.device)
    args.block = args.block or (20 if device.type == "cuda" else 1)
    if args.arms:
        args.arms = [EAGER, *(arm for arm in args.arms if arm != EAGER)]
    torch.backends.cudnn.allow_tf32 = False  # eager float32 is the reference
    if args.scan_part:
        sys.stdout.write(json.dumps(scan_part(*args.scan_part, args, device)) + "\n")
        return
    with torch.no_grad():
        if args.memory_of:
            arm, size = args.memory_of
            x = torch.rand(1, 1, *(args.window if size == "window" else args.crop)) * 2 - 1
            run_twice(arm, args.features, x)
            sys.stdout.write(f"{most_resident_gib()}\n")
            return
        if args.planar:
            figures, text = planar(args, device), planar_table
        elif args.whole_scan:
            figures, text = whole_scan(args), lambda figures: json.dumps(figures, indent=1)
        else:
            figures, text = forward_passes(args, device), table
    measured.tell(args, device, figures, text(figures), reference=EAGER)


if __name__ == "__main__":
    main()
