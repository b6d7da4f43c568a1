"""A clinician's minute with OHIF, for real: Orthanc, the server, headless Chromium; screenshots and a table.

    python tests/benchmarks/ohif.py --output DIR [--size small] [--seed 1] [--app monailabel_app]

Sends a phantom (T2 and ceT1) to Orthanc, starts the server on it, opens OHIF's study list, opens the study with the
MONAI Label mode, runs the model on T2 and looks whether its mask is on the screen. Then asks for the same mask as
DICOM-SEG, stores it in Orthanc, reads it back by DICOMweb (the series it refers to, its voxels), and opens it in OHIF,
as well as one without tumor. Ends with 1 if any of it is not so. What the browser asked of the server goes to
DIR/requests.json.

Needs, beside requirements.txt, on Debian: apt-get install orthanc orthanc-dicomweb chromium. Chromium is driven by its
DevTools protocol over aiohttp, which mlflow brings: no driver and no package of its own. OHIF's panel looks for the
server on port 8000, so that port must be free.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import highdicom
import numpy as np
import pydicom
import requests
import SimpleITK as sitk
from dicomweb_client import DICOMwebClient

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bundle"), str(ROOT / "tests"), str(ROOT)]

from made.dicom import MadeSeries, write_series  # noqa: E402
from made.orthanc import orthanc_missing, running_orthanc  # noqa: E402

from monailabel_app.store.dicom_seg import dicom_seg  # noqa: E402
from scripts.data.phantom.make import SIZES, make_phantom  # noqa: E402

PORT = 8000
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WINDOW = (1600, 1000)
START_SECONDS = 120
ANSWER_SECONDS = 300
STEP_SECONDS = 60
SCHWANNOMA = "985004"  # the morphology in SNOMED CT
# Of the viewer's mask and the server's; half a voxel is some 0.2 mm.
MIDDLE_MM = 0.05
# A segment drawn over the scan: its color on the screen is between the segment's and the scan's gray.
FEWEST_PIXELS = 100
COLORED = 40  # levels that a pixel's channels are apart, and gray ones are not

Row = tuple[str, bool, str, float]


def main() -> None:
    """Runs every step, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", default="small", choices=[size for task, size in SIZES if task == "vs"])
    parser.add_argument("--seed", type=int, default=1, help="of the phantom")
    parser.add_argument("--app", type=Path, default=ROOT / "monailabel_app")
    parser.add_argument("--uvicorn-app", default="monailabel_app.web.server:app")
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if missing := [orthanc_missing()] * bool(orthanc_missing()) + ["chromium not found: apt-get install chromium"] * (
        browser is None
    ):
        sys.exit("; ".join(missing))
    arguments.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left
    rows = asyncio.run(_run(arguments, str(browser)))
    print("\n| step | | what was seen | seconds |\n|---|---|---|---|")
    for step, good, seen, seconds in rows:
        print(f"| {step} | {'yes' if good else '**no**'} | {seen} | {seconds:.1f} |")
    sys.exit(0 if rows and all(good for _, good, _, _ in rows) else 1)


