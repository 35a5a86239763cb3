"""What compression costs a vision-language model: answers kept, and how far its next-token distribution moves.

`tasks.py` lists questions about images, some with an exact answer. `model.py` lets a model answer them from any tokens,
`methods.py` says which tokens it may get, `measure.py` compares the answers of a method with those from all tokens, and
`run.py` does so for every method, resumable. `figures.py`, `table.py` and `plot.py` are what a user sees.
"""
