"""Losses, the trainer and what it needs: seeded data, schedules, checkpoints, several processes."""
