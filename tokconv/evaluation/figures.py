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
LABELS, NEIGHBOURS, SAMPLES = "labels", "neighbours", "samples"
"""What a figure requires of its store: images with labels, enough held-out images to have neighbours, or enough
training and held-out images for two-sample tests."""


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
        needs: `LABELS`, `NEIGHBOURS`, `SAMPLES`, or "" if it exists for every store.
        every_epoch: whether trials have it after every epoch; the others exist after the last one only, because they
            train networks.
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
    every_epoch: bool = True

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
        name="val/auc_token",
        title="AUC token",
        meaning="AUC of a fresh classifier of single tokens, compressed against real: 0.5 cannot tell, 1 always can",
        lower_is_better=True,
        form=".3f",
        floor="val/auc_token_floor",
        places=(EVALUATE, CARD, TRAIN, SWEEP, TRIALS, MLFLOW, NOTE),
        needs=SAMPLES,
        every_epoch=False,
    ),
    Figure(
        name="val/auc_token_floor",
        title="AUC token floor",
        meaning="the same AUC between two samples of real tokens: 0.5 on average",
        lower_is_better=True,
        form=".3f",
        places=(CARD,),
        objective=False,
        needs=SAMPLES,
        every_epoch=False,
    ),
    Figure(
        name="val/auc_token_white",
        title="AUC white",
        meaning="the same AUC on whitened tokens, where directions of small variance count as much",
        lower_is_better=True,
        form=".3f",
        floor="val/auc_token_white_floor",
        places=(EVALUATE, CARD, TRAIN, MLFLOW),
        needs=SAMPLES,
        every_epoch=False,
    ),
    Figure(
        name="val/auc_token_white_floor",
        title="AUC white floor",
        meaning="the same AUC between two samples of real tokens: 0.5 on average",
        lower_is_better=True,
        form=".3f",
        places=(CARD,),
        objective=False,
        needs=SAMPLES,
        every_epoch=False,
    ),
    Figure(
        name="val/auc_grid",
        title="AUC grid",
        meaning="AUC of a fresh classifier of whole k x k grids, compressed against real",
        lower_is_better=True,
        form=".3f",
        floor="val/auc_grid_floor",
        places=(EVALUATE, CARD, TRAIN, MLFLOW),
        needs=SAMPLES,
        every_epoch=False,
    ),
    Figure(
        name="val/auc_grid_floor",
        title="AUC grid floor",
        meaning="the same AUC between two samples of real tokens: 0.5 on average",
        lower_is_better=True,
        form=".3f",
        places=(CARD,),
        objective=False,
        needs=SAMPLES,
        every_epoch=False,
    ),
    Figure(
        name="val/auc_token_quick",
        title="AUC quick",
        meaning="AUC of a smaller classifier of single tokens that learns on half of the held-out images",
        lower_is_better=True,
        form=".3f",
        places=(CARD,),
        needs=SAMPLES,
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
        meaning="accuracy on compressed tokens of an attention reader that was trained on real tokens",
        lower_is_better=False,
        form=".1%",
        floor="val/reader_sampled",
        places=(EVALUATE, CARD, SWEEP),
        needs=LABELS,
    ),
    Figure(
        name="val/reader_kept",
        title="reader kept",
        meaning="the attention reader's accuracy as a share of its accuracy on all real tokens",
        lower_is_better=False,
        form=".1%",
        places=(EVALUATE, CARD, TRAIN, MLFLOW),
        needs=LABELS,
    ),
    Figure(
        name="val/reader_sampled",
        title="reader of samples",
        meaning="accuracy of the attention reader on one real token per window",
        lower_is_better=False,
        form=".1%",
        places=(CARD,),
        objective=False,
        needs=LABELS,
    ),
    Figure(
        name="val/adapted_accuracy",
        title="adapted",
        meaning="accuracy of the same reader trained on compressed tokens",
        lower_is_better=False,
        form=".1%",
        places=(EVALUATE, CARD, SWEEP),
        needs=LABELS,
        every_epoch=False,
    ),
    Figure(
        name="val/adapted_kept",
        title="adapted kept",
        meaning="the adapted reader's accuracy as a share of the frozen reader's on all real tokens",
        lower_is_better=False,
        form=".1%",
        places=(CARD, TRAIN, MLFLOW),
        needs=LABELS,
        every_epoch=False,
    ),
    Figure(
        name="val/linear_reader_accuracy",
        title="linear reader",
        meaning="accuracy of the probe, not retrained, on compressed tokens",
        lower_is_better=False,
        form=".1%",
        floor="val/linear_reader_sampled",
        places=(EVALUATE, CARD),
        needs=LABELS,
    ),
    Figure(
        name="val/linear_reader_kept",
        title="linear kept",
        meaning="the linear reader's accuracy as a share of the probe's accuracy on real tokens",
        lower_is_better=False,
        form=".1%",
        places=(CARD,),
        needs=LABELS,
    ),
    Figure(
        name="val/linear_reader_sampled",
        title="linear reader of samples",
        meaning="accuracy of the linear reader on one real token per window",
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
