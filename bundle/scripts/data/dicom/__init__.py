"""DICOM: headers, series as volumes, and contours as masks."""
