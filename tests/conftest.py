"""What all tests share: no deadline per example, one thread, sleeping OpenMP threads, and a working Ctrl-C."""

from __future__ import annotations

import os
import signal

# Before torch loads. Spinning OpenMP threads of one process starve the other processes on the same cores, and tests
# start many: five training steps took 192 s beside one of them and take 12 s this way.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hypothesis import settings

settings.register_profile("tokconv", deadline=None, max_examples=50)
settings.load_profile("tokconv")
torch.set_num_threads(1)
# A developer's own tracking server must not receive what tests track.
os.environ.pop("MLFLOW_TRACKING_URI", None)
# Shells start what runs in the background with it ignored, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
