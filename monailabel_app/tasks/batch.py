"""Inference over the store: one image per case; a bad case is reported and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType, BatchInferTask

from monailabel_app.bundle import ServedBundle
from monailabel_app.errors import InputError, NotFound
from monailabel_app.store.cases import list_cases, start_image

logger = logging.getLogger(__name__)


class TISSNetBatchInferTask(BatchInferTask):
    """Answers every case of the store, one after the other, and keeps the answers."""

    def __init__(self, models: Mapping[str, ServedBundle]) -> None:
        self.models = models

    def get_images(self, request: Mapping[str, Any], datastore: Datastore) -> list[str]:
        """The images to answer, in the order of `list_cases`.

        Args:
            request: `model`; `images`: all, labeled (finished cases), unlabeled or a list of ids; `skip_finished` and
                `skip_answered` (has a label of `label_tag`), both false by default; `max_batch_size`.
            datastore: the store.
        """
        model = self._model(request)
        wanted = request.get("images") or BatchInferImageType.IMAGES_ALL.value
        cases = list_cases(datastore, [model.source_modalities])
        if not isinstance(wanted, str):
            chosen = dict.fromkeys(start_image(datastore, str(i), model.source_modalities) or str(i) for i in wanted)
            finished = {case.image for case in cases if case.finished}
            images = [image for image in chosen if not (request.get("skip_finished") and image in finished)]
        elif wanted in list(BatchInferImageType):
            keep = {BatchInferImageType.IMAGES_LABELED: (True,), BatchInferImageType.IMAGES_UNLABELED: (False,)}
            states = keep.get(BatchInferImageType(wanted), (True, False))
            skip = bool(request.get("skip_finished"))
            images = [case.image for case in cases if case.finished in states and not (skip and case.finished)]
        else:
            raise InputError(f"images is {wanted!r}: expected all, labeled, unlabeled or a list of images.")
        if request.get("skip_answered"):
            images = [image for image in images if not _answered(datastore, image, _tag(request), model.name)]
        most = int(request.get("max_batch_size") or 0)
        return images[:most] if most > 0 else images

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, infer: Callable) -> dict[str, Any]:
        """Answers the images of `get_images`: by image label, tag and params, or `error`, a sentence."""
        images = self.get_images(request, datastore)
        logger.info("batch inference: %d case(s)", len(images))
        result: dict[str, Any] = {}
        for count, image in enumerate(images, start=1):
            own = {**request, "image": image, "save_label": True, "label_tag": _tag(request)}
            try:
                answer = dict(infer(own, datastore))
                if file := answer.pop("file", None):
                    Path(file).unlink(missing_ok=True)
                result[image] = answer
                logger.info("%d of %d: %s done", count, len(images), image)
            except InputError as error:
                logger.warning("%d of %d: %s: %s", count, len(images), image, error)
                result[image] = {"error": str(error)}
            except Exception:
                logger.exception("%d of %d: %s failed", count, len(images), image)
                result[image] = {"error": f"{image!r} failed for a reason of the server's own: see its log."}
        failed = sum("error" in answer for answer in result.values())
        logger.info("batch inference: %d case(s) answered, %d not", len(result) - failed, failed)
        return result

    def _model(self, request: Mapping[str, Any]) -> ServedBundle:
        name = str(request.get("model") or "")
        if name not in self.models:
            raise NotFound(f"There is no model {name!r}: expected one of {', '.join(self.models)}.")
        return self.models[name]


def _answered(datastore: Datastore, image: str, tag: str, model: str) -> bool:
    """Whether the store has this model's answer: two models may have the same image to start from."""
    if not datastore.get_label_by_image_id(image, tag):
        return False
    return datastore.get_label_info(image, tag).get("model") == model


def _tag(request: Mapping[str, Any]) -> str:
    tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL
    return str(getattr(tag, "value", tag))
