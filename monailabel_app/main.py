"""The MONAI Label app, loaded by its path: how a request finds its scans, what is kept of an answer.

python -m monailabel_app --studies DIR
"""

from __future__ import annotations

import copy
import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask

APP = Path(__file__).resolve().parent
if str(APP.parent) not in sys.path:
    sys.path.insert(0, str(APP.parent))

from monailabel_app.bundle import DEMONSTRATION, load_models  # noqa: E402
from monailabel_app.errors import InputError, NotFound  # noqa: E402
from monailabel_app.store.cases import source_images  # noqa: E402
from monailabel_app.store.dicom_store import open_store  # noqa: E402
from monailabel_app.store.passed_over import passed_over  # noqa: E402
from monailabel_app.store.shared import mend, share  # noqa: E402
from monailabel_app.tasks.batch import TISSNetBatchInferTask  # noqa: E402
from monailabel_app.tasks.infer import TISSNetInferTask  # noqa: E402
from monailabel_app.tasks.scoring import DiceOfSubmitted  # noqa: E402
from monailabel_app.tasks.strategies import Disagreement, FirstCome  # noqa: E402
from monailabel_app.tasks.train import TISSNetTrainTask  # noqa: E402

logger = logging.getLogger(__name__)


class TISSNetApp(MONAILabelApp):
    """Serves TISS-Net over a store, a folder of files or a DICOMweb address; its options are those of `Conf`."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.models = load_models(conf)
        demonstration = any(bundle.demonstration for bundle in self.models.values())
        name = "TISS-Net: the tumor from the scans that were taken"
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name=f"{name} (DEMONSTRATION WEIGHTS)" if demonstration else name,
            description=(
                (f"{DEMONSTRATION} " if demonstration else "")
                + "Segments a tumor where the scan that shows it best is missing, with that scan synthesized and a map "
                "of where to look twice. Research software, not a medical device."
            ),
            version=", ".join(sorted({bundle.version for bundle in self.models.values()})),
        )

    def init_datastore(self) -> Datastore:
        """The store, as this process shares it with the server's other ones."""
        if "://" not in self.studies:
            mend(Path(self.studies))
        store = super().init_datastore()
        share(store)
        return store

    def init_remote_datastore(self) -> Datastore:
        """The store of a DICOMweb address; MONAI Label's other kinds stay as they are."""
        if settings.MONAI_LABEL_DATASTORE:
            return super().init_remote_datastore()
        return open_store(self.studies)

    def init_infers(self) -> dict[str, InferTask]:
        return {name: TISSNetInferTask(bundle) for name, bundle in self.models.items()}

    def init_trainers(self) -> dict[str, Any]:
        return {name: TISSNetTrainTask(bundle) for name, bundle in self.models.items()}

    def init_strategies(self) -> dict[str, Any]:
        return {"first_come": FirstCome(self.models), "disagreement": Disagreement(self.models)}

    def init_scoring_methods(self) -> dict[str, Any]:
        return {"dice": DiceOfSubmitted()}

    def init_batch_infer(self) -> Any:
        return TISSNetBatchInferTask(self.models)

    def info(self) -> dict[str, Any]:
        """What the app offers, and with `passed_over` what lies in the studies and is not served."""
        return super().info() | {"passed_over": self.passed_over()}

    def passed_over(self) -> list[str]:
        """Sentences, see `store.passed_over`; of an archive none."""
        store = self.datastore()
        modalities = {m for model in self.models.values() for m in (*model.source_modalities, model.target_modality)}
        local = isinstance(store, LocalDatastore) and not isinstance(store, DICOMWebDatastore)
        return passed_over(store, modalities) if local else []

    def on_init_complete(self) -> None:
        """Called by a server once it is up; not in the processes of its background tasks."""
        super().on_init_complete()
        for sentence in self.passed_over():
            logger.warning("passed over in the studies: %s", sentence)
        for bundle in self.models.values():
            threading.Thread(target=bundle.warm_up, name=f"warm up {bundle.name}", daemon=True).start()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answers one request; the further volumes of an image in the store are kept under label tags.

        Args:
            request: model, image (an id of the store; the file of an upload or a session comes as `upload`) and
                options, see `TISSNetInferTask.answer`; save_label and label_tag keep the mask too.
            datastore: in place of the app's own.

        Returns:
            label (id, or the file), tag, file (temporary) and params.

        Raises:
            NotFound: an unknown model or image.
            InputError: the scans or options cannot be used.
        """
        store = datastore or self.datastore()
        task = self._infers.get(str(request.get("model")))
        if not isinstance(task, TISSNetInferTask):
            raise NotFound(f"There is no model {request.get('model')!r}: expected one of {', '.join(self._infers)}.")
        sources = task.bundle.source_modalities
        if upload := request.get("upload"):
            if len(sources) > 1:
                raise InputError(
                    f"This model needs {' and '.join(sources)} of one patient: save the scans on the server, named "
                    + ", ".join(f"NAME_{m}" for m in sources)
                    + ", then open one of them."
                )
            image_id, files, case, said = None, [Path(upload)], "the uploaded scan", []
        else:
            image_id = str(request.get("image") or "")
            images, case = source_images(store, image_id, sources), image_id
            files = [Path(store.get_image_uri(image)) for image in images]
            said = [note for image in images for note in store.get_image_info(image).get("notes", ())]
        answer = task.answer(files, request, case=case)
        answer.params["notes"] += said
        label = str(answer.mask)
        tag = str(request.get("label_tag") or DefaultLabelTag.ORIGINAL.value)
        try:
            if image_id is not None:
                answer.params["extra"] = {
                    name: f"/datastore/label?label={quote_plus(image_id)}&tag={name}" for name in answer.extra
                }
                info = {"model": task.bundle.name, "params": answer.params}
                for name, file in answer.extra.items():
                    store.save_label(image_id, str(file), name, copy.deepcopy(info))
                if request.get("save_label"):
                    label = store.save_label(image_id, str(answer.mask), tag, copy.deepcopy(info))
        except BaseException:
            answer.mask.unlink()
            raise
        finally:
            for file in answer.extra.values():
                file.unlink()
        return {"label": label, "tag": tag, "file": str(answer.mask), "params": answer.params}