async def _run(arguments: argparse.Namespace, browser: str) -> list[Row]:
    """All steps in order; a failed one ends the run, and is the last row."""
    output: Path = arguments.output
    rows: list[Row] = []
    work = Path(tempfile.mkdtemp(prefix="ohif-"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        orthanc = stack.enter_context(running_orthanc(work / "orthanc"))
        series = _make(work / "dicom", arguments.size, arguments.seed)
        dicomweb = f"{orthanc}/dicom-web"
        _send(dicomweb, series)
        server = _start_server(arguments, dicomweb, work, output / "server.log")
        stack.callback(_stop, server)
        page: Page | None = None

        def record() -> None:
            if page is not None:
                (output / "requests.json").write_text(json.dumps(page.requests, indent=1), encoding="utf-8")
                (output / "console.log").write_text("\n".join(page.console), encoding="utf-8")

        stack.callback(record)

        async def step(name: str, do: Callable[[], Awaitable[tuple[bool, str]]]) -> None:
            start = time.monotonic()
            try:
                good, seen = await do()
            except (TimeoutError, RuntimeError, requests.RequestException, aiohttp.ClientError) as error:
                good, seen = False, f"{type(error).__name__}: {error}"
            rows.append((name, good, seen, time.monotonic() - start))
            print(f"{name}: {'yes' if good else 'NO'} {seen}", flush=True)
            if page is not None:
                await page.screenshot(output / f"{len(rows):02d}_{name.replace(' ', '_')}.png")
            if not good:
                raise _Failed

        try:
            await step("server starts", lambda: _server_ready(server))
            page = await stack.enter_async_context(_opened(browser, work / "profile"))
            await step("study list", lambda: _study_list(page))
            await step("viewer opens", lambda: _viewer(page, series["T2"]))
            await step("panel connects", lambda: _panel(page))
            before = await page.colored_pixels()
            await step("run", lambda: _run_model(page))
            await step("mask on screen", lambda: _overlay(page, before))
            await step("mask in its place", lambda: _place(page, series["T2"], output))
            await step("mask as DICOM-SEG", lambda: _segmentation(dicomweb, series["T2"], output))
            for name, empty in (("archived mask opens", False), ("archived mask without tumor opens", True)):
                await step(name, partial(_archived, page, dicomweb, series["T2"], output, empty=empty))
        except _Failed:
            pass
    return rows


class _Failed(Exception):
    """A step did not do what it should."""


def _make(folder: Path, size: str, seed: int) -> dict[str, MadeSeries]:
    """T2 and ceT1 of one phantom as two series of one study, rows from right to left as scanners write them."""
    shape, spacing = SIZES["vs", size]
    phantom = make_phantom(seed, task="vs", shape=shape, spacing=spacing)
    flip, affine = (slice(None, None, -1), slice(None, None, -1)), phantom.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (shape[0] - 1) + affine[:3, 1] * (shape[1] - 1)
    affine[:3, :2] *= -1
    images = {name: np.rint(phantom.images[name]).astype(np.int16)[flip] for name in ("T2", "ceT1")}
    return {
        name: write_series(
            folder / name,
            voxels,
            affine,
            patient="PHANTOM",
            description=name,
            SeriesNumber=number,
            PatientName="Phantom^VS",
        )
        for number, (name, voxels) in enumerate(images.items(), start=1)
    }


def _send(dicomweb: str, series: dict[str, MadeSeries]) -> None:
    client = DICOMwebClient(dicomweb)
    for made in series.values():
        client.store_instances([pydicom.dcmread(path) for path in made.paths])


def _start_server(arguments: argparse.Namespace, dicomweb: str, work: Path, log: Path) -> subprocess.Popen:
    """The command that a hospital types, with a cache of its own."""
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(arguments.app)]
    command += ["--studies", dicomweb, "--host", "127.0.0.1", "--port", str(PORT)]
    command += ["--conf", "models", "tissnet_vs", "--conf", "allow_demo_weights", "true"]
    if arguments.uvicorn_app:
        command += ["--uvicorn_app", arguments.uvicorn_app]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality":"MR"}',
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(work / "cache"),
    }
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _server_ready(server: subprocess.Popen) -> tuple[bool, str]:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            info = await asyncio.to_thread(requests.get, f"http://127.0.0.1:{PORT}/info/", timeout=30)
            if info.ok:
                models = info.json()["models"]
                return "tissnet_vs" in models, f"models {', '.join(models)}"
        except requests.ConnectionError:
            pass
        await asyncio.sleep(0.5)
    return (
        False,
        "no answer: see server.log" if server.poll() is None else f"status {server.returncode}: see server.log",
    )


async def _study_list(page: Page) -> tuple[bool, str]:
    await page.go(f"http://127.0.0.1:{PORT}/ohif/")
    await page.wait("document.body.innerText.includes('Phantom')", "the phantom in the list")
    await page.click(_element("button", "Confirm and Hide"))  # the notice that OHIF is for research
    return True, "the study is listed"


