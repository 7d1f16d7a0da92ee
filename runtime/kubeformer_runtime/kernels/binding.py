"""NativeModel: the C++ library's functions as one Python object. Tensors go in as addresses, nothing is copied twice.

Structures mirror csrc/model.h field by field.
"""

import ctypes
from array import array
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

BLOCK_SIZE = 16  # tokens of a block of the cache
INT, POINTER = ctypes.c_int32, ctypes.c_void_p


class WeightType(IntEnum):
    """How weights are stored; see csrc/linear.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    INT4 = 3


class Matrix(IntEnum):
    """A layer's matrices, and the head."""

    QKV = 0
    OUTPUT = 1
    GATE_UP = 2
    DOWN = 3
    HEAD = 4


class Vector(IntEnum):
    """A layer's norms, and the final one."""

    ATTENTION_NORM = 0
    MLP_NORM = 1
    Q_NORM = 2
    K_NORM = 3
    FINAL_NORM = 4


class ConfigStruct(ctypes.Structure):
    """Config of model.h."""

    _fields_ = [
        *((name, INT) for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "head_width", "mlp_width")),
        *((name, INT) for name in ("max_length", "type", "half", "qk_norm", "num_blocks", "threads", "alone_bytes")),
        ("norm_epsilon", ctypes.c_float),
    ]


class StepStruct(ctypes.Structure):
    """Step of model.h."""

    _fields_ = [
        ("rows", INT),
        ("samples", INT),
        *((name, POINTER) for name in ("tokens", "positions", "slots", "table_starts", "tables", "sample_rows")),
        ("adapters", POINTER),
        ("logits", POINTER),
    ]


