"""What the process imports from which others are forked; no thread starts here, which a fork would lose."""

import gc
import os

import matplotlib.pyplot
import timm
import torchvision

from tests import prove
from tests.torture import child

LOADED = (matplotlib.pyplot, timm, torchvision, prove, child)

assert len(os.listdir("/proc/self/task")) == 1, "a thread was started, which forks would not have"
gc.collect()
gc.freeze()  # the end of a fork would otherwise look through all of these objects: a second of CPU each time
