"""The weights of the losses as train.json has them, for tests that make a method or a loss themselves."""

import json
from pathlib import Path

TRAIN = Path(__file__).parents[2] / "bundle" / "configs" / "train.json"
LOSS_WEIGHTS: dict[str, float] = json.loads(TRAIN.read_text(encoding="utf-8"))["weights"]
