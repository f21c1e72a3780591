"""What every test needs."""

import os

import torch

# Workers share the cores: with two threads each they would wait on one another (measured: five times slower).
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
