"""Memory that was freed goes back to the system: the allocator of glibc would keep it for later."""

import ctypes
import gc


def give_back_memory() -> None:
    """Collect garbage and let the allocator return what is free; where it cannot, nothing happens."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
