"""Makes `tests/fixtures/dicom`: one phantom in every transfer syntax that is read, a folder of three slices for each.

    python tests/made/compressed.py

Needs `dcmcjpeg` and `dcmcjpls` of DCMTK. Whether GDCM reads what others wrote is what the tests are for.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, JPEG2000Lossless, RLELossless

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from made.dicom import make_affine, save, write_series  # noqa: E402

FIXTURES = ROOT / "fixtures/dicom"
# Folder to the uncompressed one, and the command of DCMTK.
BY_DCMTK = {
    "jpeg_lossless": ("plain", "dcmcjpeg", "+el"),
    "jpeg_lossless_sv1": ("plain", "dcmcjpeg", "+e1"),
    "jpeg_lossless_sv1_signed": ("plain_signed", "dcmcjpeg", "+e1"),
    "jpeg_lossless_12_bits": ("plain", "dcmcjpeg", "+e1", "+pl", "+bt"),
    "jpeg_ls": ("plain", "dcmcjpls", "+el"),
    "jpeg_ls_signed": ("plain_signed", "dcmcjpls", "+el"),
    "jpeg_ls_near": ("plain", "dcmcjpls", "+en"),
    "jpeg_baseline": ("plain_8_bits", "dcmcjpeg", "+eb"),
    "jpeg_extended": ("plain", "dcmcjpeg", "+ee"),
}


def main() -> None:
    shutil.rmtree(FIXTURES, ignore_errors=True)
    x, y, z = np.mgrid[:24, :20, :3]
    radius = np.hypot((x - 11.5) / 10, (y - 9.5) / 8)
    head = 1500 + 900 * np.cos(5 * radius + z) + 40 * x
    voxels = np.where(radius < 1, head, 30 + (x * 7 + y * 13 + z * 5) % 23).round().astype(np.uint16)
    voxels[0, 0], voxels[12, 10] = 0, 4095  # dcmcjpeg stretches what it loses to the whole range
    plain("plain", voxels, bits=12)
    plain("plain_signed", voxels.astype(np.int16) - 1000, bits=16)
    plain("plain_8_bits", (voxels >> 4).astype(np.uint8), bits=8)
    for name, (source, *command) in BY_DCMTK.items():
        for path in copies(name, source):
            subprocess.run([*command, path, path], check=True)
            data = pydicom.dcmread(path)
            if name == "jpeg_lossless_12_bits":  # DCMTK tells loss, of the range that there is none of here
                del data.LossyImageCompression, data.LossyImageCompressionRatio, data.LossyImageCompressionMethod
                data.save_as(path)
    for name in ("rle", "rle_signed"):
        for path in copies(name, name.replace("rle", "plain")):
            data = pydicom.dcmread(path)
            data.compress(RLELossless)
            save(path, data, RLELossless)
    for name, syntax in (("jpeg2000", JPEG2000Lossless), ("jpeg2000_lossy", JPEG2000)):
        for path in copies(name, "plain"):
            data, stream = pydicom.dcmread(path), io.BytesIO()
            options = {"quality_mode": "dB", "quality_layers": [62]} if syntax == JPEG2000 else {}
            image = Image.fromarray(data.pixel_array)
            image.save(stream, "JPEG2000", no_jp2=True, num_resolutions=3, irreversible=syntax == JPEG2000, **options)
            if syntax == JPEG2000:
                data.LossyImageCompression = "01"
                data.LossyImageCompressionRatio = round(len(data.PixelData) / len(stream.getvalue()), 2)
            data.PixelData = encapsulate([stream.getvalue()])
            data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
            save(path, data, syntax)


def plain(name: str, voxels: np.ndarray, *, bits: int) -> None:
    affine = make_affine((1.0, 1.2, 3.0), origin=(5, -6, 7), plane="oblique")
    options = {"patient": "phantom", "description": "t2 phantom", "names": "{}.dcm"}
    write_series(FIXTURES / name, voxels, affine, BitsStored=bits, HighBit=bits - 1, **options)


def copies(name: str, source: str) -> list[Path]:
    return sorted(shutil.copytree(FIXTURES / source, FIXTURES / name).iterdir())


if __name__ == "__main__":
    main()
