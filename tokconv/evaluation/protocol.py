"""The constants of the evaluation protocol: its version, and every size and seed that a held-out figure depends on.

A change of anything here, or of what a figure computes, needs a new PROTOCOL. Figures of different protocols are not
comparable, and nothing compares them without a note.

    1  fvu, cosines, swd, probe
    2  also mmd, knn_overlap, cka, reader; the tokens that swd compares are drawn for all images at once
    3  also auc_token, auc_token_white, auc_grid, auc_token_quick, adapted; reader is an attention reader, and the
       linear reader of protocol 2 is linear_reader
    4  the ridge of probe and linear_reader is best for images that are left out, where it was the least one
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokconv.errors import CheckpointError

PROTOCOL = 4
MAX_IMAGES = 2048
"""Held-out images that are evaluated."""
MAX_TOKENS = 8192
"""Compressed tokens that swd compares."""
NUM_PROJECTIONS = 512
MAX_MMD_TOKENS = 4096
MAX_FEATURES = 65_536
"""Largest N * C at which images are compared as they are; above it they are sketched to SKETCH_FEATURES."""
SKETCH_FEATURES = 16_384
NEIGHBOURS = 10
MIN_NEIGHBOUR_IMAGES = 12
"""With fewer held-out images there are no figures of neighbours and of alignment: among 11 images each one is among the
10 nearest of every other."""
MIN_TEST_IMAGES = 20
"""With fewer training or held-out images there are no two-sample tests: the AUC of 20 grids against 20 has a standard
error of 0.09 by itself."""
MAX_TEST_IMAGES = 1536
"""Training images, and held-out images, whose compressed tokens the two-sample tests and the adapted reader see."""
MAX_TEST_VALUES = 2**25
"""Their largest number of values, images * K * C: 134 MB in float32. Eight such samples are in memory at a time."""
SEED = 20_001


def protocol_of(state: Mapping[str, Any]) -> int:
    """Return the protocol of the figures of a checkpoint, an export or an event; version 1 was not written to files."""
    return int(state.get("protocol", 1))


def other_protocol(state: Mapping[str, Any]) -> str:
    """Return a sentence if these figures are of another protocol than this one, else ""."""
    found = protocol_of(state)
    if found == PROTOCOL:
        return ""
    return f"its figures are of evaluation protocol {found}, this tokconv has {PROTOCOL}, and the two do not compare"


def check_resumable(state: Mapping[str, Any], path: Path) -> None:
    """Refuse to resume a run if its history would then hold figures of two protocols.

    Raises:
        CheckpointError: the state at `path` has figures of another protocol.
    """
    if difference := other_protocol(state):
        raise CheckpointError(f"{path}: {difference}; go on with the tokconv that started this run, or start a new one")
