"""Where a forward pass runs: PyTorch on any device, or OpenVINO, which is several times quicker on a processor."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import logging
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scripts.compiler import missing_for_compile

logger = logging.getLogger(__name__)

ENGINES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16")


class Engine:
    """Runs modules on tensors, compiled once for every shape of input.

    Args:
        name: "torch"; "openvino", for tensors on a CPU; or "auto", OpenVINO on a CPU where it is installed and can run
            the module, else torch.
        precision: "float32"; "bfloat16"; or "auto", bfloat16 on CUDA and with OpenVINO on processors that compute in
            it, else float32. Results are float32 always.
        compile: whether torch compiles the module (`torch.compile`, with CUDA graphs on a GPU): worth its minute for
            many windows. OpenVINO always compiles.

    Raises:
        ValueError: an unknown name or precision; "openvino" for a tensor that is not on a CPU.
        ImportError: "openvino" is not installed.
    """

    def __init__(self, name: str = "torch", *, precision: str = "auto", compile: bool = False) -> None:
        if name not in ENGINES or precision not in PRECISIONS:
            raise ValueError(f"engine {name!r}, precision {precision!r}: expected one of {ENGINES}, of {PRECISIONS}.")
        self.name = name
        self.precision = precision
        self.compile = compile
        self._compiled: dict[nn.Module, dict[tuple[Any, ...], Callable[[Tensor], Tensor]]] = {}
        self._checksums: dict[nn.Module, int] = {}

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Computes module(x), float32, on the device of x; the module is in eval mode and one tensor comes out."""
        runs = self._compiled.setdefault(module, {})
        key = (tuple(x.shape), x.device)
        if key not in runs:
            runs[key] = self._prepare(module, x)
        return runs[key](x)

    def refresh(self, module: nn.Module, device: torch.device) -> None:
        """Drops what was compiled if the module's weights have changed; to be called before a volume, not a window.

        By their content: optimizers with fused kernels write to weights without a trace in tensors' version counters.
        """
        if self.chosen(device)[0] == "openvino":
            checksum = _checksum(module)
            if self._checksums.get(module) != checksum:
                self._compiled.pop(module, None)
            self._checksums[module] = checksum

    def chosen(self, device: torch.device) -> tuple[str, str]:
        """The engine and precision, "auto" resolved, for tensors on a device."""
        on_cpu = device.type == "cpu"
        name = self.name
        if name == "auto":
            name = "openvino" if on_cpu and _openvino_starts() else "torch"
        if name == "openvino" and not on_cpu:
            raise ValueError(f'engine "openvino" for a tensor on {device}: expected the CPU; use "torch" or "auto".')
        precision = self.precision
        if precision == "auto":
            fast = device.type == "cuda" or (name == "openvino" and _processor_has_bfloat16())
            precision = "bfloat16" if fast else "float32"
        return name, precision

    def _prepare(self, module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        name, precision = self.chosen(x.device)
        logger.info("engine: %s, %s, on %s, windows of %s", name, precision, x.device, "x".join(map(str, x.shape[2:])))
        if name == "torch":
            return self._torch(module, x.device, precision)
        try:
            run = _openvino_stages(module, x) if precision == "bfloat16" else _openvino(module, (x,), "float32")
            return lambda x: run(x).clone()
        except Exception as error:  # OpenVINO has classes of its own for what it cannot convert
            if self.name == "openvino":
                raise
            logger.warning("OpenVINO cannot run this network (%s): going on with torch, slower.", error)
            return self._torch(module, x.device, "float32")

    def _torch(self, module: nn.Module, device: torch.device, precision: str) -> Callable[[Tensor], Tensor]:
        forward: Callable[[Tensor], Tensor] = module
        layout = torch.channels_last_3d if device.type == "cuda" else torch.preserve_format
        if self.compile and (missing := missing_for_compile(device)):
            logger.warning("inference without torch.compile, which needs %s here: slower.", " and ".join(missing))
        elif self.compile:
            forward = torch.compile(module, mode="reduce-overhead", dynamic=False)

        def run(x: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                out = forward(x.to(memory_format=layout)).float()
            return out if forward is module else out.clone()  # the next run overwrites what a CUDA graph gave

        return run


def _openvino(module: nn.Module, examples: Sequence[Tensor], precision: str) -> Callable[..., Tensor]:
    """The module on OpenVINO's CPU device, for inputs of the examples' shapes, with as many threads as torch has.

    Memory is shared, not copied: a result is valid until the next run.
    """
    if importlib.util.find_spec("openvino") is None:
        raise ImportError('engine "openvino": the package openvino is not installed; install it, or use "torch".')
    openvino = _silent_openvino()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # shapes are fixed here: those of the examples
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.freeze(torch.jit.trace(module, tuple(examples), check_trace=False))
        level = logging.getLogger().level
        try:
            model = openvino.convert_model(traced, input=[(list(x.shape), openvino.Type.f32) for x in examples])
        finally:
            logging.getLogger().setLevel(level)  # where it cannot convert a module, it silences everybody's warnings
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = _core().compile_model(model, "CPU", settings)

    def run(*inputs: Tensor) -> Tensor:
        arrays = [x.detach().contiguous().numpy() for x in inputs]
        return torch.from_numpy(compiled(arrays, share_inputs=True, share_outputs=True)[0])

    return run


def _openvino_stages(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The module in bfloat16 on OpenVINO, but for those of its stages that are sensitive; see `stages.Stage`."""
    if not hasattr(module, "stages"):
        return _openvino(module, (x,), "bfloat16")
    stages = module.stages(x)  # type: ignore[operator]
    if not stages:
        logger.info("float32 after all: bfloat16 would cost accuracy, as this network cannot be divided into stages.")
        return _openvino(module, (x,), "float32")
    values, runs = [x], []
    for stage in stages:
        inputs = [values[i] for i in stage.inputs]
        run = _openvino(stage.module.eval(), inputs, "float32" if stage.sensitive else "bfloat16")
        values.append(run(*inputs))
        runs.append(run)

    def run_all(x: Tensor) -> Tensor:
        values = [x]
        for stage, run in zip(stages, runs, strict=True):
            values.append(run(*(values[i] for i in stage.inputs)))
        return values[-1]

    return run_all


def _silent_openvino() -> Any:
    """The package without the one by which it tells its maker of every use, in a process that it forks for it.

    A scan's machine tells nobody anything; and that process, which inherits the training's handlers of signals, does
    not end where there is no network. Without the package openvino uses a stub of its own.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def _core() -> Any:
    """OpenVINO's core, kept to the end of the process, also where this module is unloaded before.

    With the last core its CPU plugin goes, and with that the stack that it has set for signals: the next signal, such
    as a child process's end, then crashes the process.
    """
    core = _silent_openvino().Core()
    atexit.register(lambda: core)
    return core


def _openvino_starts() -> bool:
    """Whether OpenVINO is installed and loads; says so where it is there but broken."""
    if importlib.util.find_spec("openvino") is None:
        return False
    try:
        _core()
    except Exception as error:  # a broken installation fails in many ways
        logger.warning("OpenVINO is installed but does not start (%s): going on with torch, slower.", error)
        return False
    return True


def _processor_has_bfloat16() -> bool:
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _checksum(module: nn.Module) -> int:
    checksum = 0
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        content: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(content, checksum)
    return checksum
