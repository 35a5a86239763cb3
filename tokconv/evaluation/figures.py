"""The registry of figures: what each held-out figure is called, what it means, and where it is shown.

Everything that shows, names or compares a figure reads it from here: tables, plots, the page of a sweep, model cards,
MLflow's columns, the objectives and targets of a spec. To add a figure, add its entry here and compute it in
one of the modules that `evaluator.py` names; a figure that changes what is judged also needs a new `protocol.PROTOCOL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EVALUATE, CARD, TRAIN, SWEEP, TRIALS, MLFLOW, NOTE = "evaluate", "card", "train", "sweep", "trials", "mlflow", "note"
"""Places that show figures: `tokconv evaluate`, the model card, `tokconv train`, the result table of a sweep, the table
of all trials on its page, the columns of MLflow's runs, and the description of an MLflow run."""
LABELS, NEIGHBOURS = "labels", "neighbours"
"""What a figure requires of its store: images with labels, or enough images to have neighbours."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One held-out figure of a compressor.

    Args:
        name: its key in an evaluation, a record and MLflow, such as "val/fvu".
        title: its short name, as it heads a column.
        meaning: what it measures, in one phrase.
        lower_is_better: whether low values are good.
        form: format specification of its values.
        unit: of its values; "" for a pure number.
        floor: the name of the figure that real tokens get in its place, the level to reach; "" if there is none.
        places: where it is shown.
        objective: whether a sweep may optimise it, or set a target for it.
        needs: `LABELS`, `NEIGHBOURS`, or "" if it exists for every store.
    """

    name: str
    title: str
    meaning: str
    lower_is_better: bool
    form: str
    unit: str = ""
    floor: str = ""
    places: tuple[str, ...] = ()
    objective: bool = True
    needs: str = ""

    @property
    def explanation(self) -> str:
        """The meaning with the unit, for legends."""
        return f"{self.meaning}, in {self.unit}" if self.unit else self.meaning

    def text(self, value: float | None) -> str:
        """Format a value; "" for None."""
        return "" if value is None else format(value, self.form)


