"""The engine's own CPU kernels: a small C++ library (csrc/), built once for the CPU at hand, called through ctypes.

library = load_library()          # kernels.library: prebuilt, from the cache, or compiled now
native = NativeModel(library, ...)  # kernels.binding: weights packed, steps computed
"""
