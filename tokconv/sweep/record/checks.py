"""Why a sweep refuses to start or to go on."""

from __future__ import annotations

from typing import Any

from tokconv.config.keys import flatten, to_dict
from tokconv.config.sources import MAY_CHANGE
from tokconv.errors import SpecError, SweepError
from tokconv.evaluation.figure import LABELS, NEIGHBOURS, SAMPLES, VLM
from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.heldout import held_out
from tokconv.evaluation.likeness import enough_images
from tokconv.evaluation.protocol import MIN_NEIGHBOUR_IMAGES, other_protocol
from tokconv.evaluation.purposes import NEEDS, PURPOSES
from tokconv.evaluation.readers import can_be_read, count_labelled
from tokconv.store.reader import TokenStore
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import read_events
from tokconv.sweep.spec.file import spec_to_dict
from tokconv.sweep.spec.schema import Spec

READ = {"val/reader_kept", "val/adapted_kept"}
"""Shares of what the frozen reader recognises from real tokens, which on very few held-out images may be none."""


def figures_of(spec: Spec, store: TokenStore) -> set[str]:
    """Return the figures that a store can have, with the model that the spec names."""
    images = held_out(store)
    met = {
        "": True,
        LABELS: count_labelled(store, images) > 0,
        NEIGHBOURS: len(images) >= MIN_NEIGHBOUR_IMAGES,
        SAMPLES: enough_images(store),
        VLM: spec.vlm is not None,
    }
    known = {figure.name for figure in FIGURES.values() if met[figure.needs]}
    return known if can_be_read(store, images) else known - READ


def check_figures(spec: Spec, store: TokenStore) -> None:
    """Raise SpecError if a spec judges by a figure that needs labels or more images than the store has."""
    known = figures_of(spec, store)
    if missing := next((name for name in (*spec.judged_by, *spec.rules.named) if name not in known), None):
        if FIGURES[missing].needs == VLM:
            raise SpecError(f"{missing}: needs {NEEDS[VLM]}")
        images = held_out(store)
        labelled = count_labelled(store, images)
        unread = ", none of which a reader recognises from real tokens" if labelled and missing in READ else ""
        raise SpecError(
            f"{missing}: needs {NEEDS[FIGURES[missing].needs]}; {store.path} has {len(store.train_indices)} training "
            f"and {len(images)} held-out images, {labelled} of these with labels{unread}; judge by val/fvu and "
            "val/swd, or encode other images"
        )
    for name in spec.rules.champions or ():
        if spec.rules.rule(name).figure is None and PURPOSES[name].figure(known) is None:
            raise SpecError(f"champions.{PURPOSES[name].missing}; remove this purpose, or encode images that have it")


def check_same_experiment(spec: Spec, before: Spec) -> None:
    """Raise SweepError if a resumed sweep asks another question.

    Its budget and resources may change, its ranges may be narrower, and its data may be elsewhere (`check_same_store`
    finds out whether they are the same).
    """
    narrower = spec.search.keys() == before.search.keys() and all(
        found.within(before.search[key]) for key, found in spec.search.items()
    )
    for key in ("base", "objectives", "constraints", "search", "vlm"):
        same = _lasting(spec) == _lasting(before) if key == "base" else key == "search" and narrower
        if getattr(spec, key) != getattr(before, key) and not same:
            hint = "search the same keys in the same or narrower ranges, " if key == "search" else ""
            raise SweepError(
                f"{key}: differs from the sweep to resume; {hint}give it another name, or restore what it was: "
                f"{spec_to_dict(before)[key]}"
            )


def _lasting(spec: Spec) -> dict[str, Any]:
    """Return the base config without the keys that a resumed sweep may change."""
    return {key: value for key, value in flatten(to_dict(spec.base_config())).items() if key not in MAY_CHANGE}


def trained_on(directory: SweepDirectory) -> str | None:
    """Return the fingerprint of the store that a sweep's trials were trained on; None before its first start."""
    started = [event for event, _ in read_events(directory.events) if event["event"] == "sweep_started"]
    return started[-1].get("store_fingerprint") if started else None


def check_same_store(directory: SweepDirectory, store: TokenStore) -> None:
    """Raise SweepError if a sweep's trials were trained on other tokens: new ones cannot share a front with them."""
    if trained_on(directory) not in (None, store.fingerprint):
        raise SweepError(
            f"{directory.path}: its trials were trained on other tokens than {store.path} holds; restore its images "
            "or its store, or start it again without --resume"
        )


def check_same_protocol(directory: SweepDirectory) -> None:
    """Raise SweepError if a sweep's trials were judged by another protocol: new ones cannot share a front with them."""
    for event, _ in read_events(directory.events):
        if event["event"] == "sweep_started" and (difference := other_protocol(event)):
            raise SweepError(
                f"{directory.path}: {difference}; resume it with the tokconv that started it, or start it again "
                "without --resume"
            )
