"""Two images of one head brought together."""
