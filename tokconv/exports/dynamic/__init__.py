"""Dynamic compression: the compressors of one sweep, and for every image the smallest grid that is good enough.

spectrum      what of an image's tokens the choice is made from
predictor     from there to the error at every grid, and the choice
compressor    the compressors of a folder with their predictor: `load_dynamic`
ragged        tokens of images with different grids, in one file
fit           `fit_dynamic`: measure, fit, judge on images never used for fitting, write
compare       tokens an image against the best fixed grids at equal error
plot          the picture of it
"""
