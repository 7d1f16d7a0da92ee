"""python -m kubeformer_runtime.server: see main.py, which this starts once the environment is right.

PyTorch's threads wait for each other by spinning. With another busy process on the same cores that turns a step of
50 ms into one of 2 s, so they go to sleep after a short while; on idle cores a step gets 4 ms longer. libgomp reads the
variable when PyTorch is loaded, hence before any other import.

Nothing that imports make is garbage: without its collector Python is through them 0.2 s sooner, and with all of it
frozen the collector has less to look through for ever after.
"""

import gc
import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")
gc.disable()

from kubeformer_runtime.server.main import main  # noqa: E402 - see above

gc.freeze()
gc.enable()
main()
