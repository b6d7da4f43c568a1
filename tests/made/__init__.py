"""Makers of input for tests: DICOM, contours, archives, a patient of The Cancer Imaging Archive; and a made method."""
