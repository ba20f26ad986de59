"""Stable-Baselines3's own algorithms, with the callback and without."""

import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.training import Oracle, assert_rows, assert_same_weights, reason, runs
from tests.training import events, metric

pytestmark = pytest.mark.slow
pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: pip install stable-baselines3")

import gymnasium  # noqa: E402
from stable_baselines3 import DQN, PPO, SAC  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback  # noqa: E402
from stable_baselines3.common.logger import configure  # noqa: E402

from tracer.integrations.stable_baselines3 import Gradwatch  # noqa: E402


def small() -> dict[str, Any]:
    """What all have in common; algorithms write into what they are given."""
    return {"device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [4]}}


def ppo(**options: Any) -> PPO:
    """PPO that makes four updates each sixteen steps of the environment."""
    return PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=8, n_epochs=2, **small(), **options)


def dqn() -> DQN:
    """DQN that updates each fourth step of the environment, after the eighth, and its target now and then."""
    return DQN("MlpPolicy", "CartPole-v1", learning_starts=8, train_freq=4, target_update_interval=8, **small())


def sac() -> SAC:
    """SAC that updates critic, actor and the weight of the entropy at each step of the environment after the eighth."""
    return SAC("MlpPolicy", "Pendulum-v1", learning_starts=8, batch_size=4, **small())


def observed(model: Any) -> list[Any]:
    """What the oracle sees of the policy's updates."""
    owners = [module for module in model.policy.modules() if getattr(module, "optimizer", None) is not None]
    return Oracle(model.policy, *(module.optimizer for module in owners)).rows


@pytest.mark.parametrize(
    ("make", "updates"),
    [
        pytest.param(ppo, 8, id="PPO, which clips"),
        pytest.param(lambda: ppo(max_grad_norm=1e-3), 8, id="clipping"),
        pytest.param(dqn, 6, id="DQN"),
        pytest.param(sac, 48, id="SAC"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(make: Any, updates: int, tmp_path: Path) -> None:
    """Every row is what the update used, target networks included, and the weights are those without a trace."""
    # One after the other: an algorithm seeds all random generators when it is made.
    rows = observed(traced := make())
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        traced.learn(32, callback=gradwatch)
    plain = make().learn(32)
    assert len(rows) == updates
    assert_rows(tmp_path / "run", rows)
    assert_same_weights(traced.policy, plain.policy)


def test_metrics_stand_at_the_step_after_which_they_were_logged(tmp_path: Path) -> None:
    """What the algorithm and an evaluation log stands at the latest update; what is no number is said once."""
    model = ppo()
    evaluates = EvalCallback(model.get_env(), eval_freq=16, n_eval_episodes=1, verbose=0, warn=False)

    class Notes(BaseCallback):
        def _on_rollout_end(self) -> None:
            self.logger.record("note", "a text")

        def _on_step(self) -> bool:
            return True

    with (
        closing(Gradwatch(tmp_path / "run")) as gradwatch,
        pytest.warns(UserWarning, match="no numbers are not recorded: note$") as warned,
    ):
        model.learn(48, callback=[gradwatch, evaluates, Notes()])
    assert len(warned) == 1
    assert [step for step, _ in metric(tmp_path / "run", "train/loss")] == [3, 7]
    assert [step for step, _ in metric(tmp_path / "run", "eval/mean_reward")] == [0, 3, 7]


def test_a_training_that_goes_on_does_so_at_its_step(tmp_path: Path) -> None:
    """With ``reset_num_timesteps=False`` a model goes on in the run, and so does the one that was saved and loaded."""
    model = sac()
    rows = observed(model)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        for _ in range(2):
            model.learn(16, callback=gradwatch, reset_num_timesteps=False)
            model.save(tmp_path / "saved")
    loaded = SAC.load(tmp_path / "saved", env=gymnasium.make("Pendulum-v1"), device="cpu")
    loaded.learning_starts = 0
    more = observed(loaded)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        loaded.learn(8, callback=gradwatch, reset_num_timesteps=False)
    assert len(rows) == 48
    assert len(more) > 0
    assert runs(tmp_path) == ["run"]
    assert_rows(tmp_path / "run", rows + more)
    assert [step for step, *_ in events(tmp_path / "run", "resumed")] == [16, 48]


def test_two_trainings_have_a_run_each(tmp_path: Path) -> None:
    """Time steps that begin anew, as by default, begin a run beside the first, which has ended well."""
    model = ppo()
    model.set_logger(configure(None, []))
    rows = observed(model)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        model.learn(32, callback=gradwatch)
        model.learn(32, callback=gradwatch)
    assert_rows(tmp_path / "run", rows[:8])
    assert_rows(tmp_path / "run-2", rows[8:])
    assert [step for step, _ in metric(tmp_path / "run-2", "train/loss")] == [0, 3]
    assert reason(tmp_path / "run") == reason(tmp_path / "run-2") == ""


def test_an_exception_arrives_as_it_is_and_costs_no_row(tmp_path: Path) -> None:
    """Nobody is told that a training failed: its trace is closed by who has it, or by the next training."""

    class Fails(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 20:
                raise ArithmeticError("the environment is gone")
            return True

    model = ppo()
    rows = observed(model)
    gradwatch = Gradwatch(tmp_path / "run", applied=True)
    with pytest.raises(ArithmeticError) as raised:
        model.learn(32, callback=[gradwatch, Fails()])
    gradwatch.close(raised.value)
    assert len(rows) == 4
    assert_rows(tmp_path / "run", rows)
    assert reason(tmp_path / "run") == "ArithmeticError: the environment is gone"


def test_a_model_is_saved_and_a_policy_pickled_in_the_middle_of_a_training(tmp_path: Path) -> None:
    """A traced model's file is loaded as any other, and its policy is pickled."""

    class Saves(BaseCallback):
        def _on_rollout_end(self) -> None:
            self.model.save(tmp_path / "saved")
            self.policy = pickle.dumps(self.model.policy)

        def _on_step(self) -> bool:
            return True

    model, saves = ppo(), Saves()
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        model.learn(16, callback=[gradwatch, saves])
    assert_same_weights(PPO.load(tmp_path / "saved", device="cpu").policy, pickle.loads(saves.policy))
