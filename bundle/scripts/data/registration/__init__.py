"""Registration of two images of one head."""
