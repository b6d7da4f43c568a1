"""The MONAI Label app: serves the bundle to 3D Slicer and OHIF. Methods, networks and losses stay in the bundle.

A package, so that the server (`monailabel_app.web.server`) and the app (`main.py`) share their modules. Nothing is
imported here.
"""
