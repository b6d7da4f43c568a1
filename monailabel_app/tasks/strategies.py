"""Which case a clinician is given next: the one that waits longest, or that the model is least sure of."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.strategy import Strategy

from monailabel_app.bundle import ServedBundle
from monailabel_app.store.cases import Case, list_cases

logger = logging.getLogger(__name__)

SECONDS_HELD = 3600  # how long a case that one annotator was given is kept from the others
MEASURES = ("disagreement", "error_mass_mm3")


class FirstCome(Strategy):
    """The case that has waited longest, of those that are complete and that nobody has finished.

    A case is offered once, by the image that the model starts from. For an hour it is kept from other annotators
    (`client_id`), unless nothing else is left; the same annotator gets it again until it is submitted.
    """

    def __init__(self, models: Mapping[str, ServedBundle], description: str = "The case that waits longest") -> None:
        super().__init__(description)
        self.models = models

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Picks a case: id (of an image) and reason; empty when every case is finished.

        The request has `client_id`, who asks, and `model`, where only that one's cases are wanted.
        """
        wanted = str(request.get("model") or "")
        models = {name: model for name, model in self.models.items() if wanted in ("", name)}
        listed = list_cases(datastore, [model.source_modalities for model in models.values()])
        cases = [case for case in listed if case.complete and not case.finished]
        if not cases:
            logger.info("every case is finished")
            return {}
        offered = {case.image: _given_to_others(case, datastore, request.get("client_id")) for case in cases}
        free = [case for case in cases if time.time() - offered[case.image] >= SECONDS_HELD]
        if free:
            case, reason = self.choose(free, datastore, models)
        else:
            case = min(cases, key=lambda one: offered[one.image])
            reason = "somebody else was given it, nothing else is left"
        logger.info("next: %s (%s)", case.image, reason)
        return {"id": case.image, "reason": reason}

    def choose(self, cases: Sequence[Case], datastore: Datastore, models: Collection[str]) -> tuple[Case, str]:
        """Picks one of the open cases, the oldest first, and says why."""
        return cases[0], "it waits longest"


class Disagreement(FirstCome):
    """The case that the model is least sure of, by its kept answers (batch inference, or `save_label`).

    Cases are ranked by the disagreement of the fine and the refined mask and by the mass of the error map; the mean of
    both ranks decides, then who waits longest. Cases without an answer come last: batch inference gives them one.
    Without any answer the first come is served.
    """

    def __init__(self, models: Mapping[str, ServedBundle]) -> None:
        super().__init__(models, "The case that the model is least sure of, by its kept answers")

    def choose(self, cases: Sequence[Case], datastore: Datastore, models: Collection[str]) -> tuple[Case, str]:
        answers = {case.image: measures for case in cases if (measures := _answer(case, datastore, models))}
        if not answers:
            logger.warning("no open case has an answer of the model: run batch inference first; first come instead")
            case, reason = super().choose(cases, datastore, models)
            return case, f"{reason}; no open case has an answer of the model yet"
        ranks = {image: 0.0 for image in answers}
        for measure in range(len(MEASURES)):
            values = [found[measure] for found in answers.values()]
            for image, found in answers.items():
                ranks[image] += sum(value > found[measure] for value in values)
        case = min((case for case in cases if case.image in ranks), key=lambda one: ranks[one.image])
        disagreement, mass = answers[case.image]
        return case, f"disagreement {disagreement:.3f}, error mass {mass:.0f} mm3: least sure of {len(answers)}"


def _given_to_others(case: Case, datastore: Datastore, client: Any) -> float:
    """When somebody else was given a case, by any strategy; 0 where nobody was."""
    given = [entry for info in case.info(datastore) for entry in (info.get("strategy") or {}).values()]
    others = [entry for entry in given if client is None or entry.get("client_id") != client]
    return max((float(entry.get("ts") or 0) for entry in others), default=0.0)


def _answer(case: Case, datastore: Datastore, models: Collection[str]) -> tuple[float, float] | None:
    """Disagreement and error mass of the models' kept answer; None where there is none, or no finite one."""
    if not datastore.get_label_by_image_id(case.image, DefaultLabelTag.ORIGINAL.value):
        return None
    info = datastore.get_label_info(case.image, DefaultLabelTag.ORIGINAL.value)
    params = info.get("params") or {} if info.get("model") in models else {}
    values = [params.get(name) for name in MEASURES]
    disagreement, mass = (float(v) if isinstance(v, int | float) else math.nan for v in values)
    return (disagreement, mass) if math.isfinite(disagreement) and math.isfinite(mass) else None