async def _viewer(page: Page, t2: MadeSeries) -> tuple[bool, str]:
    """Opens the study as a user does: the row, then the button of the mode, then the T2 series."""
    await page.click(
        "[...document.querySelectorAll('tr, [data-cy]')].filter(e => e.innerText?.includes('Phantom')).at(-1)"
    )
    mode = "[...document.querySelectorAll('button, a')].find(e => e.innerText?.trim() === 'MONAI Label')"
    await page.wait(f"!!{mode}", "the button of the mode")
    await page.click(mode)
    await page.wait("location.pathname.includes('monai-label')", "the viewer's address")
    await page.wait("document.querySelector('canvas.cornerstone-canvas') !== null", "a drawn slice")
    t2_thumbnail = (
        "[...document.querySelectorAll('[data-cy=\"study-browser-thumbnail\"]')].find(e => e.innerText.includes('T2'))"
    )
    await page.wait(f"!!{t2_thumbnail}", "the thumbnail of T2")
    await page.settle()
    return True, await page.evaluate("document.title + ' ' + location.pathname")


async def _panel(page: Page) -> tuple[bool, str]:
    """The panel says which server it is connected to once it has a list of models."""
    panel = "document.querySelector('#monailabelServerURL')"
    await page.wait(f"!!{panel}", "the MONAI Label panel")
    await page.settle()
    connected = "[...document.querySelectorAll('option')].some(e => e.value === 'tissnet_vs')"
    if not await page.evaluate(connected):
        await page.click(f"{panel}.closest('tr').querySelector('button')")
    await page.wait(connected, "the model in the panel")
    return True, f"server {await page.evaluate(panel + '.value')}"


async def _run_model(page: Page) -> tuple[bool, str]:
    run = "[...document.querySelectorAll('button[title=\"Run Segmentation\"]')].find(e => e.offsetParent !== null)"
    if not await page.evaluate(f"!!{run}"):
        await page.click("document.querySelector('input[name=\"segmentation\"]')")
        await page.wait(f"!!{run}", "the Run button")
    start = time.monotonic()
    await page.click(run)
    end = start + ANSWER_SECONDS
    while time.monotonic() < end:
        answers = [one for one in page.requests if "/infer/" in one["url"] and one.get("status")]
        if answers:
            await page.sent_data()
            return answers[-1]["status"] == 200, f"status {answers[-1]['status']} of {answers[-1]['url']}"
        await asyncio.sleep(0.2)
    return False, "no answer"


async def _overlay(page: Page, before: int) -> tuple[bool, str]:
    """Colored pixels of the canvases, which a gray scan has none of."""
    await page.settle()
    after = await page.colored_pixels()
    return after > before + FEWEST_PIXELS, f"{after} colored pixels, {before} before"


async def _ask(kind: str, t2: MadeSeries, params: dict[str, Any]) -> bytes:
    """The server's answer for the T2 series, without the viewer."""
    address = f"http://127.0.0.1:{PORT}/infer/tissnet_vs?image={t2.series_uid}&output={kind}"
    data = {"params": json.dumps(params)}
    answer = await asyncio.to_thread(requests.post, address, data=data, timeout=ANSWER_SECONDS)
    if not answer.ok:
        raise RuntimeError(f"status {answer.status_code} of output={kind}: {answer.text[:300]}")
    return answer.content


async def _place(page: Page, t2: MadeSeries, output: Path) -> tuple[bool, str]:
    """Compares what the viewer holds with the server's mask: voxels, and the middle of them in the patient."""
    (output / "mask.nrrd").write_bytes(await _ask("image", t2, {"result_extension": ".nrrd"}))
    mask = sitk.ReadImage(str(output / "mask.nrrd"))
    index = np.argwhere(sitk.GetArrayFromImage(mask))[:, ::-1]
    middle = np.array(mask.TransformContinuousIndexToPhysicalPoint(index.mean(0).tolist()))
    count, *shown = await page.evaluate(
        "(() => { const r = cornerstoneTools.segmentation.state.getSegmentation('1').representationData.Labelmap;"
        " const v = cornerstone.cache.getVolume(r.volumeId); const d = v.voxelManager.getCompleteScalarDataArray();"
        " const [X, Y] = v.dimensions; let n = 0, s = [0, 0, 0];"
        " for (let i = 0; i < d.length; i++) if (d[i]) {"
        " n++; s[0] += i % X; s[1] += Math.floor(i / X) % Y; s[2] += Math.floor(i / (X * Y)); }"
        " return [n, ...v.imageData.indexToWorld(s.map(x => x / n))]; })()"
    )
    apart = float(np.linalg.norm(middle - shown))
    return count == len(
        index
    ) and apart < MIDDLE_MM, f"{count} voxels (mask {len(index)}), middles {apart:.3f} mm apart"


