"""Publishing a bundle: what MONAI sends to the Hugging Face Hub and reads back, what it makes of an archive over HTTP.

The hub is a stand-in on this machine that answers the calls which `huggingface_hub` makes. RELEASING.md tells
maintainers what these tests show.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import monai.bundle
import pytest
import torch
import yaml
from monai.apps.utils import HashCheckError

BUNDLE = Path(__file__).parents[1] / "bundle"
NAME = "tissnet_vestibular_schwannoma"
REPO = f"owner/{NAME}"
VERSION = json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
POLL_SECONDS = 0.02


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """A web server on this machine; gives its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def files_of(folder: Path) -> dict[str, bytes]:
    """Content by path below a folder, without what huggingface_hub notes of its downloads."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix(): (folder / name).read_bytes() for name in names if name.parts[0] != ".cache"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A small bundle as an archive unpacks to: the configs, documents and license, and weights of a few numbers."""
    folder = tmp_path / "unpacked" / NAME
    for name in ("configs", "docs"):
        shutil.copytree(BUNDLE / name, folder / name, ignore=shutil.ignore_patterns("*.png"))
    shutil.copy(BUNDLE / "LICENSE", folder)
    (folder / "models").mkdir()
    torch.save({"weight": torch.arange(64.0)}, folder / "models" / "model.pt")
    return folder


