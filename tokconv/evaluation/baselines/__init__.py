"""Compressors that are not trained, with their best decoders: what a learned compressor has to beat.

They exist at any output grid k from 1 to G, are fitted on standardised tokens of the training split, and are stored
next to the token store. `registry.py` lists them. `linear.py`, `pca.py` and `selection.py` compress window by window;
their decoder is the least-squares affine map from a cell to its whole window. `merging.py` returns tokens that are not
on a grid, with an assignment map. `fits.py` fits these in one pass over the tokens each, pooling and both PCAs
together, and `fitting.py` stores the result. `factorisation.py` sees the whole image, and `downsampled.py` reads what
the tower made of a smaller image. `codecs.py` returns any of them by its name. Each is fitted when it is asked for.
"""
