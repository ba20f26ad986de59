"""The rules of a step, as tables: what happens, and the step to which each of it belongs."""

import subprocess
import sys

import pytest

from tracer.clock import NO_BACKWARD, Phase, StepClock


def steps_of(story: str) -> list[int]:
    """The steps of what happens, a word each.

    ``g`` is the first gradient of a new backward, ``+`` one of the same backward; ``s`` is ``g`` after an update that
    a scaler has skipped. ``u`` and ``v`` are updates of two optimizers, ``U`` is one inside the last backward. ``e`` is
    an ``end_step``, ``n`` an update for which there is no gradient, and a number goes on with that step.
    """
    clock = StepClock(0, lambda _: clock.next())
    backward = NO_BACKWARD
    found = []
    for word in story.split():
        backward += word in ("g", "s")
        if word in ("g", "+", "s"):
            clock.begun = clock.gradient(backward, skipped=word == "s") or clock.begun
        elif word in ("u", "v", "U") or (word == "n" and not clock.unannounced(ord("u"))):
            word = "u" if word == "n" else word
            inside = backward if word == "U" else NO_BACKWARD
            clock.before_update(ord(word.lower()), inside)
            clock.after_update(ord(word.lower()), inside)
        elif word == "e":
            clock.end_step()
        elif word != "n":
            clock.restore(int(word))
        found.append(clock.step)
    return found


@pytest.mark.parametrize(
    ("story", "steps"),
    [
        ("g u g u g u", "0 0 1 1 2 2"),
        # Gradients are accumulated over three backwards.
        ("g g g u g g g u", "0 0 0 0 1 1 1 1"),
        # A step has two optimizers.
        ("g u v g u v", "0 0 0 1 1 1"),
        # Each optimizer has a backward of its own.
        ("g u g v g u", "0 0 1 1 2 2"),
        # An optimizer updates inside the backward, whose later gradients belong to the same step.
        ("g U + U + g U +", "0 0 0 0 0 1 1 1"),
        # Gradients are set by hand: the same optimizer updates again.
        ("u u u", "0 1 2"),
        ("g u u g u", "0 0 1 2 2"),
        # There is no gradient, so there is no update: before the first step, between two, after one, again and again.
        ("n g u g u", "0 0 0 1 1"),
        ("g u n g u", "0 0 0 1 1"),
        ("g u n n n v g u", "0 0 0 0 0 0 1 1"),
        ("n n g g u", "0 0 0 0 0"),
        ("u n u n u", "0 0 1 1 2"),
        ("g u 7 n g u", "0 0 7 7 7 7"),
        ("g n g u", "0 0 1 1"),
        # A scaler skipped an update: no optimizer updated, and yet the step is over.
        ("g s u", "0 1 1"),
        # The loop ends its steps itself: from then on, updates do not.
        ("g e g e", "0 0 1 1"),
        ("e e e", "0 1 2"),
        ("g u e g u e", "0 0 0 1 1 1"),
        ("g e g g u u e", "0 0 1 1 1 1 1"),
        # A checkpoint is restored.
        ("g u 7 g u g u", "0 0 7 7 7 8 8"),
        ("7 g u g u", "7 7 7 8 8"),
        ("g 7 g u e", "0 7 7 7 7"),
    ],
)
def test_what_happens_belongs_to_its_step(story: str, steps: str) -> None:
    """Gradients, updates, the loop's own word and a checkpoint are each counted in the step to which they belong."""
    assert steps_of(story) == list(map(int, steps.split()))


def test_a_step_is_left_while_it_still_has_its_number() -> None:
    """Whoever has to emit a step is called once for each, before the next one begins, and told what begins it."""
    left: list[tuple[int, bool]] = []

    def leave(by_gradient: bool) -> None:
        left.append((clock.step, by_gradient))
        clock.next()

    clock = StepClock(3, leave)
    for backward in range(2):
        clock.gradient(backward)
        clock.after_update(1, NO_BACKWARD)
    clock.before_update(1, NO_BACKWARD)
    assert left == [(3, True), (4, False)]
    assert (clock.step, clock.phase, clock.ended_ns) == (5, Phase.EMPTY, 0)


def test_a_step_goes_through_its_phases() -> None:
    """It is empty, has gradients, and has ended; where it cannot be left, it is still the same step."""

    def fail(_: bool) -> None:
        raise RuntimeError("no room")

    clock = StepClock(0, fail)
    phases = [clock.phase]
    clock.gradient(0)
    clock.begun = True
    phases.append(clock.phase)
    clock.after_update(1, NO_BACKWARD)
    phases.append(clock.phase)
    with pytest.raises(RuntimeError, match="no room"):
        clock.gradient(1)
    assert phases == [Phase.EMPTY, Phase.OPEN, Phase.ENDED]
    assert (clock.step, clock.phase) == (0, Phase.ENDED)


def test_the_clock_needs_no_tensor() -> None:
    """It is imported without torch."""
    code = "import sys, tracer.clock; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