class Hub(BaseHTTPRequestHandler):
    """The Hugging Face Hub, as far as one upload, its tags and a download ask; keeps everything in `state`."""

    protocol_version = "HTTP/1.1"
    state: dict[str, Any]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        for call in (self.write, self.read):
            reply = call(path, body)
            if reply is not None:
                break
        status, content = (404, {}) if reply is None else reply
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if isinstance(content, bytes):  # a file
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", path.split("/resolve/")[1].split("/")[0])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = answer

    def write(self, path: str, body: bytes) -> tuple[int, Any] | None:
        address, state = f"http://{self.headers['Host']}/{REPO}", self.state
        if path == "/api/repos/create":
            state["created"] = json.loads(body)
            return 200, {"url": address}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == f"/api/models/{REPO}/preupload/main":
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if path == f"/api/models/{REPO}/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            added = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
            commit = f"{len(state['commits']) + 1:040x}"
            state["commits"][commit] = {name: base64.b64decode(content) for name, content in added.items()}
            state["token"] = self.headers["Authorization"]
            return 200, {"commitUrl": f"{address}/commit/{commit}", "commitOid": commit, "success": True}
        if path == f"/api/models/{REPO}/tag/main":
            tag = json.loads(body)["tag"]
            if tag in state["tags"]:
                return 409, {"error": "Tag reference exists already"}
            state["tags"][tag] = list(state["commits"])[-1]
            return 200, {}
        return None

    def read(self, path: str, body: bytes) -> tuple[int, Any] | None:
        commits, tags = self.state["commits"], self.state["tags"]
        before, _, revision = path.partition("/revision/")
        if before == f"/api/models/{REPO}" and revision in tags:
            return 200, {"id": REPO, "sha": tags[revision], "siblings": []}
        if path == f"/api/models/{REPO}/refs":
            named = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit} for tag, commit in tags.items()]
            return 200, {"branches": [], "converts": [], "tags": named}
        before, _, commit = path.partition("/tree/")
        if before == f"/api/models/{REPO}" and commit in commits:
            files = commits[commit].items()
            return 200, [{"type": "file", "path": name, "size": len(c), "oid": "0" * 40} for name, c in files]
        before, _, after = path.partition("/resolve/")
        commit, _, name = after.partition("/")
        if before == f"/{REPO}" and name in commits.get(commit, {}):
            return 200, commits[commit][name]
        return None

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What a stand-in for the hub holds; `huggingface_hub` asks it, as with HF_ENDPOINT in the environment."""
    state: dict[str, Any] = {"commits": {}, "tags": {}}
    with serving(type("ThisHub", (Hub,), {"state": state})) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_token_of_the_test")
        yield state


def push(bundle: Path, **options: Any) -> None:
    monai.bundle.push_to_hf_hub(repo=REPO, name=NAME, bundle_dir=str(bundle.parent), **options)


def test_the_hub_gets_the_folder_and_a_tag(bundle: Path, hub: dict[str, Any]) -> None:
    before = files_of(bundle)
    push(bundle, private=False, version=VERSION)
    assert hub["created"] == {"name": NAME, "organization": "owner", "visibility": "public"}
    assert hub["token"] == "Bearer hf_token_of_the_test"
    (commit,) = hub["commits"]
    assert hub["tags"] == {VERSION: commit}
    uploaded = hub["commits"][commit]
    card = uploaded.pop("README.md").decode()
    assert uploaded == before
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "tags": ["monai", "medical"],
        "library_name": "monai",
        "license": "apache-2.0",
    }
    assert card.endswith(before["docs/README.md"].decode())


def test_private_unless_said_otherwise(bundle: Path, hub: dict[str, Any]) -> None:
    push(bundle)
    assert hub["created"]["visibility"] == "private"
    assert hub["tags"] == {}


def test_everything_in_the_folder_goes_up(bundle: Path, hub: dict[str, Any]) -> None:
    """Why RELEASING.md has an unpacked archive pushed, and never a working copy."""
    (bundle / "data").mkdir()
    (bundle / "data" / "patient.nii.gz").write_bytes(b"voxels")
    push(bundle)
    (uploaded,) = hub["commits"].values()
    assert "data/patient.nii.gz" in uploaded


def test_a_tag_stays_where_it_is(bundle: Path, hub: dict[str, Any]) -> None:
    push(bundle, version=VERSION, tag_as_latest_version=True)
    (bundle / "models" / "model.pt").write_bytes(b"other weights")
    push(bundle, version=VERSION, tag_as_latest_version=True)
    first, _ = hub["commits"]
    assert hub["tags"] == {VERSION: first, "latest_version": first}


@pytest.mark.parametrize("version", [VERSION, None])
def test_the_hub_gives_it_back(version: str | None, bundle: Path, hub: dict[str, Any], tmp_path: Path) -> None:
    push(bundle, version=VERSION)
    monai.bundle.download(
        name=NAME, version=version, source="huggingface_hub", repo=REPO, bundle_dir=str(tmp_path / "got")
    )
    assert files_of(tmp_path / "got" / NAME) == files_of(bundle)


@pytest.fixture
def archive(bundle: Path, tmp_path: Path) -> Path:
    """The bundle as a release has it: NAME_vVERSION.zip with all below NAME/, in a folder to be served."""
    file = tmp_path / "served" / f"{NAME}_v{VERSION}.zip"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in files_of(bundle).items():
            packed.writestr(f"{NAME}/{name}", content)
    return file


@pytest.fixture
def address(archive: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with serving(partial(Quiet, directory=str(archive.parent))) as root:
        yield f"{root}/{archive.name}"


def fetch(address: str, folder: Path) -> None:
    monai.bundle.download(name=NAME, url=address, bundle_dir=str(folder), progress=False)


def test_an_archive_over_http_is_the_bundle(bundle: Path, address: str, tmp_path: Path) -> None:
    fetch(address, tmp_path / "got")
    assert files_of(tmp_path / "got" / NAME) == files_of(bundle)


def test_a_release_of_github_is_found_by_name_and_version(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def elsewhere(url: str, **options: Any) -> None:
        asked.append(url)
        original(url=address, **options)

    original = monai.bundle.scripts.download_url
    monkeypatch.setattr(monai.bundle.scripts, "download_url", elsewhere)
    monai.bundle.download(
        name=NAME, version=VERSION, source="github", repo=f"OWNER/REPO/v{VERSION}", bundle_dir=str(tmp_path / "got")
    )
    assert asked == [f"https://github.com/OWNER/REPO/releases/download/v{VERSION}/{NAME}_v{VERSION}.zip"]
    assert (tmp_path / "got" / NAME / "models" / "model.pt").is_file()


def test_a_flipped_byte_stops_the_first_try_only(bundle: Path, archive: Path, address: str, tmp_path: Path) -> None:
    """The second finds a folder that is not empty and believes it: only the .sha256 tells."""
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as packed:
        weights = packed.getinfo(f"{NAME}/models/model.pt")
    content[weights.header_offset + weights.file_size // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match=r"Bad CRC-32 for file '.*/models/model.pt'"):
        fetch(address, tmp_path / "got")
    fetch(address, tmp_path / "got")
    got = tmp_path / "got" / NAME / "models" / "model.pt"
    assert got.read_bytes() != (bundle / "models" / "model.pt").read_bytes()


def test_an_archive_that_was_packed_anew_is_believed(bundle: Path, archive: Path, address: str, tmp_path: Path) -> None:
    """Whoever changes weights and packs them again passes: MONAI compares with nothing."""
    (bundle / "models" / "model.pt").write_bytes(b"other weights")
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in files_of(bundle).items():
            packed.writestr(f"{NAME}/{name}", content)
    fetch(address, tmp_path / "got")
    assert (tmp_path / "got" / NAME / "models" / "model.pt").read_bytes() == b"other weights"


def test_an_older_version_stays(bundle: Path, archive: Path, address: str, tmp_path: Path) -> None:
    fetch(address, tmp_path / "got")
    archive.write_bytes(b"a newer version")
    fetch(address, tmp_path / "got")
    assert files_of(tmp_path / "got" / NAME) == files_of(bundle)


@pytest.mark.parametrize("tampered", [False, True])
def test_large_files_are_fetched_and_compared(tampered: bool, bundle: Path, archive: Path, address: str) -> None:
    """The model zoo's large_files.yml, as the release tool writes it."""
    weights = bundle / "models" / "model.pt"
    asset = archive.with_name(f"{archive.stem}_model.pt")
    asset.write_bytes(weights.read_bytes())
    entry = {
        "path": "models/model.pt",
        "url": f"{address.rpartition('/')[0]}/{asset.name}",
        "hash_val": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }
    (bundle / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
    content = weights.read_bytes()
    weights.unlink()
    if tampered:
        asset.write_bytes(content[:-1] + b"?")
        with pytest.raises(HashCheckError, match="sha256 hash check of downloaded file failed"):
            monai.bundle.download_large_files(bundle_path=str(bundle))
        assert not weights.exists()
    else:
        monai.bundle.download_large_files(bundle_path=str(bundle))
        assert weights.read_bytes() == content
