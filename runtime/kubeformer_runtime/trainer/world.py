"""The ranks of a run and what they tell each other. One rank needs no network; the interface is the same.

Ranks meet as torchrun's environment says (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); gloo on CPUs,
nccl on GPUs. Two ways of waiting for each other:
- collectives (`sum`, `broadcast`) between ranks that do equal work at the same time. They give up after
  COLLECTIVE_SECONDS, so that the loss of a peer is noticed even when its machine vanished without a word.
- `on_first`, for work that rank 0 does alone and that may take long (writing a checkpoint): the others look
  for its end in the key-value store, as often and as long as it takes.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kubeformer_runtime.trainer.errors import PeerFailed
from kubeformer_runtime.trainer.machine import interface_towards

COLLECTIVE_SECONDS = 60.0
RENDEZVOUS_SECONDS = 600.0
FAREWELL_SECONDS = 20.0
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """Which rank this process is, before it has met the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Place":
        """As torchrun set it; alone where it did not."""
        return cls(
            rank=int(environment.get("RANK", "0")),
            size=int(environment.get("WORLD_SIZE", "1")),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
        )

    def device(self) -> torch.device:
        """This rank's GPU, or the CPU where there is none."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


class World:
    """All ranks, seen from one of them."""

    def __init__(self, place: Place, device: torch.device, store: Store | None) -> None:
        self.rank, self.size, self.device = place.rank, place.size, device
        self._store = store
        self._turns = 0

    @classmethod
    def join(cls, place: Place, collective_seconds: float = COLLECTIVE_SECONDS) -> "World":
        """Waits for all ranks. Raises torch's DistError or RuntimeError where they do not come."""
        device = place.device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if place.size == 1:
            return cls(place, device, None)
        if "GLOO_SOCKET_IFNAME" not in os.environ:
            interface = interface_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
            if interface is not None:
                os.environ["GLOO_SOCKET_IFNAME"] = interface
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=RENDEZVOUS_SECONDS)))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("collectives", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=collective_seconds),
        )
        return cls(place, device, PrefixStore("turns", store))

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and speaks for all."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of each number over all ranks, in float64; the same bits on every rank."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_tensor(self, tensor: Tensor) -> None:
        """Adds the tensor up over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def broadcast(self, tensor: Tensor) -> None:
        """Gives rank 0's values to all ranks, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)

    def put(self, key: str, text: str) -> None:
        """Leaves a note for the other ranks; for any thread."""
        if self._store is not None:
            self._store.set(f"note/{key}", text)

    def get(self, key: str) -> str | None:
        """Reads a note; None where there is none yet."""
        if self._store is None or not self._store.check([f"note/{key}"]):
            return None
        return self._store.get(f"note/{key}").decode()

    def on_first(self, work: Callable[[], None], beat: Callable[[], None]) -> None:
        """Runs `work` on rank 0; the other ranks call `beat` until it is done.

        Raises:
            PeerFailed: on the other ranks, where it failed on rank 0 (which raises what `work` raised).
        """
        if self._store is None:
            work()
            return
        self._turns += 1
        done, failed = f"{self._turns}/done", f"{self._turns}/failed"
        if self.first:
            try:
                work()
            except BaseException:
                self._store.set(failed, "1")
                raise
            self._store.set(done, "1")
            return
        while not self._store.check([done]):
            if self._store.check([failed]):
                raise PeerFailed("rank 0 failed while the other ranks waited for it")
            beat()
            time.sleep(POLL_SECONDS)

    def leave(self, beat: Callable[[], None]) -> None:
        """Takes leave of the others when nothing more is to be said.

        Rank 0 stays until all have said so (FAREWELL_SECONDS at most): the store may live in its process, and
        whoever still looks into it would take its end for a fault.
        """
        if self._store is None:
            return
        if not self.first:
            self._store.add("gone", 1)
            return
        until = time.monotonic() + FAREWELL_SECONDS
        while self._store.add("gone", 0) < self.size - 1 and time.monotonic() < until:
            beat()
            time.sleep(POLL_SECONDS)
