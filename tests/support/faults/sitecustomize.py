"""Faults for the processes of a sweep: Python imports this when its directory is on PYTHONPATH.

TOKCONV_FAULT names the fault and the learning rates above which a training step has it: `hang:0.5`, `oom:0.5`.
"""

import importlib.abc
import importlib.util
import os
import sys
import time

KIND, _, LIMIT = os.environ.get("TOKCONV_FAULT", "").partition(":")


def _break(module):
    import torch

    step = module.Trainer.step

    def faulty(self, tokens, number):
        if self.config.training.learning_rate > float(LIMIT) and number > 0:
            if KIND == "hang":
                time.sleep(3600)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return step(self, tokens, number)

    module.Trainer.step = faulty


class _Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        _break(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "tokconv.training.step":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        spec.loader = _Loader(spec.loader)
        return spec


if KIND:
    sys.meta_path.insert(0, _Finder())
