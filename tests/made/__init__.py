"""Makers of input for tests: DICOM, contours, an archive, a patient as The Cancer Imaging Archive hands it out."""
