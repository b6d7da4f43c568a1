"""The MONAI Label app: which models are served, how a request finds its scans, what is kept of an answer.

    python -m monailabel_app --studies DIR

MONAI Label loads this file by its path. How one case is computed goes to `served.py` and `infer.py`, HTTP to
`server.py`.
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
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.utils.others.generic import strtobool

APP = Path(__file__).resolve().parent
if str(APP.parent) not in sys.path:
    sys.path.insert(0, str(APP.parent))

from monailabel_app.bundle import ServedBundle  # noqa: E402
from monailabel_app.errors import InputError, NotFound  # noqa: E402
from monailabel_app.store.cases import source_files  # noqa: E402
from monailabel_app.store.dicom_store import open_store  # noqa: E402
from monailabel_app.store.shared import mend, share  # noqa: E402
from monailabel_app.tasks.batch import TISSNetBatchInferTask  # noqa: E402
from monailabel_app.tasks.infer import DEMONSTRATION, TISSNetInferTask  # noqa: E402
from monailabel_app.tasks.scoring import DiceOfSubmitted  # noqa: E402
from monailabel_app.tasks.strategies import Disagreement, FirstCome  # noqa: E402
from monailabel_app.tasks.train import TISSNetTrainTask  # noqa: E402

logger = logging.getLogger(__name__)

NAMES = ("tissnet_vs", "tissnet_glioma")
# The repository's bundle as the glioma one; a released glioma bundle needs none of this.
GLIOMA_OVERRIDES = ("configs/glioma.yaml", "configs/glioma_2mm.yaml")
GLIOMA_METADATA = "configs/metadata_glioma.yaml"
GLIOMA_MODELS = "models/glioma"


class TISSNetApp(MONAILabelApp):
    """Serves TISS-Net.

    Args:
        app_dir: this folder.
        studies: the store: a folder of NIfTI files, or a DICOMweb address.
        conf: `models` (comma list of tissnet_vs, tissnet_glioma and folders of released bundles), `bundle` (folder of
            the repository's bundle), `weights_glioma`, `allow_demo_weights` (true, false), `versions` (folder of
            fine-tuned weights).

    Raises:
        ValueError: an unknown model, demonstration weights that were not allowed, weights that are not the released.
        FileNotFoundError: a model's config or weights are not there.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.models = self._load_models(conf)
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

    @staticmethod
    def _load_models(conf: Mapping[str, str]) -> dict[str, ServedBundle]:
        bundle = Path(conf.get("bundle") or APP.parent / "bundle")
        fine_tuned = Path(conf.get("versions") or APP / "model")
        allowed = bool(strtobool(conf.get("allow_demo_weights", "false")))
        models = {}
        for wanted in (part.strip() for part in (conf.get("models") or NAMES[0]).split(",")):
            name, folder = wanted, bundle
            options: dict[str, Any] = {}
            if wanted == "tissnet_glioma":
                options["overrides"] = [bundle / file for file in GLIOMA_OVERRIDES]
                options["metadata"] = [bundle / GLIOMA_METADATA]
                options["models"] = GLIOMA_MODELS
                options["weights"] = Path(conf["weights_glioma"]) if conf.get("weights_glioma") else None
            elif wanted not in NAMES and Path(wanted).is_dir():
                name, folder = Path(wanted).resolve().name, Path(wanted)
            elif wanted not in NAMES:
                raise ValueError(f"no model {wanted!r}: expected {', '.join(NAMES)}, or the folder of a bundle.")
            if name in models:
                raise ValueError(f"two models are named {name}: give the folder of one of them another name.")
            served = ServedBundle(name, folder, fine_tuned=fine_tuned, **options)
            if served.demonstration and not allowed:
                raise ValueError(
                    f"model {name}: {DEMONSTRATION} They are not served unless the server is started with "
                    "--conf allow_demo_weights true."
                )
            models[name] = served
        return models

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

    def on_init_complete(self) -> None:
        """Called by a server once it is up; not in the processes of its background tasks."""
        super().on_init_complete()
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
            image_id, files, case = None, [Path(upload)], "the uploaded scan"
        else:
            image_id = str(request.get("image") or "")
            files, case = source_files(store, image_id, sources), image_id
        answer = task.answer(files, request, case=case)
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