@dataclass(frozen=True, slots=True)
class NativeConfig:
    """What the library has to know of a model; see Config of model.h."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    max_length: int
    weight_type: WeightType
    half: bool  # cache and embedding are bfloat16, else float32
    qk_norm: bool
    num_blocks: int
    threads: int
    alone_bytes: int  # a step that reads less than this in weights, times its rows, runs in one thread
    norm_epsilon: float

    def struct(self) -> ConfigStruct:
        """For the library."""
        values = [getattr(self, name) for name in self.__slots__]
        return ConfigStruct(*values)


class NativeModel:
    """A model in the library's memory: packed weights and the paged cache. `close` frees all of it at once."""

    def __init__(self, library: ctypes.CDLL, config: NativeConfig, embedding_VD: Tensor, turns_TW: Tensor) -> None:
        """`embedding_VD` in bfloat16 or float32 as `config.half` says; `turns_TW` float32, cos and sin alternating.

        Raises:
            MemoryError: the cache does not fit.
        """
        self._library = declare(library)
        self.config = config
        self._embedding, self._turns = (
            embedding_VD.contiguous(),
            turns_TW.contiguous(),
        )  # the library only points to them
        self._model: int | None = self._library.kf_create(ctypes.byref(config.struct()))
        if not self._model:
            raise MemoryError(f"no memory for a KV cache of {config.num_blocks} blocks")
        self._library.kf_set_embedding(self._model, self._embedding.data_ptr())
        self._library.kf_set_rope(self._model, self._turns.data_ptr())

    def close(self) -> None:
        """Free weights and cache. Twice is harmless."""
        if self._model:
            self._library.kf_destroy(self._model)
        self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def set_matrix(
        self, layer: int, which: Matrix, kind: WeightType, weight: Tensor, bias: Tensor | None = None
    ) -> None:
        """Pack a matrix (out, in) as `kind`, quantised on the way where that is an integer."""
        weight = weight.contiguous()
        if weight.dtype not in (torch.float32, torch.bfloat16):
            weight = weight.float()
        wide = None if bias is None else bias.float().contiguous()
        rows, cols = weight.shape
        half = weight.dtype == torch.bfloat16
        address = None if wide is None else wide.data_ptr()
        arguments = (layer, which, kind, rows, cols, weight.data_ptr(), half, address)
        self._check(self._library.kf_set_matrix(self._model, *arguments))

    def set_vector(self, layer: int, which: Vector, values: Tensor) -> None:
        """A norm's weights."""
        wide = values.float().contiguous()
        self._check(self._library.kf_set_vector(self._model, layer, which, wide.data_ptr(), len(wide)))

    def set_window(self, layer: int, tokens: int) -> None:
        """A token of this layer sees so many, itself among them."""
        self._check(self._library.kf_set_window(self._model, layer, tokens))

    def set_adapter(self, slot: int, layer: int, which: Matrix, a_RI: Tensor, b_OR: Tensor) -> None:
        """A LoRA adapter's part of one matrix, scale included; copied."""
        a, b = a_RI.float().contiguous(), b_OR.float().contiguous()
        sizes = (slot, layer, which, len(a), len(b), a.shape[1])
        self._check(self._library.kf_set_adapter(self._model, *sizes, a.data_ptr(), b.data_ptr()))

    def remove_adapter(self, slot: int) -> None:
        """Free what was set for a slot, which may be used again."""
        self._check(self._library.kf_remove_adapter(self._model, slot))

    def step(
        self,
        tokens: list[int],
        positions: list[int],
        slots: list[int],
        table_starts: list[int],
        tables: "array[int]",
        sample_rows: list[int],
        adapters: list[int] | None = None,
    ) -> Tensor:
        """One step; float32 logits (S, V). `table_starts`: for each row, where in `tables` its block table begins.

        `adapters`: the slot of each row's adapter, -1 for none.
        """
        logit_SV = torch.empty(len(sample_rows), self.config.vocabulary)
        arrays = [array("i", values) for values in (tokens, positions, slots, table_starts)]
        arrays += [tables, array("i", sample_rows)]
        if adapters is not None:
            arrays.append(array("i", adapters))
        addresses = [values.buffer_info()[0] for values in arrays]
        if adapters is None:
            addresses.append(0)
        step = StepStruct(len(tokens), len(sample_rows), *addresses, logit_SV.data_ptr())
        self._check(self._library.kf_step(self._model, ctypes.byref(step)))
        return logit_SV

    @property
    def weight_bytes(self) -> int:
        """Of all packed matrices."""
        return int(self._library.kf_weight_bytes(self._model))

    @property
    def cache_bytes(self) -> int:
        """Of the KV cache."""
        return int(self._library.kf_cache_bytes(self._model))

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise MemoryError("the kernels ran out of memory")


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the library's functions take and give."""
    library.kf_create.restype = POINTER
    library.kf_create.argtypes = [POINTER]
    library.kf_destroy.restype = None
    library.kf_destroy.argtypes = [POINTER]
    library.kf_set_matrix.argtypes = [POINTER, INT, INT, INT, INT, INT, POINTER, INT, POINTER]
    library.kf_set_vector.argtypes = [POINTER, INT, INT, POINTER, INT]
    library.kf_set_window.argtypes = [POINTER, INT, INT]
    for name in ("kf_set_embedding", "kf_set_rope"):
        getattr(library, name).argtypes = [POINTER, POINTER]
        getattr(library, name).restype = None
    library.kf_set_adapter.argtypes = [POINTER, INT, INT, INT, INT, INT, INT, POINTER, POINTER]
    library.kf_remove_adapter.argtypes = [POINTER, INT]
    library.kf_step.argtypes = [POINTER, POINTER]
    for name in ("kf_weight_bytes", "kf_cache_bytes"):
        getattr(library, name).argtypes = [POINTER]
        getattr(library, name).restype = ctypes.c_int64
    library.kf_product.argtypes = [INT, INT, INT, INT, POINTER, POINTER, POINTER, INT, INT]
    library.kf_product.restype = ctypes.c_double
    library.kf_bandwidth.argtypes = [ctypes.c_int64, INT, INT]
    library.kf_bandwidth.restype = ctypes.c_double
    return library


def product(
    library: ctypes.CDLL, kind: WeightType, x_MK: Tensor, weight_NK: Tensor, *, threads: int = 1, repeat: int = 1
) -> tuple[Tensor, float]:
    """x · weightᵀ by the kernels, float32 (M, N), and the seconds that one took: for tests and benchmarks."""
    (m, k), n = x_MK.shape, len(weight_NK)
    x, weight = x_MK.float().contiguous(), weight_NK.float().contiguous()
    y_MN = torch.empty(m, n)
    declare(library)
    seconds = library.kf_product(kind, m, n, k, x.data_ptr(), weight.data_ptr(), y_MN.data_ptr(), threads, repeat)
    if seconds < 0:
        raise MemoryError("the kernels ran out of memory")
    return y_MN, seconds


def measured_bandwidth(library: ctypes.CDLL, *, threads: int, megabytes: int = 512, repeat: int = 5) -> float:
    """Bytes a second that the threads together read from memory, the best of some tries."""
    return float(declare(library).kf_bandwidth(megabytes << 20, threads, repeat))
