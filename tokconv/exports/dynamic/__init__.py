"""Dynamic compression: the compressors of one sweep, and for each image the smallest grid that is good enough.

spectrum      the features of an image's tokens that the choice is based on
predictor     from these features to the error at every grid, and the choice
compressor    the compressors of a folder with their predictor: `load_dynamic`
ragged        tokens of images with different grids, in one file
fit           `fit_dynamic`: measure, fit, evaluate on images never used for fitting, write
compare       mean tokens per image against the best fixed grids at equal error
plot          a plot of that comparison
"""
