"""CpuRunner: a decoder with rotary positions on this CPU, by the engine's own kernels (kubeformer_runtime.kernels).

One call into the library computes a whole step of all layers. Same weights and mathematics as llama_runner.py, which
is the oracle of its tests and runs whatever `unsupported` names. Weights are packed, and where asked for quantised,
once at load. A row's result never depends on what else is in the batch, so `numerics: Fast` and `Reproducible` are
the same here.
"""

from array import array
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kubeformer_runtime.engine.batch import Batch
from kubeformer_runtime.engine.lora import LoraAdapter, layer_adapters
from kubeformer_runtime.kernels.binding import BLOCK_SIZE, Matrix, NativeConfig, NativeModel, Vector, WeightType
from kubeformer_runtime.kernels.library import choose_variant, cpu_flags, load_library
from kubeformer_runtime.model.config import LlamaConfig
from kubeformer_runtime.model.layers import interleave, rope_frequencies
from kubeformer_runtime.model.weights import EMBEDDING, HEAD

LANES = 16
ALONE_BYTES = 1 << 20  # a step that reads less in weights, times its rows, is done before a second thread is awake
Quantization = Literal["None", "Int8", "Int4"]


def unsupported(config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernels cannot run this model; None: they can."""
    if device.type != "cpu":
        return f"they run on CPUs, not on {device.type}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"they know no {dtype}"
    if (config.norm, config.positions, config.activation) != ("RMSNorm", "Rotary", "SwiGLU"):
        return f"they know no {config.norm} with {config.positions} positions and {config.activation}"
    return None


def weight_type(quantization: Quantization, dtype: torch.dtype) -> WeightType:
    """How weights are stored."""
    if quantization != "None":
        return WeightType.INT8 if quantization == "Int8" else WeightType.INT4
    return WeightType.BFLOAT16 if dtype == torch.bfloat16 else WeightType.FLOAT32


def block_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """Bytes that a block of the cache takes over all layers."""
    padded = -(-config.head_width // LANES) * LANES
    return config.layers * BLOCK_SIZE * 2 * config.key_value_heads * padded * dtype.itemsize


class CpuRunner:
    """Runs batches; owns weights and cache. `weights` is emptied while they are packed, so nothing is held twice.

    `reload` reads the same weights again, for `restore`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: dict[str, Tensor],
        *,
        num_blocks: int,
        max_length: int | None = None,
        quantization: Quantization = "None",
        threads: int = 1,
        reload: Callable[[], dict[str, Tensor]] | None = None,
        variant: str | None = None,
        alone_bytes: int = ALONE_BYTES,
    ) -> None:
        """`variant` names a way the kernels were compiled (kernels/library.py); None: the best for this CPU.

        Raises:
            LibraryUnavailableError: there are no kernels for this machine.
        """
        self._library = load_library(variant)
        self.kernels = variant or choose_variant(cpu_flags()).name
        self.config = config
        self.block_size = BLOCK_SIZE
        self.num_blocks = num_blocks
        self.dtype, self.device = weights[EMBEDDING].dtype, torch.device("cpu")
        self._length = max_length or config.max_length
        self._type, self._reload = weight_type(quantization, self.dtype), reload
        self._threads, self._alone_bytes = threads, alone_bytes
        self._adapters: dict[str, tuple[int, LoraAdapter]] = {}  # by key: slot in the library, and what is in it
        self._model: NativeModel | None = self._load(weights)

    def _load(self, weights: dict[str, Tensor]) -> NativeModel:
        config = self.config
        position_T1 = torch.arange(self._length, dtype=torch.float32)[:, None]
        angle_TP = position_T1 * rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
        embedding = weights.pop(EMBEDDING)
        padded = -(-config.mlp_width // LANES) * LANES
        native = NativeConfig(
            vocabulary=config.vocabulary_size,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.key_value_heads,
            head_width=config.head_width,
            mlp_width=padded,
            max_length=self._length,
            weight_type=self._type,
            half=self.dtype == torch.bfloat16,
            qk_norm=config.qk_norm,
            num_blocks=self.num_blocks,
            threads=self._threads,
            alone_bytes=self._alone_bytes,
            norm_epsilon=config.norm_epsilon,
        )
        turns_TW = torch.stack((angle_TP.cos(), angle_TP.sin()), dim=-1).flatten(1)
        model = NativeModel(self._library, native, embedding, turns_TW)
        for index in range(config.layers):
            self._load_layer(model, weights, index)
        model.set_vector(0, Vector.FINAL_NORM, weights.pop("model.norm.weight"))
        head = WeightType.INT8 if self._type == WeightType.INT4 else self._type  # of all matrices it suffers most
        model.set_matrix(0, Matrix.HEAD, head, embedding if config.tied_embeddings else weights.pop(HEAD))
        return model

    def _load_layer(self, model: NativeModel, weights: dict[str, Tensor], index: int) -> None:
        config, prefix = self.config, f"model.layers.{index}."

        def take(module: str, kind: str = "weight") -> Tensor | None:
            return weights.pop(f"{prefix}{module}.{kind}", None)

        def both(module: str, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> list[Tensor | None]:
            return [None if (found := take(module, kind)) is None else change(found) for kind in ("weight", "bias")]

        def turned(tensor: Tensor) -> Tensor:
            return interleave(tensor, config.head_width)

        parts = [both("self_attn.q_proj", turned), both("self_attn.k_proj", turned), both("self_attn.v_proj")]
        weight, bias = (_joined(list(column)) for column in zip(*parts, strict=True))
        assert weight is not None
        model.set_matrix(index, Matrix.QKV, self._type, weight, bias)
        gate, up = both("mlp.gate_proj"), both("mlp.up_proj")
        weight, bias = (_alternated(a, b) for a, b in zip(gate, up, strict=True))
        assert weight is not None
        model.set_matrix(index, Matrix.GATE_UP, self._type, weight, bias)
        for module, which in (("self_attn.o_proj", Matrix.OUTPUT), ("mlp.down_proj", Matrix.DOWN)):
            weight, bias = both(module)
            assert weight is not None
            if which == Matrix.DOWN and config.mlp_width % LANES:  # a padding of nothing would be a copy
                weight = F.pad(weight, (0, -config.mlp_width % LANES))
            model.set_matrix(index, which, self._type, weight, bias)
        norms = {Vector.ATTENTION_NORM: "input_layernorm", Vector.MLP_NORM: "post_attention_layernorm"}
        if config.qk_norm:
            norms |= {Vector.Q_NORM: "self_attn.q_norm", Vector.K_NORM: "self_attn.k_norm"}
        for vector, module in norms.items():
            values = take(module)
            assert values is not None
            model.set_vector(index, vector, turned(values) if vector in (Vector.Q_NORM, Vector.K_NORM) else values)
        if (window := config.window_of(index)) is not None:
            model.set_window(index, window)

    def execute(self, batch: Batch) -> Tensor:
        """Compute the step's keys, values and logits: float32 (S, V), one row for each of `batch.wanted_rows`."""
        if self._model is None:
            raise RuntimeError("weights and cache were released")
        if not 0 <= min(batch.token_ids) <= max(batch.token_ids) < self.config.vocabulary_size:
            raise ValueError(f"a token id is not among the vocabulary's {self.config.vocabulary_size}")
        tables = array("i")
        starts: list[int] = []
        for span in batch.spans:
            starts += [len(tables)] * (span.stop - span.start)
            tables.extend(span.table)
        adapters: list[int] | None = None
        if any(span.adapter is not None for span in batch.spans):
            adapters = []
            for span in batch.spans:
                slot = -1 if span.adapter is None else self._adapters[span.adapter][0]
                adapters += [slot] * (span.stop - span.start)
        return self._model.step(
            batch.token_ids, batch.row_positions, batch.row_slots, starts, tables, batch.wanted_rows, adapters
        )

    def add_adapter(self, key: str, adapter: LoraAdapter) -> None:
        """Hold an adapter for rows whose sequence names `key`."""
        taken = {slot for slot, _ in self._adapters.values()}
        slot = next(number for number in range(len(taken) + 1) if number not in taken)
        self._adapters[key] = (slot, adapter)
        if self._model is not None:
            self._set_adapter(self._model, slot, adapter)

    def remove_adapter(self, key: str) -> None:
        """Let go of an adapter that no sequence uses any more."""
        slot, _ = self._adapters.pop(key)
        if self._model is not None:
            self._model.remove_adapter(slot)

    def _set_adapter(self, model: NativeModel, slot: int, adapter: LoraAdapter) -> None:
        for index, layer in enumerate(layer_adapters(adapter, self.config, torch.float32, self.device)):
            for which, part in (
                (Matrix.QKV, layer.qkv),
                (Matrix.OUTPUT, layer.output),
                (Matrix.GATE_UP, layer.gate_up),
                (Matrix.DOWN, layer.down),
            ):
                if part is None:
                    continue
                a_RI, b_OR = part.a_RI, part.b_OR
                if which == Matrix.DOWN:
                    a_RI = F.pad(a_RI, (0, -self.config.mlp_width % LANES))
                elif which == Matrix.GATE_UP:
                    alternated = _alternated(*b_OR.chunk(2))
                    assert alternated is not None
                    b_OR = alternated
                model.set_adapter(slot, index, which, a_RI, b_OR)

    def release(self) -> None:
        """Let go of weights and cache; nothing can be computed before `restore`."""
        if self._reload is None:
            raise RuntimeError("this runner was given no way to read its weights again")
        if self._model is not None:
            self._model.close()
        self._model = None

    def restore(self) -> None:
        """Read and pack the weights again; the cache is empty."""
        if self._reload is None:
            raise RuntimeError("this runner was given no way to read its weights again")
        if self._model is None:
            model = self._load(self._reload())
            for slot, adapter in self._adapters.values():
                self._set_adapter(model, slot, adapter)
            self._model = model

    def bytes_per_token(self, context: int) -> int:
        """Bytes of weights and cache that one decoded token of one stream reads from memory."""
        if self._model is None:
            return 0
        return self._model.weight_bytes + block_bytes(self.config, self.dtype) // BLOCK_SIZE * context


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _alternated(gate: Tensor | None, up: Tensor | None) -> Tensor | None:
    """Sixteen rows of gate, sixteen of up, and so on, padded with zeros: a panel holds both factors of a product."""
    if gate is None or up is None:
        return None
    pad = (0, 0) * (gate.dim() - 1) + (0, -len(gate) % LANES)
    both = [(F.pad(part, pad) if pad[-1] else part).view(-1, LANES, *part.shape[1:]) for part in (gate, up)]
    return torch.stack(both, dim=1).flatten(0, 2)
