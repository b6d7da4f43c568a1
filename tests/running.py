"""Servers as processes of their own, for tests: started, waited for, ended with all their children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

UP_SECONDS, END_SECONDS = 120, 20
# For a sitecustomize.py: torchvision's wheel expects CUDA libraries, and MONAI Label's sample apps import it.
TORCHVISION_SHIM = """
import sys, torch
try:
    import torchvision
except RuntimeError:
    lib = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        lib.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[module]
"""


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def running(command: Sequence[str], url: str, log: Path, **options: Any) -> Iterator[psutil.Popen]:
    """A MONAI Label server, from when its /info answers to the end of the block.

    Args:
        command: starts it.
        url: its address.
        log: file of what it prints.
        options: of `subprocess.Popen`.

    Raises:
        RuntimeError: it ended, or did not answer in time; with the end of its log.
    """
    with log.open("w") as out:
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        end = time.monotonic() + UP_SECONDS
        while not _answers(f"{url}/info/"):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield process
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(END_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False
