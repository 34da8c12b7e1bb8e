"""Several ranks: who they are, sums over them, and weights that are divided among them.

    DDP       every rank holds all of the model: 16 bytes a parameter
    --shard   torch's fully_shard: every rank holds its part, and gathers one layer at a time

Test: `pytest tests/test_train_ranks.py`. Read next: checkpoint.py.
"""

import datetime

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lib.lora import plain_weights


def join(world: int, timeout_seconds: float) -> None:
    """Join the other ranks, if there are any. A rank may wait so long for another."""
    if world > 1:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        timeout = datetime.timedelta(seconds=timeout_seconds)
        dist.init_process_group(backend, timeout=timeout)


def leave() -> None:
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_sharded(config) -> bool:
    """Whether the weights are divided among the ranks."""
    return config.shard and world_size() > 1


def all_reduce(value: float, op) -> float:
    if world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op)
    return tensor.item()


def all_reduce_sum(value: float) -> float:
    return all_reduce(value, dist.ReduceOp.SUM)


def all_reduce_max(value: float) -> float:
    return all_reduce(value, dist.ReduceOp.MAX)


def all_gather(items: list) -> list:
    """The items of all ranks."""
    if world_size() == 1:
        return items
    parts = [None] * world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which this rank may hold only a part. Collective if it does."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def wrap(model: torch.nn.Module, policy, is_sharded: bool) -> torch.nn.Module:
    """A policy.CompletionLogprobs as it is on one rank, in DDP, or divided among the ranks.

    vLLM initialises torch.distributed on a single rank, too; DDP would then cost memory for
    nothing.
    """
    if world_size() == 1:
        return model
    if is_sharded:
        return shard(model, policy)
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def frozen(model: torch.nn.Module, policy, is_sharded: bool) -> torch.nn.Module:
    """A reference: no gradient, and weights in the precision of the forward pass."""
    model.to(policy.dtype).requires_grad_(False)
    return shard(model, policy) if is_sharded else model


def shard(module: torch.nn.Module, policy) -> torch.nn.Module:
    """Divide the parameters of a policy.CompletionLogprobs among the ranks, layer by layer."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = dist.device_mesh.init_device_mesh(policy.device.type, (world_size(),))
    precision = MixedPrecisionPolicy(
        param_dtype=policy.dtype,
        reduce_dtype=torch.promote_types(policy.dtype, torch.float32),
    )
    layer_names = set(module.model._no_split_modules or ())  # transformers' own list of layers
    for layer in list(module.model.modules()):
        if type(layer).__name__ in layer_names:
            fully_shard(layer, mesh=mesh, mp_policy=precision)
    # Resharded after forward, so that outside of it parameters are always parts.
    return fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)


def iterate_weights(model, dtype: torch.dtype | None = None):
    """(name, full tensor), one after another. With --shard every rank has to go through all.

    dtype: of floating-point ones; converted before they are gathered, which sends half as much.
    """
    for name, tensor in plain_weights(model, dtype):
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        yield name, full_tensor(tensor)


def gather_optimizer(model, optimizer, is_sharded: bool) -> dict:
    """The optimizer's state for a checkpoint. Collective with --shard; complete on rank 0 alone."""
    if not is_sharded:
        return optimizer.state_dict()
    from torch.distributed.checkpoint import state_dict as dcp  # takes a second to import

    options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dcp.get_optimizer_state_dict(model, optimizer, options=options)


def gather_weights(model, is_sharded: bool) -> dict | None:
    """The weights where they are parts, else None. Collective; complete on rank 0 alone."""
    if not is_sharded:
        return None
    weights = {}
    for name, part in model.named_parameters():  # tied weights once, as in a Hugging Face folder
        tensor = full_tensor(part.detach())
        if dist.get_rank() == 0:
            weights[name] = tensor.cpu()
    return weights


def restore_optimizer(model, optimizer, optimizer_state: dict, is_sharded: bool) -> None:
    """Take up the optimizer of a checkpoint; the model was loaded with its weights."""
    if not is_sharded:
        optimizer.load_state_dict(optimizer_state)
        return
    from torch.distributed.checkpoint import state_dict as dcp

    options = dcp.StateDictOptions(full_state_dict=True)
    dcp.set_optimizer_state_dict(model, optimizer, optimizer_state, options=options)
