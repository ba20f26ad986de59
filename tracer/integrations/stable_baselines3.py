"""Stable-Baselines3: a callback that joins the outputs of the logger.

``model.learn(10_000, callback=Gradwatch("runs/a"))`` traces the policy. With ``reset_num_timesteps=False`` the
run goes on.
"""

from typing import Any

from torch.optim import Optimizer

from tracer.integrations.shell import Shell, needs

with needs("stable_baselines3", "stable-baselines3"):
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import KVWriter


class Gradwatch(Shell, BaseCallback, KVWriter):
    """Traces every ``learn`` that has it as a callback, and records what the algorithm logs.

    A step is an update of an optimizer, so that SAC makes two an iteration: one of the critic, one of the actor.
    """

    def _on_training_start(self) -> None:
        step = _updates(self.model.policy) or self._state().get("step")
        self._begin(self.model.policy, step=step if self.model.num_timesteps else 0)
        if self not in self.logger.output_formats:
            self.logger.output_formats.append(self)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._end()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Record what the algorithm logs."""
        self._log(key_values)


def _updates(policy: Any) -> int | None:
    """How many updates a policy's optimizers have made; None where one does not count."""
    owners = [module for module in policy.modules() if isinstance(getattr(module, "optimizer", None), Optimizer)]
    total = 0.0
    for owner in owners:
        counts = [float(state["step"]) for state in owner.optimizer.state.values() if "step" in state]
        if not counts:
            return None
        total += max(counts)
    return int(total)
