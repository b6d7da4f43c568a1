"""The NIfTI writer of the outputs: on the source scan's grid, with the source scan's header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.data.image_writer import NibabelWriter

KEPT_FIELDS = ("xyzt_units", "descrip")
AFFINE_TOLERANCE = 1e-3  # mm, between the source's affine and the inverted one


class SourceHeaderWriter(NibabelWriter):
    """MONAI's NibabelWriter, keeping the source's affine exactly, its form codes and units; writes a given `descrip`.

    For `SaveImaged(writer="scripts.inference.writer.SourceHeaderWriter")`. The metadata are those that MONAI's
    reader put into the scan's MetaTensor; sources that are not NIfTI get MONAI's defaults.
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
        for field in KEPT_FIELDS:
            if field in self.source:
                image.header[field] = np.asarray(self.source[field])
        for name, setter in (("qform_code", image.set_qform), ("sform_code", image.set_sform)):
            setter(self.affine, code=int(self.source.get(name, 1)))
        if image.header["qform_code"] == 0 and image.header["sform_code"] == 0:
            image.set_sform(self.affine, code=1)
        nib.save(image, filename)
