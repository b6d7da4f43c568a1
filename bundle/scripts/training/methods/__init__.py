"""One file per method that the trainer can train: its networks and the losses of one step."""
