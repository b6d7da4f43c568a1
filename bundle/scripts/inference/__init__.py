"""From a loaded scan to written files: windows, regions, engines, many scans, the NIfTI writer."""
