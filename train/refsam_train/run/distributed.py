"""Several processes, started by PyTorch's own launcher (`torchrun`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn

from refsam_train.data.batches import Place


@contextmanager
def launched_place() -> Iterator[Place]:
    """Yield this process's place; without the launcher that is the only one.

    `torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK. CUDA is used where PyTorch finds it.
    """
    if "RANK" not in os.environ:
        yield Place()
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Place(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def launched_device() -> torch.device:
    """Return the device of this process: its own GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def any_process(flag: bool, place: Place, device: torch.device) -> bool:
    """Return whether the flag is set in any process: all of them stop after the same step."""
    if place.world_size == 1:
        return flag
    flags = torch.tensor([flag], dtype=torch.int32, device=device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags.item())


def wrapped(training: nn.Module, place: Place) -> nn.Module:
    """Return the module that averages gradients over the processes, or itself when it is alone.

    Single frames leave the tracking module without gradient, so unused parameters are looked for.
    """
    if place.world_size == 1:
        return training
    return nn.parallel.DistributedDataParallel(training, find_unused_parameters=True)
