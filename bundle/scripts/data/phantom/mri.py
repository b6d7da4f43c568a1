"""The physics of a phantom's images: tissue parameters, signal equations, sequences, and what a scanner adds to them.

Field strength 1.5 T; times in ms, concentrations in mM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter1d

# Relaxivities of Gd-DTPA in plasma at 1.5 T and 37 degrees C, 1/(s mM): Rohrer 2005, Invest Radiol 40:715.
R1_PER_MM, R2_PER_MM = 4.1, 4.6


class Tissue(NamedTuple):
    """What decides a tissue's signal.

    Args:
        t1: longitudinal relaxation time, ms.
        t2: transverse relaxation time, ms; also used for the gradient echo, whose TE is short.
        pd: proton density, 1 is free water.
        gd: contrast agent some minutes after the injection, mM (ours, from how brightly each enhances).
        flow: factors by which moving blood changes the spin echo (flow void) and the gradient echo (inflow).
        texture: relative standard deviation of the signal within the tissue (ours).
    """

    t1: float
    t2: float
    pd: float
    gd: float = 0.0
    flow: tuple[float, float] = (1.0, 1.0)
    texture: float = 0.03


# At 1.5 T. [1] Stanisz 2005, MRM 54:507. [2] de Bazelaire 2004, Radiology 230:652. [3] Rooney 2007, MRM 57:308.
# [4] Whittall 1997, MRM 37:34 (water content of grey and white matter). Where only T1 and T2 are cited, pd is ours.
TISSUES: dict[str, Tissue] = {
    "air": Tissue(1000, 1, 0.0),
    "csf": Tissue(4300, 1800, 1.0),  # T1 [3]; T2 (ours: long; reported values spread widely)
    "grey": Tissue(1188, 95, 0.83, 0.03),  # T1 [3], T2 [1], pd [4]
    "white": Tissue(740, 72, 0.71, 0.02),  # T1 between [1] and [3], T2 [1], pd [4]
    "brainstem": Tissue(800, 78, 0.74, 0.02),  # (ours: between white and grey)
    "cerebellum": Tissue(1150, 92, 0.82, 0.03),  # (ours: as grey)
    "nerve": Tissue(815, 77, 0.72, 0.02),  # optic nerve of [1]
    "bone": Tissue(250, 2, 0.12),  # (ours: cortical bone gives next to nothing)
    "marrow": Tissue(549, 49, 0.65, 0.06, texture=0.12),  # vertebral marrow of [2]
    "fat": Tissue(343, 58, 0.85, 0.0, texture=0.08),  # subcutaneous fat of [2]
    "skin": Tissue(700, 35, 0.6, 0.1),  # (ours)
    "muscle": Tissue(1008, 44, 0.75, 0.08, texture=0.1),  # [1]
    "vein": Tissue(1441, 290, 0.85, 0.6, (0.12, 1.15)),  # blood of [1]; flow (ours)
    "artery": Tissue(1441, 290, 0.85, 0.55, (0.04, 1.35)),  # as vein, faster
    "dura": Tissue(900, 40, 0.55, 0.3),  # (ours)
    "mucosa": Tissue(1200, 110, 0.85, 0.5, texture=0.12),  # (ours)
    "choroid": Tissue(1300, 150, 0.88, 0.55, texture=0.1),  # (ours)
    "pituitary": Tissue(1000, 85, 0.8, 0.5),  # (ours)
    "labyrinth": Tissue(4200, 1500, 0.98),  # perilymph and endolymph (ours: nearly CSF)
    "vitreous": Tissue(4200, 1500, 0.98),  # (ours: nearly CSF)
    "vs": Tissue(1150, 81, 0.79, 0.6, texture=0.06),  # schwannoma, dense part (ours)
    "vs_loose": Tissue(1500, 130, 0.85, 0.45, texture=0.1),  # schwannoma, loose part (ours)
    "cyst": Tissue(3300, 420, 0.96, 0.05),  # of a schwannoma, protein-rich (ours)
    "edema": Tissue(1220, 132, 0.86, 0.03, texture=0.04),  # vasogenic (this and the next: ours, as bright as in BraTS)
    "infiltration": Tissue(1250, 132, 0.85, 0.05, texture=0.05),  # glioma that does not enhance
    "enhancing": Tissue(1220, 135, 0.84, 0.25, texture=0.07),  # its gd varies by patient, see vary_tumor
    "necrosis": Tissue(1550, 165, 0.93, 0.05, texture=0.05),  # with debris, unlike clear fluid
    "pulsation": Tissue(
        4300, 1800, 1.0, flow=(0.42, 1.0), texture=0.12
    ),  # CSF that moves; T1 [3], the loss of signal (ours)
}
ID = {name: index for index, name in enumerate(TISSUES)}


@dataclass(frozen=True)
class PulseSequence:
    """One pulse sequence and the display scale of its images.

    Args:
        kind: spin_echo, gradient_echo or inversion_recovery.
        tr: repetition time, ms.
        te: echo time, ms.
        flip: flip angle of the gradient echo, degrees.
        ti: inversion time, ms.
        contrast: whether the contrast agent has been given.
        reference: tissue and the intensity it gets before anything varies.
    """

    kind: str
    tr: float
    te: float
    flip: float = 90.0
    ti: float = 0.0
    contrast: bool = False
    reference: tuple[str, float] = ("csf", 1000.0)


# Typical clinical values (ours). The vs protocol's T2 is the heavily weighted one that shows the cisterns.
_T1 = PulseSequence("gradient_echo", tr=12, te=4, flip=20, reference=("white", 620))
SEQUENCES: dict[str, dict[str, PulseSequence]] = {
    "vs": {
        "T1": _T1,
        "ceT1": replace(_T1, contrast=True, reference=("vein", 1000)),
        "T2": PulseSequence("spin_echo", tr=4000, te=120),
        "FLAIR": PulseSequence("inversion_recovery", tr=9000, te=110, ti=2480, reference=("grey", 550)),
    },
    "glioma": {
        "T1": _T1,
        "ceT1": replace(_T1, contrast=True),
        "T2": PulseSequence("spin_echo", tr=3600, te=82),
        "FLAIR": PulseSequence("inversion_recovery", tr=9000, te=110, ti=2480, reference=("grey", 550)),
    },
}


def spin_echo(t1: float, t2: float, pd: float, tr: float, te: float) -> float:
    """PD (1 - exp(-TR/T1)) exp(-TE/T2), for TE much shorter than TR."""
    return float(pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2))


def gradient_echo(t1: float, t2: float, pd: float, tr: float, te: float, flip: float) -> float:
    """Spoiled gradient echo in its steady state (Ernst): PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2).

    E1 = exp(-TR/T1); `flip`, the angle a, in degrees.
    """
    e1, angle = np.exp(-tr / t1), np.radians(flip)
    return float(pd * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1) * np.exp(-te / t2))


def inversion_recovery(t1: float, t2: float, pd: float, tr: float, te: float, ti: float) -> float:
    """Magnitude PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2); nulls T1 = TI / ln 2 where TR is long."""
    return float(pd * abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2))


def enhanced(tissue: Tissue) -> Tissue:
    """The tissue with its contrast agent: 1/T = 1/T0 + r C for T1 and T2 (relaxivities per second, times in ms)."""
    return tissue._replace(
        t1=1 / (1 / tissue.t1 + R1_PER_MM * tissue.gd / 1000), t2=1 / (1 / tissue.t2 + R2_PER_MM * tissue.gd / 1000)
    )


def signal(tissue: Tissue, sequence: PulseSequence) -> float:
    """Signal of one tissue in one sequence, before scaling; blood's flow effects included.

    Raises:
        ValueError: unknown kind of sequence.
    """
    t = enhanced(tissue) if sequence.contrast else tissue
    if sequence.kind == "spin_echo":
        return spin_echo(t.t1, t.t2, t.pd, sequence.tr, sequence.te) * t.flow[0]
    if sequence.kind == "gradient_echo":
        return gradient_echo(t.t1, t.t2, t.pd, sequence.tr, sequence.te, sequence.flip) * t.flow[1]
    if sequence.kind == "inversion_recovery":
        return inversion_recovery(t.t1, t.t2, t.pd, sequence.tr, sequence.te, sequence.ti) * t.flow[0]
    kinds = "spin_echo, gradient_echo or inversion_recovery"
    raise ValueError(f"sequence of kind {sequence.kind!r}, expected {kinds}")


def vary_tissues(rng: np.random.Generator, overrides: Mapping[str, Tissue] | None = None) -> dict[str, Tissue]:
    """The table of one patient: relaxation times vary by 4 %, proton density by 2 %, contrast agent by dose and tissue.

    Args:
        rng: decides the variation; every tissue takes the same number of draws.
        overrides: tissues whose nominal values this patient does not share, such as a tumor's.
    """
    dose = float(np.exp(rng.normal(0, 0.15)))
    varied = {}
    for name, nominal in TISSUES.items():
        tissue = (overrides or {}).get(name, nominal)
        t1, t2, pd, gd, flow = np.exp(rng.normal(0, (0.04, 0.04, 0.02, 0.10, 0.3)))
        varied[name] = tissue._replace(
            t1=tissue.t1 * t1,
            t2=tissue.t2 * t2,
            pd=min(tissue.pd * pd, 1.0),
            gd=tissue.gd * dose * gd,
            flow=(tissue.flow[0] * flow if tissue.flow[0] < 1 else 1.0, tissue.flow[1]),
        )
    return varied


def vary_tumor(rng: np.random.Generator) -> dict[str, Tissue]:
    """Nominal tissues of one patient's tumor: a schwannoma from iso- to hyperintense on T2, a glioma's parts (ours)."""
    t2, gd, loose, rim, edema = rng.uniform((68, 0.35, 100, 0.12, 108), (94, 0.8, 160, 0.34, 165))
    return {
        "vs": TISSUES["vs"]._replace(t2=t2, gd=gd),
        "vs_loose": TISSUES["vs_loose"]._replace(t2=loose, gd=0.75 * gd),
        "enhancing": TISSUES["enhancing"]._replace(gd=rim),
        "edema": TISSUES["edema"]._replace(t2=edema),
    }


def vary_sequence(rng: np.random.Generator, sequence: PulseSequence) -> PulseSequence:
    """The sequence with TE, TR and flip angle a few percent off; TI stays, as it is set to null CSF."""
    te, tr, flip = np.exp(rng.normal(0, (0.06, 0.04, 0.05)))
    return replace(sequence, te=sequence.te * te, tr=sequence.tr * tr, flip=sequence.flip * flip)


def signal_table(tissues: Mapping[str, Tissue], sequence: PulseSequence, nominal: PulseSequence) -> NDArray[np.float32]:
    """Intensity by tissue id; scaled by what the nominal sequence gives for its nominal reference tissue."""
    name, intensity = nominal.reference
    scale = intensity / signal(TISSUES[name], nominal)
    return np.array([signal(tissues[key], sequence) * scale for key in TISSUES], dtype=np.float32)


def texture_table() -> NDArray[np.float32]:
    """Relative texture by tissue id."""
    return np.array([tissue.texture for tissue in TISSUES.values()], dtype=np.float32)


def move(
    image: NDArray[np.float32], spacing: NDArray[np.float64], shift: NDArray[np.float64], turn: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The image of a head that moved, linearly interpolated.

    Args:
        image: (X, Y, Z).
        spacing: mm.
        shift: of the head, mm along X, Y, Z.
        turn: of the head about the grid's center, radians about X, Y, Z; small, so that their order is of no matter.
    """
    a, b, c = turn
    rotation = np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])  # First order: exact enough below a degree.
    matrix = rotation.T * spacing[None, :] / spacing[:, None]
    middle = (np.asarray(image.shape) - 1) / 2
    offset = middle - matrix @ (middle + shift / spacing)
    return affine_transform(image, matrix, offset, output=np.float32, order=1, mode="nearest")


def blur(image: NDArray[np.float32], spacing: NDArray[np.float64], width: float = 0.45) -> NDArray[np.float32]:
    """In-plane point spread: Gaussian, standard deviation `width` voxels, at most 0.4 mm."""
    for axis in (0, 1):
        image = gaussian_filter1d(image, min(width, 0.4 / spacing[axis]), axis=axis, truncate=3)
    return image


def add_rician(image: NDArray[np.float32], noise: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Magnitude of the image with complex noise: |image + n1 + i n2|, n1 and n2 normal with deviation `noise`."""
    real = rng.standard_normal(image.shape, dtype=np.float32)
    real *= np.float32(noise)
    real += image
    imaginary = rng.standard_normal(image.shape, dtype=np.float32)
    imaginary *= np.float32(noise)
    return np.hypot(real, imaginary, out=real)
