"""Starts the server with safe defaults: this machine only, no other web pages, MR series only, checks of every request.

python -m monailabel_app --studies DIR [--models tissnet_vs,tissnet_glioma] [--port 8000] [--conf KEY VALUE ...]
python -m monailabel_app --demo
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

APP = Path(__file__).resolve().parent
ROOT = APP.parent
DEFAULTS = {
    "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality":"MR"}',
    "MONAI_LABEL_DATASTORE_FILE_EXT": '["*.nii.gz","*.nii","*.nrrd","*.NII.GZ","*.NII","*.NRRD"]',
    "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # each would start the app once more, in a process of its own
}


def make_demo_store(folder: Path, *, count: int = 3) -> None:
    """Fills a folder with the T2 scans and targets of a few phantoms, unless it has some."""
    if any(folder.glob("*.nii.gz")):
        return
    made = folder / "phantoms"
    command = ["-m", "scripts.prepare", "phantom", "--output", str(made), "--size", "small", "--seed", "7"]
    command += ["--training", "0", "--validation", "0", "--testing", str(count), "--without-tumor", "0"]
    subprocess.run([sys.executable, *command], cwd=ROOT / "bundle", check=True)
    for file in sorted(made.glob("*/*_T2.nii.gz")) + sorted(made.glob("*/*_ceT1.nii.gz")):
        shutil.copy(file, folder / file.name)
    shutil.rmtree(made)


def main(argv: list[str] | None = None) -> None:
    """Command line; does not return while the server runs."""
    parser = argparse.ArgumentParser(
        prog="monailabel_app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", help="folder of scans, or a DICOMweb address")
    parser.add_argument("--demo", action="store_true", help="phantoms, and the demonstration weights allowed")
    parser.add_argument("--models", default="tissnet_vs", help="comma list; a bundle's folder is a model too")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    args = parser.parse_args(argv)
    if bool(args.studies) == args.demo:
        parser.error("give --studies DIR, or --demo.")
    studies = args.studies
    if args.demo:
        studies = str(ROOT / "demo" / "scans")
        Path(studies).mkdir(parents=True, exist_ok=True)
        make_demo_store(Path(studies))
        args.conf.append(("allow_demo_weights", "true"))
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, str(ROOT))
    sys.argv = ["monailabel", "start_server", "--app", str(APP), "--studies", studies]
    sys.argv += ["--host", args.host, "--port", str(args.port), "--uvicorn_app", "monailabel_app.web.server:app"]
    for key, value in [("models", args.models), *args.conf]:
        sys.argv += ["--conf", key, value]
    from monailabel.main import Main  # reads the environment when imported

    Main().run()


if __name__ == "__main__":
    main()
