"""Faults for the processes of a sweep: Python imports this when its directory is on PYTHONPATH.

TOKCONV_FAULT names faults and the learning rates at which a training step has them: `hang:0.9,oom:0.7`, or from which
up to 1: `oom:0.5+`. TOKCONV_HANG names an output grid and a step, counted from 0, at which training hangs: `8:9`.
TOKCONV_START is how many seconds a `TorchTrainer` has for its first report, for which its processes start, in place of
`resources.trial_timeout`: that can then be short.
"""

import os
import time

from when_imported import when_imported

FAULTS = [fault.split(":") for fault in os.environ.get("TOKCONV_FAULT", "").split(",") if fault]
HANG = [int(number) for number in os.environ.get("TOKCONV_HANG", "").split(":") if number]
START = float(os.environ.get("TOKCONV_START", "0"))


def _fault(rate):
    for kind, at in FAULTS:
        low = float(at.rstrip("+"))
        if rate == low or (at.endswith("+") and low <= rate <= 1):
            return kind
    return None


def _break_steps(module):
    import torch

    step = module.Trainer.step

    def faulty(self, tokens, number, images):
        kind = _fault(self.config.training.learning_rate)
        if [self.config.model.compressor.output_grid_size, number] == HANG:
            time.sleep(3600)
        if kind is not None and number > 0:
            if kind == "hang":
                time.sleep(3600)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return step(self, tokens, number, images)

    module.Trainer.step = faulty


def _wait_for_start(module):
    class Patient(module.Queue):
        started = False

        def get(self, block=True, timeout=None):
            found = super().get(block, timeout if self.started else START)
            self.started = True
            return found

    living_queue = module._living_queue

    def for_the_next_trial():
        queue = living_queue()
        queue.started = False
        return queue

    module.Queue, module._living_queue = Patient, for_the_next_trial


if FAULTS or HANG:
    when_imported("tokconv.training.step", _break_steps)
if START:
    when_imported("tokconv.sweep.trials.trainer", _wait_for_start)
