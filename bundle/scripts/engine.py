"""Where a forward pass runs: PyTorch on any device, or OpenVINO, which is several times quicker on a processor.

Windows, blending and what a network's outputs mean do not go here, see `inferer.py`.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

ENGINES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16")


class Engine:
    """Runs modules on tensors, compiled anew only when a module's weights or the input's shape change.

    Args:
        name: "torch"; "openvino", for tensors on a CPU; or "auto", OpenVINO on a CPU where it is installed, else torch.
        precision: "float32"; "bfloat16"; or "auto", bfloat16 on CUDA and with OpenVINO on processors that compute in
            it, else float32. Results are float32 always.
        compile: whether torch compiles the module (`torch.compile`, with CUDA graphs on a GPU): worth its minute for
            many windows.

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
        self._compiled: dict[int, tuple[Any, Callable[[Tensor], Tensor]]] = {}  # by module, the newest only

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Computes module(x), float32, on the device of x; the module is in eval mode and one tensor comes out."""
        # the module itself is kept too, so that its id stays its own
        key = (module, tuple(x.shape), x.device, tuple(map(_state, _tensors(module))))
        known = self._compiled.get(id(module))
        if known is None or known[0] != key:
            known = (key, self._prepare(module, x))
            self._compiled[id(module)] = known
        return known[1](x)

    def chosen(self, device: torch.device) -> tuple[str, str]:
        """The engine and precision, "auto" resolved, for tensors on a device."""
        on_cpu = device.type == "cpu"
        name = self.name
        if name == "auto":
            name = "openvino" if on_cpu and importlib.util.find_spec("openvino") else "torch"
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
            return _openvino_stages(module, x) if precision == "bfloat16" else _openvino(module, (x,), "float32")
        except RuntimeError as error:
            if self.name == "openvino":
                raise
            logger.warning("OpenVINO cannot run this network (%s): going on with torch, slower.", error)
            return self._torch(module, x.device, "float32")

    def _torch(self, module: nn.Module, device: torch.device, precision: str) -> Callable[[Tensor], Tensor]:
        forward: Callable[[Tensor], Tensor] = module
        layout = torch.channels_last_3d if device.type == "cuda" else torch.preserve_format
        if self.compile:
            forward = torch.compile(module, mode="reduce-overhead", dynamic=False)

        def run(x: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                out = forward(x.to(memory_format=layout)).float()
            return out.clone() if self.compile else out  # the next run overwrites what a CUDA graph gave

        return run


def _openvino(module: nn.Module, examples: Sequence[Tensor], precision: str) -> Callable[..., Tensor]:
    """The module on OpenVINO's CPU device, for inputs of the examples' shapes, with as many threads as torch has."""
    if importlib.util.find_spec("openvino") is None:
        raise ImportError('engine "openvino": the package openvino is not installed; install it, or use "torch".')
    import openvino

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # shapes are fixed here: those of the examples
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.freeze(torch.jit.trace(module, tuple(examples), check_trace=False))
        model = openvino.convert_model(traced, input=[(list(x.shape), openvino.Type.f32) for x in examples])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = _core().compile_model(model, "CPU", settings)

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(compiled([x.detach().contiguous().numpy() for x in inputs])[0].copy())

    return run


def _openvino_stages(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The module in bfloat16 on OpenVINO, but for those of its stages that are sensitive; see `outputs.Stage`."""
    stages = module.stages(x) if hasattr(module, "stages") else []  # type: ignore[operator]
    if not stages:
        return _openvino(module, (x,), "bfloat16")
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


@functools.cache
def _core() -> Any:
    """OpenVINO's core, kept to the end of the process, also where this module is unloaded before.

    With the last core its CPU plugin goes, and with that the stack that it has set for signals: the next signal, such
    as a child process's end, then crashes the process.
    """
    import openvino

    core = openvino.Core()
    atexit.register(lambda: core)
    return core


def _processor_has_bfloat16() -> bool:
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _tensors(module: nn.Module) -> itertools.chain[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def _state(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor is replaced or written to; tensors of the inference mode do not count writes."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
