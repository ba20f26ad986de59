"""Engines that keep gradients, or parameters, in places of their own: Megatron, DeepSpeed's ZeRO, FSDP1.

Nothing of them is imported: they are known by what they set on parameters. What they hide is null, and never a guess.
"""

import sys
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

_MEGATRON, _ZERO, _ZERO_3 = "grad_added_to_main_grad", "_hp_mapping", "ds_id"


def keeps_gradient(tensor: torch.Tensor) -> bool:
    """Whether an engine keeps this parameter's gradient elsewhere than in ``.grad``."""
    known = tensor.__dict__
    return _MEGATRON in known or _ZERO in known or _ZERO_3 in known


def accumulated(tensor: torch.Tensor) -> torch.Tensor | None:
    """A parameter's gradient as accumulated so far; None if there is none, or if an engine hides it.

    Under ZeRO, ``.grad`` holds one micro-batch's gradient in a scale of its own, until it is freed. Megatron adds
    ``.grad`` to ``main_grad`` after our hook. But where a kernel has already added the gradient to it, ``.grad`` is a
    dummy: memory that nobody has written to, or zeros where the parameter has another use that may add to them.
    """
    if not keeps_gradient(tensor):
        return tensor.grad
    known = tensor.__dict__
    if _MEGATRON not in known:
        return None
    main: torch.Tensor | None = getattr(tensor, "main_grad", None)
    if known[_MEGATRON] and not known.get("zero_out_wgrad", False):
        return main
    return tensor.grad if main is None or tensor.grad is None else main + tensor.grad


def gradient_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    """The dtype in which an engine keeps a parameter's gradient; None if none does."""
    if _ZERO_3 in tensor.__dict__:
        return torch.float32
    main = getattr(tensor, "main_grad", None) if _MEGATRON in tensor.__dict__ else None
    return None if main is None else main.dtype


def partition(tensor: torch.Tensor) -> torch.Tensor | None:
    """The part of a parameter that this rank holds under ZeRO-3, without its padding; None of any other tensor."""
    part: Any = getattr(tensor, "ds_tensor", None)
    return None if part is None else _without_padding(tensor, part.detach())


def reduced(tensor: torch.Tensor, optimizer: Optimizer) -> torch.Tensor | None:
    """This rank's part of a gradient that ZeRO-3 has reduced, as this optimizer is about to update.

    None if it is still multiplied by a loss scale, or has been clipped in place, and if it lies elsewhere than the
    parameter: to get it might take a read from a disk.
    """
    zero: Any = getattr(tensor, "_z3_optimizer", None)
    if _hides(zero):
        return None
    # On a GPU this waits for the stream of the reduction. The engine has done so by now, to calculate the norm.
    gradient: torch.Tensor | None = sys.modules["deepspeed.utils"].safe_get_local_grad(tensor)
    if gradient is None:
        return None
    used = {held.grad.data_ptr() for held in _held(optimizer) if held.grad is not None}
    if zero.clip_grad > 0 and gradient.data_ptr() in used:
        # A parameter that is updated by itself needs no copy of its gradient.
        return None
    return _without_padding(tensor, gradient)


def _hides(zero: Any) -> bool:
    """Whether no gradient is to be had of a ZeRO-3 optimizer."""
    return zero is None or zero.loss_scale != 1 or bool(zero.offload_optimizer)


def _without_padding(tensor: Any, part: torch.Tensor) -> torch.Tensor:
    """A rank's part of a flat parameter, whose parts are of one size, without what follows the parameter's end."""
    size = tensor.ds_tensor.ds_numel
    return part.flatten()[: max(0, min(size, tensor.ds_numel - size * tensor.ds_zero_partition_rank))]


def drives(optimizer: Optimizer, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether ZeRO updates some of these parameters through an optimizer, which holds flat partitions of them.

    It may update several times a step, once for each group of parameters.
    """
    if "deepspeed" not in sys.modules:
        return False
    held = {_place(tensor) for tensor in _held(optimizer)}
    for tensor in tensors:
        zero: Any = getattr(tensor, "_z3_optimizer", None)
        mapping: Any = getattr(tensor, _ZERO, None)
        if zero is not None and zero.optimizer is optimizer:
            return True
        if mapping is not None and _place(mapping.hp_fragment) in held:
            return True
    return False


def _held(optimizer: Optimizer) -> Iterable[torch.Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def in_flat(tensor: torch.Tensor) -> bool:
    """Whether FSDP2's predecessor keeps this parameter as a part of a flat one, in which hooks see no gradient."""
    known = tensor.__dict__
    return "_fsdp_flattened" in known and "_is_flat_param" not in known


def remark(tensor: torch.Tensor) -> str | None:
    """What an engine makes of a parameter's rows; None if none has it."""
    known = tensor.__dict__
    if _MEGATRON in known:
        return "Megatron accumulates its gradient in main_grad, which is recorded"
    if _ZERO_3 in known:
        if _hides(known.get("_z3_optimizer")):
            return "DeepSpeed ZeRO-3: each rank records its part, and no gradient, which is scaled or offloaded"
        return "DeepSpeed ZeRO-3: each rank records its part, and that of the reduced gradient"
    if _ZERO in known:
        return "DeepSpeed ZeRO hides its gradient until the update: null"
    if in_flat(tensor):
        return (
            "FullyShardedDataParallel: each rank records its part; no gradient but, with applied=True, the applied one"
        )
    return None
