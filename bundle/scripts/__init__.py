"""Code of the TISS-Net bundle, imported by the configs as `scripts`.

Docstring only: code goes into the modules beside it.
"""
