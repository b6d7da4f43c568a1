"""Runs a real Orthanc with its DICOMweb plugin for the tests and benchmarks, in a folder and on a port of its own.

On Debian: `apt-get install orthanc orthanc-dicomweb`. Only the server; what is sent and asked is the caller's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from running import free_port

_PLUGIN = "libOrthancDicomWeb.so"
_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
_START_SECONDS = 30


def orthanc_missing() -> str:
    """What keeps Orthanc from running here, and what to do; "" if nothing does."""
    missing = [name for name, found in (("Orthanc", _binary()), ("its DICOMweb plugin", _plugin())) if found is None]
    if not missing:
        return ""
    return f"{' and '.join(missing)} not found: apt-get install orthanc orthanc-dicomweb"


@contextmanager
def running_orthanc(folder: Path) -> Iterator[str]:
    """Orthanc with its storage and log in a folder; gives its address, below which `/dicom-web` is.

    Raises:
        RuntimeError: it is not installed, or does not start.
    """
    if reason := orthanc_missing():
        raise RuntimeError(reason)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = {
        "Name": "made",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(_plugin())],
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    address = f"http://127.0.0.1:{port}"
    with (folder / "orthanc.log").open("w") as log:
        server = subprocess.Popen([str(_binary()), str(path)], stdout=log, stderr=log)
    try:
        _wait(server, address, folder / "orthanc.log")
        yield address
    finally:
        server.terminate()
        server.wait(_START_SECONDS)


def _wait(server: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/dicom-web/studies", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"Orthanc does not start: {log.read_text(encoding='utf-8', errors='replace')[-1500:]}")


def _binary() -> str | None:
    """The server, which Debian calls Orthanc, in sbin."""
    return (
        shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin") or shutil.which("orthanc")
    )


def _plugin() -> Path | None:
    return next((path for folder in _PLUGIN_FOLDERS if (path := Path(folder) / _PLUGIN).is_file()), None)