_ENTRIES = (
    Figure(
        name="compression_ratio",
        title="ratio",
        meaning="tokens in / tokens out",
        lower_is_better=False,
        form=".3g",
        places=(MLFLOW,),
    ),
    Figure(
        name="val/fvu",
        title="fvu",
        meaning="fraction of variance unexplained: 0 is perfect, 1 is the mean token",
        lower_is_better=True,
        form=".4f",
        places=(EVALUATE, CARD, TRAIN, SWEEP, TRIALS, MLFLOW, NOTE),
    ),
    Figure(
        name="val/gain",
        title="gain",
        meaning="share of pooling's fvu that is gone",
        lower_is_better=False,
        form="+z.1%",
        places=(EVALUATE, CARD, TRAIN, SWEEP, TRIALS, MLFLOW, NOTE),
    ),
    Figure(
        name="val/swd",
        title="swd",
        meaning="sliced Wasserstein distance to real tokens",
        lower_is_better=True,
        form=".3f",
        unit="standard deviations of the tokens",
        floor="val/swd_floor",
        places=(EVALUATE, CARD, TRAIN, SWEEP, TRIALS, MLFLOW, NOTE),
    ),
    Figure(
        name="val/swd_floor",
        title="swd floor",
        meaning="the same distance between two samples of real tokens",
        lower_is_better=True,
        form=".3f",
        unit="standard deviations of the tokens",
        places=(CARD, NOTE),
        objective=False,
    ),
    Figure(
        name="val/mmd",
        title="mmd",
        meaning="squared maximum mean discrepancy to real tokens, unbiased",
        lower_is_better=True,
        form=".4f",
        floor="val/mmd_floor",
        places=(EVALUATE, CARD),
    ),
    Figure(
        name="val/mmd_floor",
        title="mmd floor",
        meaning="the same discrepancy between two samples of real tokens: 0 on average",
        lower_is_better=True,
        form=".4f",
        places=(CARD,),
        objective=False,
    ),
    Figure(
        name="val/cosine",
        title="cosine",
        meaning="cosine of reconstructed and real tokens",
        lower_is_better=False,
        form=".3f",
        places=(EVALUATE, CARD, TRAIN, SWEEP, TRIALS, MLFLOW),
    ),
    Figure(
        name="val/cosine_centered",
        title="centred",
        meaning="the same cosine with the mean token removed",
        lower_is_better=False,
        form=".3f",
        places=(EVALUATE, CARD),
    ),
    Figure(
        name="val/knn_overlap",
        title="kNN",
        meaning="share of an image's 10 nearest images that stay the nearest after reconstruction",
        lower_is_better=False,
        form=".1%",
        floor="val/knn_overlap_halves",
        places=(EVALUATE, CARD, MLFLOW),
        needs=NEIGHBOURS,
    ),
    Figure(
        name="val/knn_overlap_halves",
        title="kNN of halves",
        meaning="the same share between two halves of each image's real tokens",
        lower_is_better=False,
        form=".1%",
        places=(CARD,),
        objective=False,
        needs=NEIGHBOURS,
    ),
    Figure(
        name="val/cka",
        title="CKA",
        meaning="alignment (CKA) of reconstructed and real images",
        lower_is_better=False,
        form=".3f",
        floor="val/cka_halves",
        places=(EVALUATE, CARD),
        needs=NEIGHBOURS,
    ),
    Figure(
        name="val/cka_halves",
        title="CKA of halves",
        meaning="the same alignment between two halves of each image's real tokens",
        lower_is_better=False,
        form=".3f",
        places=(CARD,),
        objective=False,
        needs=NEIGHBOURS,
    ),
    Figure(
        name="val/probe_accuracy",
        title="probe",
        meaning="accuracy of a linear probe on reconstructed tokens",
        lower_is_better=False,
        form=".1%",
        places=(EVALUATE, CARD, SWEEP),
        needs=LABELS,
    ),
    Figure(
        name="val/probe_kept",
        title="probe kept",
        meaning="the probe's accuracy as a share of its accuracy on real tokens",
        lower_is_better=False,
        form=".1%",
        places=(EVALUATE, CARD, TRAIN, SWEEP, MLFLOW),
        needs=LABELS,
    ),
    Figure(
        name="val/reader_accuracy",
        title="reader",
        meaning="accuracy of the same probe, not retrained, on compressed tokens",
        lower_is_better=False,
        form=".1%",
        floor="val/reader_sampled",
        places=(EVALUATE, CARD),
        needs=LABELS,
    ),
    Figure(
        name="val/reader_kept",
        title="reader kept",
        meaning="the reader's accuracy as a share of the probe's accuracy on real tokens",
        lower_is_better=False,
        form=".1%",
        places=(CARD, MLFLOW),
        needs=LABELS,
    ),
    Figure(
        name="val/reader_sampled",
        title="reader of samples",
        meaning="accuracy of the reader on one real token per window",
        lower_is_better=False,
        form=".1%",
        places=(CARD,),
        objective=False,
        needs=LABELS,
    ),
)

FIGURES: Mapping[str, Figure] = {figure.name: figure for figure in _ENTRIES}
"""Every figure by name, in the order in which they are shown."""
OBJECTIVES: tuple[str, ...] = tuple(figure.name for figure in _ENTRIES if figure.objective)
"""What objectives and targets may name. A critic's own estimate is never among them: its ruler changes with the
trial."""
JUDGED_ON: tuple[str, str] = ("val/fvu", "val/swd")
"""The figures on which compressors and baselines are compared: error and token-likeness. Lower is better for both."""


def shown_in(place: str) -> tuple[Figure, ...]:
    """Return the figures that a place shows, in order."""
    return tuple(figure for figure in FIGURES.values() if place in figure.places)
