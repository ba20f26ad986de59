"""Trainings under DeepSpeed's ZeRO, each traced, beside what its collectives say of the whole parameters."""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch import nn

import tracer
from tests.distributed.exact import Network, batch
from tests.distributed.launch import RANKS

RANK = int(os.environ["RANK"])
STEPS = 3


def train(
    path: Path, stage: int, *, micros: int = 1, early: bool = False, bf16: bool = False, clip: float = 0.0, **zero: Any
) -> None:
    """Train for some updates, and write down each step's parameters and gradients as they are over all ranks.

    Args:
        path: The run's folder.
        stage: ZeRO's.
        micros: How many micro-batches a step has.
        early: Attach before DeepSpeed takes over the model.
        bf16: Train in bfloat16.
        clip: The norm that gradients are clipped to; 0 for none.
        zero: Further settings of ZeRO.
    """
    model: Any = Network(with_side=False).float()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Two groups, which ZeRO updates one by one.
    optimizer = torch.optim.SGD([{"params": trained[:2]}, {"params": trained[2:]}], lr=2.0**-10)
    trace = tracer.attach(model, path) if early else None
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": micros,
            "gradient_clipping": clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": bf16},
            "zero_optimization": {"stage": stage, **zero},
        },
    )
    trace = trace or tracer.attach(engine.module, path)
    whole: list[dict[str, Any]] = []
    for step in range(STEPS):
        values = {name: _value(parameter, stage) for name, parameter in engine.module.named_parameters()}
        for micro in range(micros):
            inputs = batch(step, micro, RANK).to(torch.bfloat16 if bf16 else torch.float32)
            engine.backward(engine(inputs).float().square().mean())
            if micro < micros - 1:
                engine.step()
        named = engine.module.named_parameters()
        whole.append({name: [values[name], _gradient(parameter, name)] for name, parameter in named})
        engine.step()
    trace.close()
    if RANK == 0:
        notes = tracer.doctor(engine.module)["note"].to_list()
        path.with_suffix(".json").write_text(json.dumps({"steps": whole, "notes": notes}))


def _value(parameter: Any, stage: int) -> list[float]:
    if stage < 3:
        return _elements(parameter.detach())
    with deepspeed.zero.GatheredParameters(parameter):
        return _elements(parameter.detach())


def _gradient(parameter: nn.Parameter, name: str) -> list[float] | None:
    # A parameter that no backward has reached has none, whatever ZeRO's buffers hold.
    if name.startswith("side") or not parameter.requires_grad:
        return None
    return _elements(safe_get_full_grad(parameter))


def _elements(tensor: torch.Tensor) -> list[float]:
    elements: list[float] = tensor.flatten().tolist()
    return elements


def main(folder: Path) -> None:
    """All of them, on both ranks."""
    assert RANKS == 2
    train(folder / "1", 1)
    train(folder / "2", 2, micros=2)
    train(folder / "2-early", 2, early=True)
    train(folder / "2-bf16", 2, bf16=True)
    train(folder / "3", 3, micros=2, clip=0.01)
    train(folder / "3-bf16", 3, bf16=True)
    train(folder / "3-alone", 3, sub_group_size=5, stage3_param_persistence_threshold=0)
    train(folder / "3-alone-clipped", 3, sub_group_size=5, clip=0.01)
    train(folder / "3-offloaded", 3, offload_optimizer={"device": "cpu"})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
