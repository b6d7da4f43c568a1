"""What the app does with cases: inference, batches, training, scoring, and which case is next."""
