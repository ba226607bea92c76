"""Times as classes: short ones exact, longer ones in buckets an octave above, so that every time has a probability.

A time of `steps` steps has the class `steps` below `EXACT`; above, each octave falls into `PER_OCTAVE` buckets of equal
width. Within a bucket all steps are equally likely. The last class is open: what lies `k` steps beyond its beginning
has the share 1 / ((k + 1) (k + 2)) of it. So the probabilities of all times sum to 1.
"""

import torch

EXACT = 64  # classes of one step each: 0 to 0.63 s at 100 steps a second
PER_OCTAVE = 32
OCTAVES = 6
NUM_TIME_CLASSES = EXACT + PER_OCTAVE * OCTAVES + 1
OPEN = NUM_TIME_CLASSES - 1
FIRST_OPEN = EXACT << OCTAVES  # 4,096 steps: 40.96 s at 100 steps a second


def time_class(steps: torch.Tensor) -> torch.Tensor:
    """Classes, int64, of whole numbers of steps of at least 0, of any shape."""
    steps = steps.long()
    octave = torch.log2(steps.clamp(EXACT, FIRST_OPEN - 1).double()).floor().long() - 6  # log2 of `EXACT`
    in_octave = (steps.clamp(max=FIRST_OPEN - 1) - (EXACT << octave)) // _width(octave)
    bucket = EXACT + PER_OCTAVE * octave + in_octave
    return torch.where(steps < EXACT, steps, torch.where(steps < FIRST_OPEN, bucket, OPEN))


def first_step(classes: torch.Tensor) -> torch.Tensor:
    """The shortest time, in steps, int64, of each class."""
    octave, in_octave = _place(classes)
    return torch.where(classes < EXACT, classes, (EXACT << octave) + in_octave * _width(octave))


def num_steps(classes: torch.Tensor) -> torch.Tensor:
    """How many times, in steps, int64, share each class; 1 for the open one, whose times are not equally likely."""
    octave, _ = _place(classes)
    return torch.where((classes < EXACT) | (classes == OPEN), 1, _width(octave))


def middle_step(classes: torch.Tensor) -> torch.Tensor:
    """A time, in steps, int64, that stands for each class: the one in the middle of its bucket."""
    return first_step(classes) + num_steps(classes) // 2


def residual_nats(steps: torch.Tensor) -> torch.Tensor:
    """What it costs to tell each time from the others of its class, in nats, float32."""
    beyond = (steps - FIRST_OPEN).clamp(min=0).double()
    tail = torch.log1p(beyond) + torch.log(beyond + 2)
    return torch.where(steps >= FIRST_OPEN, tail, num_steps(time_class(steps)).double().log()).float()


def _place(classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Octave above the exact times, and bucket in it."""
    bucket = (classes - EXACT).clamp(min=0)
    return bucket // PER_OCTAVE, bucket % PER_OCTAVE


def _width(octave: torch.Tensor) -> torch.Tensor:
    return (EXACT // PER_OCTAVE) << octave