async def _segmentation(dicomweb: str, t2: MadeSeries, output: Path) -> tuple[bool, str]:
    """The mask as DICOM-SEG, through Orthanc and back."""
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "mask.nrrd"))) != 0
    (output / "mask.dcm").write_bytes(await _ask("dicom_seg", t2, {"label_info": [{"name": "vestibular schwannoma"}]}))
    sent = pydicom.dcmread(output / "mask.dcm")
    client = DICOMwebClient(dicomweb)
    client.store_instances([sent])
    (back,) = client.retrieve_series(t2.study_uid, str(sent.SeriesInstanceUID))
    back.save_as(output / "mask_back.dcm", write_like_original=False)
    read = highdicom.seg.segread(str(output / "mask_back.dcm"))
    frames = read.get_pixels_by_source_instance(
        t2.sop_uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    referred = str(read.ReferencedSeriesSequence[0].SeriesInstanceUID)
    segment = read.get_segment_description(1)
    code = segment.segmented_property_type.value
    good = referred == t2.series_uid and np.array_equal(frames[..., 0] != 0, mask) and code == SCHWANNOMA
    whose = "of the T2 series" if referred == t2.series_uid else f"of {referred}"
    return good, (
        f"{int(frames.sum())} voxels (mask {int(mask.sum())}) {whose}, {segment.SegmentLabel}: "
        f"{segment.segmented_property_type.meaning} "
        f"{code}, {len(read.PerFrameFunctionalGroupsSequence)} frames"
    )


async def _archived(page: Page, dicomweb: str, t2: MadeSeries, output: Path, *, empty: bool) -> tuple[bool, str]:
    """Opens what is in the archive with OHIF's own viewer, at the middle slice: color only where there is tumor."""
    if empty:
        none = sitk.ReadImage(str(output / "mask.nrrd")) * 0
        sitk.WriteImage(none, str(output / "mask_empty.nrrd"))
        label_info = [{"name": "vestibular schwannoma"}]
        written = dicom_seg(str(t2.paths[0].parent), str(output / "mask_empty.nrrd"), label_info, "none")
        shutil.move(written, output / "mask_empty.dcm")
        DICOMwebClient(dicomweb).store_instances([pydicom.dcmread(output / "mask_empty.dcm")])
    await page.go("about:blank")
    await page.go(f"http://127.0.0.1:{PORT}/ohif/viewer?StudyInstanceUIDs={t2.study_uid}")
    thumbnail = _element('[data-cy^="study-browser-thumbnail"]', "none, no tumor" if empty else "tissnet_vs")
    await page.wait(f"!!{thumbnail}", "the segmentation's thumbnail")
    await page.settle()
    await page.click(thumbnail, times=2)
    load = _element("button", "Yes")
    await page.wait(f"!!{load}", "the question whether to open it")
    await page.click(load)
    state = "cornerstoneTools.segmentation.state.getSegmentations()"
    await page.wait(f"{state}.length > 0", "the segmentation in the viewer")
    await page.settle(3.0)
    await page.scroll("document.querySelector('canvas.cornerstone-canvas')", len(t2.paths) // 2)
    await page.settle(2.0)
    colored = await page.colored_pixels()
    labels = await page.evaluate(f"{state}.flatMap(s => Object.values(s.segments).map(x => x.label)).join(', ')")
    failed = [one for one in page.requests if one.get("status", 200) >= 400 and "/proxy/" in one["url"]]
    good = labels == "vestibular schwannoma" and not failed
    good = good and (colored == 0 if empty else colored > FEWEST_PIXELS)
    return good, f"segment {labels}, {colored} colored pixels, {len(failed)} refused requests"


def _element(selector: str, text: str) -> str:
    """JavaScript for the first element with a text in it."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].find(e => e.innerText?.includes({json.dumps(text)}))"
    )


class Page:
    """One tab of Chromium by its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._next = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._by_id: dict[str, dict[str, Any]] = {}
        self.requests: list[dict[str, Any]] = []
        self.console: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._waiting.pop(data["id"]).set_result(data)
                continue
            method, said = data["method"], data["params"]
            if method == "Network.requestWillBeSent":
                request = said["request"]
                one = {"method": request["method"], "url": request["url"], "data": request.get("postData", "")[:4000]}
                self._by_id[said["requestId"]] = one
                self.requests.append(one)
            elif method == "Network.responseReceived" and said["requestId"] in self._by_id:
                self._by_id[said["requestId"]]["status"] = said["response"]["status"]
            elif method == "Runtime.consoleAPICalled":
                self.console.append(" ".join(str(a.get("value", a.get("description", ""))) for a in said["args"])[:500])
            elif method == "Runtime.exceptionThrown":
                self.console.append(f"EXCEPTION {said['exceptionDetails'].get('exception', {}).get('description')}")

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = future
        await self._socket.send_json({"id": self._next, "method": method, "params": parameters})
        answer = await asyncio.wait_for(future, STEP_SECONDS)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def go(self, address: str) -> None:
        await self.call("Page.navigate", url=address)

    async def evaluate(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    async def wait(self, expression: str, what: str) -> None:
        end = time.monotonic() + STEP_SECONDS
        while time.monotonic() < end:
            try:
                if await self.evaluate(expression):
                    return
            except RuntimeError:  # the page is being replaced
                pass
            await asyncio.sleep(0.2)
        raise TimeoutError(f"{what} did not appear in {STEP_SECONDS} s")

    async def sent_data(self) -> None:
        """Adds what was posted to the models, which the browser does not say of forms by itself."""
        for key, one in self._by_id.items():
            if "/infer/" in one["url"] and not one["data"]:
                one["data"] = (await self.call("Network.getRequestPostData", requestId=key))["postData"][:4000]

    async def settle(self, seconds: float = 1.5) -> None:
        """Waits until nothing was asked of the server for a while."""
        end = time.monotonic() + STEP_SECONDS
        count, since = -1, time.monotonic()
        while time.monotonic() < end and time.monotonic() - since < seconds:
            if len(self.requests) != count:
                count, since = len(self.requests), time.monotonic()
            await asyncio.sleep(0.1)

    async def click(self, element: str, times: int = 1) -> None:
        """Real clicks in the middle of an element, as the mouse does it."""
        place = await self.evaluate(
            f"(() => {{ const e = {element}; if (!e) return null; e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        if place is None:
            raise RuntimeError(f"nothing to click: {element}")
        x, y = place
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count)

    async def scroll(self, element: str, slices: int) -> None:
        """Turns the wheel over an element, slice by slice."""
        x, y = await self.evaluate(
            f"(() => {{ const r = {element}.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for _ in range(slices):
            await self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=120)
            await asyncio.sleep(0.1)

    async def screenshot(self, path: Path) -> None:
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    async def colored_pixels(self) -> int:
        """How many pixels of the drawn slices are colored and not gray."""
        return int(
            await self.evaluate(
                "[...document.querySelectorAll('canvas.cornerstone-canvas')].map(c => {"
                " const o = document.createElement('canvas'); o.width = c.width; o.height = c.height;"
                " const x = o.getContext('2d'); x.drawImage(c, 0, 0);"
                " const d = x.getImageData(0, 0, o.width, o.height).data; let n = 0;"
                " for (let i = 0; i < d.length; i += 4)"
                f" n += Math.max(d[i], d[i+1], d[i+2]) - Math.min(d[i], d[i+1], d[i+2]) > {COLORED};"
                " return n; }).reduce((a, b) => a + b, 0)"
            )
        )


class _opened:
    """A headless Chromium with one tab; WebGL in software."""

    def __init__(self, browser: str, profile: Path) -> None:
        self._browser, self._profile = browser, profile
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Page:
        self._profile.mkdir()
        command = [self._browser, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"]
        command += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={self._profile}", f"--window-size={WINDOW[0]},{WINDOW[1]}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._stack.callback(_stop, process)
        where = self._profile / "DevToolsActivePort"
        end = time.monotonic() + STEP_SECONDS
        while not (where.exists() and len(where.read_text().split()) == 2):
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError("Chromium does not start")
            await asyncio.sleep(0.1)
        port = where.read_text().split()[0]
        session = await self._stack.enter_async_context(aiohttp.ClientSession())
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tab = next(one for one in await answer.json() if one["type"] == "page")
        socket = await self._stack.enter_async_context(session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0))
        page = Page(socket)
        for domain in ("Page", "Runtime", "Network"):
            await page.call(f"{domain}.enable")
        return page

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()


if __name__ == "__main__":
    main()
