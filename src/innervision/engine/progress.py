"""What a call still has to do, told by bars that say how long all of it takes; and what work took in the end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

from tqdm.auto import tqdm

SMOOTHING = 0.1
"""What the last piece of work weighs in the pace of its phase. The first, which finds places, soon counts little."""


class Phases:
    """The phases of a call, and how long what is left of them takes at the pace that was seen."""

    def __init__(self, work: Mapping[str, int], *, shown: bool = True) -> None:
        """Plan the phases.

        Args:
            work: by the name of each phase, in order, what this call has to do of it, in units of its own.
            shown: whether there are bars.
        """
        self.left = dict(work)
        """Units of each phase that are not done yet."""
        self.shown = shown
        self._done: dict[str, tuple[float, float]] = {}
        """Units and seconds of each phase so far, those of long ago weighing less."""
        self._others = 0.0
        """Seconds of other phases within the piece of work at hand."""

    @contextmanager
    def work(self, phase: str, units: int) -> Iterator[None]:
        """Take the time of a piece of work, less that of pieces of other phases within it."""
        began, others, self._others = perf_counter(), self._others, 0.0
        yield
        seconds = perf_counter() - began
        before = self._done.get(phase, (0.0, 0.0))
        new = (units, seconds - self._others)
        self._done[phase] = (before[0] * (1 - SMOOTHING) + new[0], before[1] * (1 - SMOOTHING) + new[1])
        self._others = others + seconds
        self.skip(phase, units)

    def skip(self, phase: str, units: int) -> None:
        """Have so much less to do of a phase."""
        self.left[phase] = max(0, self.left.get(phase, 0) - units)

    def rest(self) -> str:
        """Say how long the rest of the call takes, and name the phases of which that is not known yet."""
        left = {phase: units for phase, units in self.left.items() if units}
        known = {phase: self._done[phase] for phase in left if phase in self._done}
        if left and not self._done:
            return "?"
        total = sum(left[phase] * seconds / units for phase, (units, seconds) in known.items())
        time = tqdm.format_interval(round(total))
        unknown = [phase for phase in left if phase not in known]
        return " + ".join([time, *unknown]) if unknown else f"{time} in all"

    def bar(self, phase: str, total: int, unit: str, initial: int = 0) -> tqdm:
        """Give the bar of a phase.

        Args:
            phase: its name.
            total: units of all of it, with what earlier calls did.
            unit: its name, in the plural.
            initial: units that earlier calls did.
        """
        number, count = [*self.left, phase].index(phase) + 1, len(self.left)
        return _Bar(
            phases=self,
            total=total,
            initial=initial,
            desc=f"{number} of {count}: {phase}" if count > 1 else phase,
            unit=f" {unit}",
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{rest}, {rate_noinv_fmt}{postfix}]",
            dynamic_ncols=True,
            disable=not self.shown,
        )


class _Bar(tqdm):
    """A bar with the time left for all phases in the place of that for its own."""

    def __init__(self, phases: Phases, **options: Any) -> None:
        self.phases = phases
        super().__init__(**options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """Give what `bar_format` may name."""
        return {**super().format_dict, "rest": self.phases.rest()}


class Laps:
    """Takes the time of work that several calls may do."""

    def __init__(self) -> None:
        """Begin."""
        self._last = perf_counter()

    def lap(self) -> float:
        """Give the seconds since the last call, or since the beginning."""
        last, self._last = self._last, perf_counter()
        return self._last - last


class Took(NamedTuple):
    """What work took, over all calls that did it; not what a call that was killed did in vain."""

    seconds: float = 0.0
    """Wall time, with the loading of models."""
    device_seconds: float = 0.0
    """The same, times the devices that were at work; without an accelerator, times the processes."""

    def plus(self, seconds: float, devices: int) -> "Took":
        """Add the wall time of work on some devices."""
        return Took(self.seconds + seconds, self.device_seconds + seconds * devices)

    def rounded(self) -> dict[str, float]:
        """Give both as a run records them."""
        return {name: round(value, 1) for name, value in self._asdict().items()}
