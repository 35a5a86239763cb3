"""What the registry knows about a figure: its name, its meaning, its better direction, and where it is shown."""

from __future__ import annotations

from dataclasses import dataclass

EVALUATE, CARD, TRAIN, SWEEP, TRIALS, MLFLOW, NOTE = "evaluate", "card", "train", "sweep", "trials", "mlflow", "note"
"""Places that show figures: `tokconv evaluate`, the model card, `tokconv train`, the result table of a sweep, the table
of all trials on its page, the columns of MLflow's runs, and the description of an MLflow run."""
LABELS, NEIGHBOURS, SAMPLES, VLM = "labels", "neighbours", "samples", "vlm"
"""What a figure requires: images with labels, enough held-out images to have neighbours, enough training and held-out
images for two-sample tests, or a vision-language model that the spec of a sweep names."""


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
        needs: `LABELS`, `NEIGHBOURS`, `SAMPLES`, `VLM`, or "" if it exists for every store.
        every_epoch: whether trials have it after every epoch; the others exist after the last one only, because they
            train networks or ask a large one.
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
