"""Where the app's images and labels are: a folder of files or a DICOM archive."""
