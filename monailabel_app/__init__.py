"""The MONAI Label app: serves the bundle to 3D Slicer and OHIF."""
