"""What holds for all tests: one thread for each computation, in this process and its children.

On a busy machine threads that wait for each other cost eight times their work.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
