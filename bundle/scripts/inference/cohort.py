"""Inference on many scans: who does which case, which are complete, which failed, and the tables of them all.

Every case leaves one record, <case>/<case>_result.json, written last and in one step: a case without it has no result,
whatever else lies there. The tables are made from the records.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data import Dataset, list_data_collate
from monai.utils import ensure_tuple

from scripts.data.names import stem_of
from scripts.data.reading import open_volume
from scripts.files import sha256, whole_file

logger = logging.getLogger(__name__)

VOLUME_COLUMNS = (
    *("case", "volume_mm3", "voxels", "removed_mm3", "looked_at", "seconds", "notes"),
    *("pred", "synthetic", "error"),
)
FAILED_COLUMNS = ("case", "files", "error")
METADATA = Path(__file__).parents[2] / "configs" / "metadata.json"

FATAL_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}
SAID = (ValueError, OSError, RuntimeError)  # whose messages are sentences; others are told with their class
NAME_BYTES = 200  # of a case's name, at most: file systems allow 255 for a file's, with what stands behind it
WAIT_SECONDS = 0.2  # between two looks for the end of the other processes
TABLE_SHARE = 0.05  # of a run's time, at most, for keeping the tables up to date


@dataclass(frozen=True)
class Case:
    """One entry of the dataset: its id, source files, place in the dataset, and what keeps it from being read."""

    name: str
    files: tuple[Path, ...]
    index: int
    problem: str | None

    @property
    def folder(self) -> str:
        """Of its results; of a name that is too long for one, where its failure is recorded."""
        name = self.name.encode()
        if len(name) <= NAME_BYTES:
            return self.name
        return f"{name[: NAME_BYTES // 2].decode(errors='ignore')}_{hashlib.sha256(name).hexdigest()[:16]}"


class Cohort:
    """A loader of batches of one case, which divides the cases among processes and keeps the books on them.

    Under torchrun every process takes the next case that none has taken, so each is done once, whatever the speed of
    the processes; no process group is needed. Whatever loading, segmenting or saving a case raises is recorded as its
    failure and the next case follows; only what all cases would meet (`is_fatal`) ends the run.

    Args:
        dataset: of `data.inputs.find_inputs` and the preprocessing; an entry without "case" goes by its file's name.
        output_dir: where records, volumes.csv (complete cases) and failed.csv (only if some failed) are written.
        weights: file, or files (None and lists among them too), whose content the results depend on.
        resume: leave cases as they are that have a result, made from the same scans with the same weights and version
            of this bundle; that settings are the same too is trusted. Otherwise all are done again.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        output_dir: str,
        weights: str | Sequence[str | None | Sequence[str]],
        resume: bool = False,
    ) -> None:
        self.dataset = dataset
        self.output_dir = Path(output_dir)
        self.weights = [Path(path) for item in ensure_tuple(weights) for path in ensure_tuple(item) if path]
        self.resume = resume
        self.cases = [_case_of(entry, index) for index, entry in enumerate(dataset.data)]
        names = [case.name for case in self.cases]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several cases are called {', '.join(doubled)}: expected a name of its own for each.")
        self.made_with: dict[str, Any] = {}  # what results depend on besides the scan
        self.current: Case | None = None
        self.counts = {"done": 0, "complete before": 0, "failed": 0}
        self._inputs: list[dict[str, Any]] = []
        self._begin = self._next_tables = 0.0
        self._position = self._runs = 0
        self._store: Any = None

    def run(self, evaluator: Engine) -> None:
        """Runs the evaluator, whose loader this is, until no case is left, then sums up.

        Raises:
            RuntimeError: cases have no result; in every process.
        """
        self._store = self._open_store()
        taken = 0
        with evaluator.add_event_handler(Events.EXCEPTION_RAISED, self._raised):
            while taken < len(self.cases):
                evaluator.run()  # ends early at a failed case
                taken = int(self._store.add("taken", 0))
        self._end()
        self._store = None

    def __iter__(self) -> Iterator[Any]:
        store = self._store or self._open_store()
        version = json.loads(METADATA.read_text(encoding="utf-8"))["version"]
        self.made_with = {"version": version, "weights": [sha256(path) for path in self.weights]}
        self._same_everywhere(store)
        while (position := int(store.add("taken", 1))) <= len(self.cases):
            self._position, self._begin = position, time.perf_counter()
            self.current = case = self.cases[position - 1]
            try:
                if self._complete(case):
                    self.counts["complete before"] += 1
                    logger.info("%s: complete, left as it is; %d of %d", case.name, position, len(self.cases))
                    continue
                self._forget(case)
                batch = list_data_collate([self.dataset[case.index]])
            except Exception as error:
                self.failed(error)
                continue
            yield batch
        self.current = None

    def done(self, found: str, volumes: Mapping[str, Any], *, files: Mapping[str, Path | None]) -> None:
        """Records the current case as complete; to be called when all its files are written.

        Args:
            found: what was found, in words, for the log.
            volumes: its columns of volumes.csv but for the files.
            files: what was written, by the names of volumes.csv's columns and others.
        """
        case = self._case()
        inside = {key: os.path.relpath(path, self.output_dir.resolve()) for key, path in files.items() if path}
        self._record(case, {"volumes": {**volumes, "case": case.name}, "files": inside})
        self.counts["done"] += 1
        own = f", {self.counts['done']} by this process" if _environment("WORLD_SIZE", 1) > 1 else ""
        logger.info(
            "%s: %s, %s s, with reading and writing %.1f s; %d of %d%s",
            case.name,
            found,
            volumes["seconds"],
            time.perf_counter() - self._begin,
            self._position,
            len(self.cases),
            own,
        )

    def failed(self, error: BaseException) -> None:
        """Records the current case as failed; raises the error if no case is being done, or the run cannot go on."""
        if self.current is None or is_fatal(error):
            raise error
        cause = _cause(error)
        message = str(cause)
        if not message or not isinstance(cause, SAID):
            message = f"{type(cause).__name__}: {message}".removesuffix(": ")
            logger.debug("%s", self.current.name, exc_info=error)
        logger.error("%s failed: %s (%d of %d)", self.current.name, message, self._position, len(self.cases))
        self.counts["failed"] += 1
        self._forget(self.current)
        self._record(self.current, {"error": message})

    def _raised(self, engine: Engine, error: BaseException) -> None:
        self.failed(error)
        engine.state.batch = engine.state.output = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _case(self) -> Case:
        if self.current is None:
            raise RuntimeError("no case is being done: iterate over the cohort first.")
        return self.current

    def _open_store(self) -> Any:
        """Counters that the processes of this run share."""
        self._runs += 1
        if _environment("WORLD_SIZE", 1) == 1:
            return dist.HashStore()
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise ValueError(
                f"found WORLD_SIZE {os.environ['WORLD_SIZE']} in the environment of a process that torchrun did not "
                "start: start several processes with torchrun, or unset WORLD_SIZE."
            )
        store, _, _ = next(iter(dist.rendezvous("env://")))
        return dist.PrefixStore(f"cohort {self._runs}", store)

    def _same_everywhere(self, store: Any) -> None:
        """Refuses processes that see other scans or weights, where a number would mean another case."""
        cases = [[case.name, *(path.name for path in case.files)] for case in self.cases]
        own = json.dumps([cases, self.made_with])
        if store.compare_set("all", "", own).decode() != own:
            raise ValueError(
                f"this process (rank {_environment('RANK', 0)}) found other scans or weights than the first "
                f"({len(self.cases)} cases here): expected one folder on a shared disk that does not change meanwhile."
            )

    def _complete(self, case: Case) -> bool:
        """Whether the case's result can stay; says in the log why not."""
        self._inputs = []  # not those of the case before, if these cannot be read
        if case.problem is not None:
            raise ValueError(case.problem)
        if broken := [path for path in case.files if path.is_symlink() and not path.exists()]:
            raise FileNotFoundError(f"{broken[0]} is a link to {broken[0].readlink()}, which is not there: fetch it.")
        files = [file for path in case.files for file in open_volume(path).files() if file.is_file()]
        self._inputs = [{"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)} for file in files]
        if not self.resume:
            return False
        record = self._read(case)
        reason = "it has no result" if record is None else self._outdated(record)
        if reason:
            logger.info("%s: done again, as %s", case.name, reason)
        return reason is None

    def _outdated(self, record: Mapping[str, Any]) -> str | None:
        """Why a record's results are not those that would be made now, None if they are."""
        if "error" in record:
            return f"it failed: {record['error']}"
        if record["inputs"] != self._inputs:
            known = [entry["file"] for entry in record["inputs"] if entry in self._inputs]
            changed = [entry["file"] for entry in self._inputs if entry["file"] not in known]
            return f"its scans changed ({', '.join(changed) or 'other files'})"
        before = record["made_with"]
        changed = [name for name in {**before, **self.made_with} if before.get(name) != self.made_with.get(name)]
        if changed:
            return f"{', '.join(changed)} changed"
        gone = [name for name in record["files"].values() if not (self.output_dir / name).is_file()]
        return f"{', '.join(gone)} is gone" if gone else None

    def _forget(self, case: Case) -> None:
        """Removes an earlier result, so that it is not taken for this run's if the case fails now."""
        record = self._read(case)
        _record_path(self.output_dir, case).unlink(missing_ok=True)
        folder = self.output_dir.resolve()
        for name in (record or {}).get("files", {}).values():
            path = (folder / name).resolve()
            if path.is_relative_to(folder) and path not in [file.resolve() for file in case.files]:
                path.unlink(missing_ok=True)

    def _record(self, case: Case, result: Mapping[str, Any]) -> None:
        content = {"case": case.name, "inputs": self._inputs, "made_with": self.made_with, **result}
        path = _record_path(self.output_dir, case)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        self.current, self._inputs = None, []
        # One process at a time: the first while it works, the last when all have ended.
        if _environment("RANK", 0) == 0 and time.monotonic() >= self._next_tables:
            begin = time.monotonic()
            self._write_tables()
            end = time.monotonic()
            self._next_tables = end + (end - begin) / TABLE_SHARE

    def _read(self, case: Case) -> dict[str, Any] | None:
        """A case's record; None where there is none that can be read."""
        try:
            record = json.loads(_record_path(self.output_dir, case).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        whole = isinstance(record, dict) and {"inputs", "made_with"} <= set(record)
        return record if whole and ("error" in record or {"volumes", "files"} <= set(record)) else None

    def _write_tables(self) -> dict[str, str | None]:
        """Writes both tables; returns the cases without a result, with their error if they have been done."""
        folder = self.output_dir.resolve()
        rows, failed = [], []
        without: dict[str, str | None] = {}
        for case in sorted(self.cases, key=lambda case: case.name):
            record = self._read(case)
            if record is None or record["made_with"] != self.made_with:
                without[case.name] = None
            elif "error" in record:
                without[case.name] = record["error"]
                sources = " ".join(str(path) for path in case.files)
                failed.append({"case": case.name, "files": sources, "error": record["error"]})
            else:
                files = {key: str((folder / name).resolve()) for key, name in record["files"].items()}
                rows.append({**record["volumes"], **files})
        self.output_dir.mkdir(parents=True, exist_ok=True)
        _write_csv(self.output_dir / "volumes.csv", rows, columns=VOLUME_COLUMNS)
        if failed:
            _write_csv(self.output_dir / "failed.csv", failed, columns=FAILED_COLUMNS)
        else:
            (self.output_dir / "failed.csv").unlink(missing_ok=True)
        return without

    def _end(self) -> None:
        """Sums up when the last process has ended: torchrun ends all processes when one fails."""
        logger.info("this process: %s", ", ".join(f"{count} {name}" for name, count in self.counts.items()))
        if int(self._store.add("ended", 1)) == _environment("WORLD_SIZE", 1):
            self._store.set("summary", json.dumps(self._summary()))
        while not self._store.check(["summary"]):
            time.sleep(WAIT_SECONDS)
        message = json.loads(self._store.get("summary"))
        if message is not None:
            raise RuntimeError(message)
        logger.info("%d cases complete, in %s", len(self.cases), self.output_dir / "volumes.csv")

    def _summary(self) -> str | None:
        """Writes the tables with the cases of all processes; what to say of those without a result."""
        without = self._write_tables()
        if not without:
            return None
        name, message = min(without.items(), key=lambda item: (item[1] is None, item[0]))
        if message is None:
            return (
                f"{len(without)} of {len(self.cases)} cases have no record in {self.output_dir}, the first {name}: "
                "expected every process to write into one folder on a shared disk. Run again with --resume True."
            )
        if len(self.cases) == 1:
            return message
        return (
            f"{len(without)} of {len(self.cases)} cases failed, see {self.output_dir / 'failed.csv'}; the others are "
            f"complete. The first, {name}: {message}"
        )


def _case_of(entry: Mapping[str, Any], index: int) -> Case:
    image = entry["image"]
    files = tuple(Path(file).absolute() for file in ([image] if isinstance(image, str | Path) else image))
    name = str(entry.get("case") or stem_of(files[0]) or files[0].name)
    problem = entry.get("problem")
    if problem is None and (size := len(name.encode())) > NAME_BYTES:
        problem = f"the case's name has {size} bytes, expected at most {NAME_BYTES}: rename {files[0]}"
    return Case(name, files, index, problem)


def _record_path(folder: Path, case: Case) -> Path:
    return folder / case.folder / f"{case.folder}_result.json"


def is_fatal(error: BaseException | None) -> bool:
    """Whether the next case would meet the same: the device is lost, the disk full, no file handle left, an interrupt.

    What the error was made from counts too.
    """
    while error is not None:
        if isinstance(error, torch.AcceleratorError) or not isinstance(error, Exception):
            return True
        if getattr(error, "errno", None) in FATAL_ERRNO:
            return True
        error = error.__cause__ or error.__context__
    return False


def _cause(error: BaseException) -> BaseException:
    """What happened in a transform, without what MONAI wraps around it."""
    while str(error).startswith("applying transform") and error.__cause__ is not None:
        error = error.__cause__
    return error


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    with whole_file(path) as partial:
        table = pd.DataFrame(rows, columns=list(columns), dtype=object)
        table.to_csv(partial, index=False, lineterminator="\r\n")
