"""The registry of figures: what each held-out figure is called, what it means, and where it is shown.

Everything that shows, names or compares a figure reads it from here: tables, plots, the page of a sweep, model cards,
MLflow's columns, the objectives and targets of a spec. To add a figure, add its entry here and compute it in
one of the modules that `evaluator.py` names; a figure that changes what is judged also needs a new `protocol.PROTOCOL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokconv.evaluation.figure import (
    CARD,
    EVALUATE,
    LABELS,
    MLFLOW,
    NEIGHBOURS,
    NOTE,
    SAMPLES,
    SWEEP,
    TRAIN,
    TRIALS,
    VLM,
    Figure,
)

VLM_KL, VLM_AGREEMENT = "vlm/kl", "vlm/agreement"
"""The figures that the evaluation protocol does not compute: `tokconv/exports/answers/judge.py` does."""


def _two_sample(name: str, title: str, meaning: str, places: tuple[str, ...]) -> tuple[Figure, Figure]:
    """Return the entries of a two-sample test and of its floor."""
    kind: dict[str, Any] = {"lower_is_better": True, "form": ".3f", "needs": SAMPLES, "every_epoch": False}
    return (
        Figure(name=name, title=title, meaning=meaning, floor=f"{name}_floor", places=places, **kind),
        Figure(
            name=f"{name}_floor",
            title=f"{title} floor",
            meaning="the same AUC between two samples of real tokens: 0.5 on average",
            places=(CARD,),
            objective=False,
            **kind,
        ),
    )


def _accuracy(name: str, title: str, meaning: str, *, places: tuple[str, ...], **more: Any) -> Figure:
    """Return the entry of an accuracy, which needs labels."""
    kind: dict[str, Any] = {"lower_is_better": False, "form": ".1%", "needs": LABELS}
    return Figure(name=name, title=title, meaning=meaning, places=places, **kind, **more)


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
    *_two_sample(
        "val/auc_token",
        "AUC token",
        "AUC of a fresh classifier of single tokens, compressed against real: 0.5 cannot tell, 1 always can",
        (EVALUATE, CARD, TRAIN, SWEEP, TRIALS, MLFLOW, NOTE),
    ),
    *_two_sample(
        "val/auc_token_white",
        "AUC white",
        "the same AUC on whitened tokens, where directions of small variance count as much",
        (EVALUATE, CARD, TRAIN, MLFLOW),
    ),
    *_two_sample(
        "val/auc_grid",
        "AUC grid",
        "AUC of a fresh classifier of whole k x k grids, compressed against real",
        (EVALUATE, CARD, TRAIN, MLFLOW),
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
    _accuracy(
        "val/probe_accuracy",
        "probe",
        "accuracy of a linear probe on reconstructed tokens",
        places=(EVALUATE, CARD, SWEEP),
    ),
    _accuracy(
        "val/probe_kept",
        "probe kept",
        "the probe's accuracy as a share of its accuracy on real tokens",
        places=(EVALUATE, CARD, TRAIN, SWEEP, MLFLOW),
    ),
    _accuracy(
        "val/reader_accuracy",
        "reader",
        "accuracy on compressed tokens of an attention reader that was trained on real tokens",
        floor="val/reader_sampled",
        places=(EVALUATE, CARD, SWEEP),
    ),
    _accuracy(
        "val/reader_kept",
        "reader kept",
        "the attention reader's accuracy as a share of its accuracy on all real tokens",
        places=(EVALUATE, CARD, TRAIN, MLFLOW),
    ),
    _accuracy(
        "val/reader_sampled",
        "reader of samples",
        "accuracy of the attention reader on one real token per window",
        places=(CARD,),
        objective=False,
    ),
    _accuracy(
        "val/adapted_accuracy",
        "adapted",
        "accuracy of the same reader trained on compressed tokens",
        places=(EVALUATE, CARD, SWEEP),
        every_epoch=False,
    ),
    _accuracy(
        "val/adapted_kept",
        "adapted kept",
        "the adapted reader's accuracy as a share of the frozen reader's on all real tokens",
        places=(CARD, TRAIN, MLFLOW),
        every_epoch=False,
    ),
    _accuracy(
        "val/linear_reader_accuracy",
        "linear reader",
        "accuracy of the probe, not retrained, on compressed tokens",
        floor="val/linear_reader_sampled",
        places=(EVALUATE, CARD),
    ),
    _accuracy(
        "val/linear_reader_kept",
        "linear kept",
        "the linear reader's accuracy as a share of the probe's accuracy on real tokens",
        places=(CARD,),
    ),
    _accuracy(
        "val/linear_reader_sampled",
        "linear reader of samples",
        "accuracy of the linear reader on one real token per window",
        places=(CARD,),
        objective=False,
    ),
    Figure(
        name=VLM_KL,
        title="VLM KL",
        meaning="divergence of a frozen vision-language model's next-token distribution from that of all tokens",
        lower_is_better=True,
        form=".4f",
        unit="nats",
        places=(CARD, SWEEP, TRIALS, TRAIN, MLFLOW, NOTE),
        needs=VLM,
        every_epoch=False,
    ),
    Figure(
        name=VLM_AGREEMENT,
        title="VLM agrees",
        meaning="share of its answers that begin with the same tokens as from all tokens",
        lower_is_better=False,
        form=".1%",
        places=(CARD, SWEEP, TRIALS, TRAIN, MLFLOW),
        needs=VLM,
        every_epoch=False,
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
