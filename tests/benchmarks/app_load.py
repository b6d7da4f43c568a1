"""Many clients at once on a real server: is every request answered or told to come again, and does /info stay quick?

    python tests/benchmarks/app_load.py --studies DIR --image ID [--app monailabel_app] [--model tissnet_vs] \
        [--clients 20] [--seconds 120] [--output load.json] [-- --conf models tissnet_vs ...]

Starts the server on a free port, with what follows `--` handed on, and lets the clients ask for inferences; every tenth
request uploads a new image and saves a label (into a copy of the store), while one more client measures /info. A client
that gets 503 waits as long as Retry-After says. Prints a Markdown table and JSON; exits with 1 if a request was
lost or answered with another 5xx.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import requests

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from running import free_port, running  # noqa: E402

ANSWER_SECONDS = 600.0
INFO_PAUSE = 0.25
EVERY = 10  # of a client's requests is no inference
REST_SECONDS = 3.0  # before the memory is read

logger = logging.getLogger("load")


def memory_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1024**2


class Load:
    """The clients and what they saw.

    Args:
        url: of the server.
        args: model, image, seconds.
        scan: file of the image (.nii, .nii.gz), to upload again under other names.
    """

    def __init__(self, url: str, args: argparse.Namespace, scan: Path) -> None:
        self.url, self.args, self.scan = url, args, scan
        image: Any = nib.load(scan)
        self.label = nib.Nifti1Image(np.zeros(image.shape, dtype=np.uint8), image.affine).to_bytes()
        self.end = time.monotonic() + args.seconds
        self.kinds: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.info: list[float] = []
        self.wrong: list[str] = []
        self.lock = threading.Lock()

    def client(self, number: int) -> None:
        """Asks until the time is over; what is asked is waited for."""
        chance, count = random.Random(number), 0
        while time.monotonic() < self.end:
            count += 1
            begin = time.monotonic()
            try:
                answer = self._ask(number, count) if count % EVERY == 0 else self._infer()
            except requests.RequestException as error:
                self._note("lost", f"{type(error).__name__}: {error}")
                continue
            seconds = time.monotonic() - begin
            if answer.status_code == 503 and "retry-after" in answer.headers:
                self._note("503 with Retry-After")
                time.sleep(float(answer.headers["retry-after"]) * chance.uniform(0.5, 1.5))
            elif answer.status_code >= 400:
                kind = "other 5xx" if answer.status_code >= 500 else "4xx"
                self._note(kind, f"{answer.status_code} {answer.text[:200]}")
            else:
                self._note("answered")
                with self.lock:
                    self.seconds.append(seconds)

    def watch(self) -> None:
        """Measures /info while the others ask."""
        while time.monotonic() < self.end:
            begin = time.monotonic()
            try:
                if requests.get(f"{self.url}/info/", timeout=ANSWER_SECONDS).status_code != 200:
                    self._note("other 5xx", "/info")
            except requests.RequestException as error:
                self._note("lost", f"/info {type(error).__name__}")
            self.info.append(time.monotonic() - begin)
            time.sleep(INFO_PAUSE)

    def _infer(self) -> requests.Response:
        params = {"result_extension": ".nrrd", "result_dtype": "uint8"}
        return requests.post(
            f"{self.url}/infer/{self.args.model}",
            params={"image": self.args.image},
            files={"params": (None, json.dumps(params))},
            timeout=ANSWER_SECONDS,
        )

    def _ask(self, number: int, count: int) -> requests.Response:
        name = f"load {number} ({count})"
        with self.scan.open("rb") as file:
            answer = requests.put(
                f"{self.url}/datastore/image",
                params={"image": name},
                files={"file": (self.scan.name, file)},
                timeout=ANSWER_SECONDS,
            )
        if answer.ok:
            answer = requests.put(
                f"{self.url}/datastore/label",
                params={"image": name, "tag": "load"},
                files={"label": ("label.nii", self.label)},
                timeout=ANSWER_SECONDS,
            )
        return answer

    def _note(self, kind: str, text: str = "") -> None:
        with self.lock:
            self.kinds[kind] += 1
            if text:
                self.wrong.append(text)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    studies = folder / "store"
    shutil.copytree(args.studies, studies, ignore=shutil.ignore_patterns("labels", "datastore_v2.json", ".lock"))
    scan = next(path for path in studies.iterdir() if path.name.startswith(f"{args.image}."))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", args.app, "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--uvicorn_app", "monailabel_app.web.server:app"]
    (folder / "tmp").mkdir()
    environment = os.environ | {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "TMPDIR": str(folder / "tmp")}
    begin = time.monotonic()
    with running([*command, *args.further], url, folder / "server.txt", cwd=ROOT, env=environment) as server:
        started = time.monotonic() - begin
        warm = Load(url, args, scan)
        first = warm._infer()
        if not first.ok:
            raise RuntimeError(f"the first inference fails: {first.text}")
        before, files = memory_mb(server), set((folder / "tmp").iterdir())
        load = Load(url, args, scan)
        threads = [threading.Thread(target=load.client, args=(number,)) for number in range(args.clients)]
        threads.append(threading.Thread(target=load.watch))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = load._infer()
        time.sleep(REST_SECONDS)
        after = memory_mb(server)
        left = len(set((folder / "tmp").iterdir()) - files)
    kinds = ("answered", "503 with Retry-After", "other 5xx", "4xx", "lost")
    return {
        "clients": args.clients,
        "seconds": args.seconds,
        "start s": round(started, 1),
        **{kind: load.kinds[kind] for kind in kinds},
        "answer p50 s": quantile(load.seconds, 0.5),
        "answer p99 s": quantile(load.seconds, 0.99),
        "/info p50 s": quantile(load.info, 0.5),
        "/info p99 s": quantile(load.info, 0.99),
        "/info answers": len(load.info),
        "memory before MB": round(before),
        "memory after MB": round(after),
        "temporary files left": left,
        "next good request": last.status_code,
        "wrong": sorted(set(load.wrong))[:10],
    }


def quantile(values: list[float], part: float) -> float | None:
    return round(float(np.quantile(values, part)), 3) if values else None


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--app", default="monailabel_app")
    parser.add_argument("--studies", required=True, help="folder of small scans; it is copied")
    parser.add_argument("--image", required=True, help="id of the image that is asked for")
    parser.add_argument("--model", default="tissnet_vs")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("further", nargs="*", help="after --: handed to the server")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        try:
            result = measure(args, Path(name))
        except RuntimeError:
            logger.info("%s", (Path(name) / "server.txt").read_text()[-3000:])
            raise
    rows = [f"| {key} | {value} |" for key, value in result.items()]
    logger.info("%s", "\n".join(["| | |", "|---|---|", *rows]))
    text = json.dumps(result, indent=2)
    logger.info("\n%s", text)
    if args.output:
        args.output.write_text(text + "\n")
    bad = result["lost"] or result["other 5xx"] or result["4xx"] or result["next good request"] != 200
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
