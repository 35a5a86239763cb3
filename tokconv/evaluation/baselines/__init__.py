"""Closed-form compressors with their best decoders: what a learned compressor starts from and has to beat.

At any output grid k from 1 to G, fitted on standardised tokens of the training split, stored beside the token store:

    pooling             average of each window
    max_norm            strided selection: the token of each window that is furthest from the mean token
    bilinear            the grid resized to k x k with bilinear interpolation, as LLaVA-style resamplers do
    pixel_shuffle       space-to-depth of the window and a linear layer that was never trained
    tome                token merging, Bolya et al. 2022
    prumerge            token selection and merging after Shang et al. 2024
    window_pca          the C leading principal components of each window: the least error any linear compressor of
                        that window can reach, in coordinates that look nothing like tokens
    matched_window_pca  the same components in coordinates with the tokens' own mean and covariance: the same error,
                        and the closest a linear map comes to token statistics

`linear.py`, `pca.py` and `selection.py` compress window by window; their decoder is the least-squares affine map from a
cell to its whole window. `merging.py` answers tokens that are not on a grid, with an assignment map beside them.
`fitting.py` fits all of them in one pass over the tokens and keeps the result.
"""

from tokconv.evaluation.baselines.fitting import BASELINES, FIT_VERSION, Fitted, fitted_baselines, linear_codecs
from tokconv.evaluation.baselines.linear import LinearCodec
from tokconv.store.sample import standardised_batches, training_sample

__all__ = [
    "BASELINES",
    "FIT_VERSION",
    "Fitted",
    "LinearCodec",
    "fitted_baselines",
    "linear_codecs",
    "standardised_batches",
    "training_sample",
]
