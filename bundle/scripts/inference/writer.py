"""The NIfTI writer of the outputs: on the source scan's grid, with the source scan's header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.data.image_writer import NibabelWriter

from scripts.data.volume import PLACE_FIELDS

AFFINE_TOLERANCE = 1e-3  # mm, between the source's affine and the inverted one


class SourceHeaderWriter(NibabelWriter):
    """MONAI's NibabelWriter, with the source's own fields for the place; writes a given `descrip`.

    Whichever form a program reads, and whatever it makes of pixdim, it then places output and source alike: the fields
    are copied, not computed again from the affine. A source that is not NIfTI gets both forms with the code of scanner
    coordinates. For `SaveImaged(writer="scripts.inference.writer.SourceHeaderWriter")`, with the metadata that
    `loading.ScanReader` put into the scan's MetaTensor.
    """

    source: dict[str, Any]

    def set_data_array(self, data_array: Any, *args: Any, **options: Any) -> None:
        super().set_data_array(data_array, *args, **options)
        while self.data_obj.ndim < 3:  # MONAI squeezes the last axis of a one-slice volume away
            self.data_obj = self.data_obj[..., None]

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = False, **options: Any) -> None:
        super().set_metadata(meta_dict, resample=resample, **options)
        self.source = dict(meta_dict or {})
        original = self.source.get("original_affine")
        if original is not None:
            original = np.asarray(original, dtype=np.float64)
            if not np.allclose(original, np.asarray(self.affine), atol=AFFINE_TOLERANCE):
                raise ValueError(
                    f"an output of {self.source.get('filename_or_obj')} is not on the grid of its source: affine\n"
                    f"{np.asarray(self.affine)}\nexpected\n{original}\nInvert the preprocessing before saving."
                )
            self.affine = original

    def write(self, filename: Any, verbose: bool = False, **obj_kwargs: Any) -> None:
        image = self.create_backend_obj(self.data_obj, affine=self.affine, dtype=self.output_dtype, **obj_kwargs)
        header = image.header
        if "descrip" in self.source:
            header["descrip"] = self.source["descrip"]
        if "quatern_b" in self.source:
            fields = {**self.source, "pixdim": self.source["original_pixdim"]}
            for field in PLACE_FIELDS:
                header[field] = np.asarray(fields[field])
        else:
            header.set_xyzt_units("mm")
            header.set_qform(self.affine, code="scanner")
            header.set_sform(self.affine, code="scanner")
        # Without an affine, which nibabel would write anew where it differs by rounding from the fields.
        nib.save(type(image)(np.asanyarray(image.dataobj), None, header), filename)
