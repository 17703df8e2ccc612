"""Several processes that share the work, as torchrun, accelerate launch or SLURM start them.

What they say to each other goes through PyTorch's own `torch.distributed`: gloo for tensors on a CPU, and what PyTorch
takes for the accelerator, such as NCCL. Before they sum or exchange anything they meet at PyTorch's store, where a
process that fails leaves its error: the others end with it, and wait for nobody who is gone.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from innervision.engine.interrupt import Stopped, StopRequest, end_at_once
from innervision.errors import InnerVisionError, SharedError, first_line
from innervision.terminal import tell

Result = TypeVar("Result")

PULSE, STALLED = 2.0, 20.0
"""Seconds between two signs of life of a process, and without one after which it is taken to be gone."""

GRACE = 10.0
"""Seconds in which a process that does something else is to come to know that another has failed; then it is ended."""

ARRIVAL = 300.0
"""Seconds in which all processes must have come, and that one sum may take once all have met."""

_joined = count()


class Watch:
    """Tells the other processes that this one is alive, and learns of those that fail or are gone.

    Each process watches the next one. A process that was killed or stopped (SIGSTOP), or that lost its machine, gives
    no sign of life any more.
    """

    def __init__(self, store: distributed.Store, index: int, count: int) -> None:
        """Begin to watch, in a thread.

        Args:
            store: that all processes share.
            index: of this process.
            count: of all of them.
        """
        self.store = store
        self.index = index
        self.count = count
        self.failure: str | None = None
        """What has gone wrong elsewhere."""
        self.told = False
        """Whether the process that failed is there to tell it."""
        self.stop = StopRequest()
        """Is asked to stop as soon as that of any process is."""
        self._meetings: Counter[str] = Counter()
        """How often this process has come to a meeting, by group."""
        self._over = Event()
        self._thread = Thread(target=self._watch, args=(store.clone(),), daemon=True)
        self._thread.start()

    def meet(self, group: str = "", count: int | None = None) -> None:
        """Return when all processes of a group have come to this call; they make the same calls in the same order.

        Args:
            group: its name; by default all processes.
            count: of its processes.

        Raises:
            InnerVisionError: another process has failed or is gone; with its error.
        """
        self._meetings[group] += 1
        meeting = f"{group}/{self._meetings[group]}"
        here, all_here, pause = f"here/{meeting}", f"all/{meeting}", 0.001
        try:
            if self.store.add(here, 1) == (count or self.count):
                self.store.set(all_here, "")
            while not self.store.check([all_here]):
                self.check()
                time.sleep(pause)
                pause = min(1.5 * pause, 0.05)
        except RuntimeError as error:
            self.explain(error)

    def check(self) -> None:
        """Raise InnerVisionError if another process has failed; SharedError if that one tells it."""
        if self.failure is not None:
            raise (SharedError if self.told else InnerVisionError)(self.failure)

    def explain(self, error: Exception) -> None:
        """Find out why the processes do not reach each other.

        Raises:
            InnerVisionError: always.
        """
        deadline = time.monotonic() + STALLED + 2 * PULSE
        while time.monotonic() < deadline:
            self.check()
            time.sleep(PULSE / 4)
        raise InnerVisionError(f"the connection to the other processes is lost: {first_line(error)}") from error

    def fail(self, error: BaseException) -> None:
        """Let the others know of this process's error, if it is the first one, and wait a little until they do."""
        self._over.set()
        own = isinstance(error, InnerVisionError)
        text = str(error) if own else f"{type(error).__name__}: {first_line(Exception(str(error)))}"
        with suppress(RuntimeError):  # the others are gone
            if self.failure is None:
                self.store.set("told", "")
                self.store.compare_set("failure", "", f"process {self.index} of {self.count}: {text}")
            self._wait_for_others("knows")

    def leave(self) -> None:
        """Return when all processes have done their work.

        Raises:
            InnerVisionError: another process has failed.
        """
        self.meet()
        self._over.set()
        with suppress(RuntimeError):  # the store goes with the first process
            if self.index:
                self.store.add("left", 1)
            else:
                self._wait_for_others("left")

    def _wait_for_others(self, key: str) -> None:
        deadline = time.monotonic() + 3 * PULSE
        while self.store.add(key, 0) < self.count - 1 and time.monotonic() < deadline:
            time.sleep(PULSE / 20)

    def _watch(self, store: distributed.Store) -> None:
        beat, seen, changed = 0, "", time.monotonic()
        other = (self.index + 1) % self.count
        while not self._over.wait(PULSE):
            beat += 1
            try:
                store.set(f"pulse/{self.index}", str(beat))
                if store.check(["failure"]):
                    store.add("knows", 1)
                    self.told = store.check(["told"])
                    self._react(store.get("failure").decode())
                    return
                self._spread_stop(store)
                key = f"pulse/{other}"
                now = store.get(key).decode() if store.check([key]) else ""
            except RuntimeError as error:
                self._react(f"the first process of {self.count}, or what started it, has ended ({first_line(error)})")
                return
            if now != seen:
                seen, changed = now, time.monotonic()
            elif time.monotonic() - changed > STALLED:
                text = (
                    f"process {other} of {self.count} was killed or stands still: it has given no sign of life for "
                    f"{STALLED:.0f} s. What is saved is kept: call again"
                )
                self._react(store.compare_set("failure", "", text).decode())
                return

    def _spread_stop(self, store: distributed.Store) -> None:
        if self.stop.asked:
            store.set("stop", "")
        elif store.check(["stop"]):
            self.stop.asked = True

    def _react(self, failure: str) -> None:
        """Tell the main thread; end this process if that is held up by something else, as by those that are gone."""
        self.failure = failure
        if not self._over.wait(GRACE):
            tell(f"innervision: error: {failure}", from_all=True)
            end_at_once(1)


@dataclass(frozen=True)
class Rank:
    """One of `count` processes that share some work. All of these make the same calls in the same order."""

    index: int = 0
    count: int = 1
    device: str | None = None
    """The device that is this process's own, whichever of its kind settings name; None where there is one process."""
    on_machine: int = 1
    """How many of the processes share this machine."""
    watch: Watch | None = None
    """Knows the others, where there are some."""
    name: str = ""
    """Of the group that these processes are, where they are not all."""
    group: distributed.ProcessGroup | None = None
    """PyTorch's, where they are not all."""

    def among(self, groups: list[list[int]], name: str) -> "Rank":
        """Give what this process is in a group of its own. All processes make this call together.

        Args:
            groups: the indices of each group's processes, of which each is in one.
            name: of the groups.
        """
        number, mine = next((number, each) for number, each in enumerate(groups) if self.index in each)
        group: Any = None
        if self.count > 1:
            with self._together():
                group, _ = distributed.new_subgroups_by_enumeration(groups, timedelta(seconds=ARRIVAL))
            assert isinstance(group, distributed.ProcessGroup)
        return replace(self, index=mine.index(self.index), count=len(mine), name=f"{name} {number}", group=group)

    def first(self, work: Callable[[], Result]) -> Result:
        """Let the first process do something while the others wait, and give all of them its result.

        Raises:
            InnerVisionError: where the first one raised it, or is gone.
        """
        if self.count == 1:
            return work()
        found: list[Any] = [work() if self.index == 0 else None]
        with self._together():
            distributed.broadcast_object_list(found, group_src=0, group=self.group, device=torch.device("cpu"))
        return found[0]

    def exchange(self, value: Result) -> list[Result]:
        """Give all processes what each of them says, in their order.

        Raises:
            InnerVisionError: another process has failed or is gone; so it is in all that follow.
        """
        found: list[Any] = [value] * self.count
        if self.count > 1:
            with self._together():
                distributed.all_gather_object(found, value, group=self.group)
        return found

    def sum(self, tensors: Sequence[Tensor], to: int | None = None) -> None:
        """Replace tensors by their sums over the processes, in place.

        Args:
            tensors: contiguous, of the same shapes and types everywhere.
            to: index of the process that needs the sums; what the others hold then says nothing. By default all do.
        """
        if self.count == 1:
            return
        with self._together():
            begun = [
                distributed.all_reduce(tensor, group=self.group, async_op=True)
                if to is None
                else distributed.reduce(tensor, group_dst=to, group=self.group, async_op=True)
                for tensor in tensors
            ]
            for each in begun:
                if each is not None:
                    each.wait()

    def bring(self, value: Result, owner: int) -> Result | None:
        """Give the first process what the process `owner` says; what others say does not matter, and they get None."""
        if owner > 0:
            found: list[Any] = [value]
            with self._together():
                if self.index == owner:
                    distributed.send_object_list(found, group_dst=0, group=self.group, device=torch.device("cpu"))
                elif self.index == 0:
                    distributed.recv_object_list(found, group_src=owner, group=self.group, device=torch.device("cpu"))
            value = found[0]
        return value if self.index == 0 else None

    def bring_all(self, value: Result) -> list[Result]:
        """Give the first process what each of them says, in their order; the others get nothing."""
        found = [self.bring(value, owner) for owner in range(self.count)]
        return [each for each in found if each is not None]

    def require_alike(self, facts: Mapping[str, Any]) -> None:
        """See that all processes work in the same way.

        Args:
            facts: what must not differ, by name.

        Raises:
            InnerVisionError: naming a process and what differs.
        """
        first, *others = self.exchange(dict(facts))
        for index, other in enumerate(others, 1):
            if wrong := [name for name in first if other.get(name) != first[name]]:
                shown = "; ".join(f"{name} is {other.get(name)!r:.80}, not {first[name]!r:.80}" for name in wrong[:3])
                raise SharedError(
                    f"process {index} of {self.count} differs from the first one: {shown}\n"
                    "Start all of them with the same command, code and versions of packages."
                )

    def spread(self, stop: StopRequest) -> None:
        """Pass this request to stop on to the other processes from now on, and theirs to this one."""
        if self.watch:
            self.watch.stop = stop

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Meet, then talk in the block; whoever breaks off is named."""
        assert self.watch
        self.watch.meet(self.name, self.count)
        try:
            yield
        except RuntimeError as error:  # of torch.distributed
            self.watch.explain(error)


@contextmanager
def join_processes(device: str | None = None) -> Iterator[Rank]:
    """Meet the other processes, if there are any, and share the work with them while the block runs.

    An error in the block ends the others with it. They leave the block together.

    Args:
        device: "cpu" to stay off the accelerators.

    Raises:
        InnerVisionError: the others do not come, or one of them fails.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Rank()
        return
    own = _begin(device)
    index, size = distributed.get_rank(), distributed.get_world_size()
    store, _, _ = next(iter(distributed.rendezvous("env://")))
    watch = Watch(distributed.PrefixStore(f"innervision/{next(_joined)}", store), index, size)
    try:
        yield Rank(index, size, own, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), watch)
        watch.leave()
    except Stopped:
        watch.leave()
        raise
    except BaseException as error:
        watch.fail(error)
        raise


def _begin(device: str | None) -> str:
    """Begin to talk to the other processes, and give this one's device.

    Raises:
        InnerVisionError: they cannot be reached.
    """
    accelerator = None if device == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    own = f"{accelerator.type}:{os.environ.get('LOCAL_RANK', '0')}" if accelerator else "cpu"
    if distributed.is_initialized():
        return own
    backend = "gloo"
    if accelerator:
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
        backend = f"cpu:gloo,{accelerator.type}:{distributed.get_default_backend_for_device(accelerator)}"
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        distributed.init_process_group(backend, timeout=timedelta(seconds=ARRIVAL))
    except (RuntimeError, ValueError, OSError) as error:
        reason = first_line(error)
        advice = (
            "take another port (MASTER_PORT, or torchrun --master-port)"
            if "EADDRINUSE" in str(error) or "address already in use" in str(error)
            else f"see that all {os.environ['WORLD_SIZE']} of them were started and reach this address"
        )
        raise InnerVisionError(f"the processes cannot meet at {place}: {reason}\n{advice}") from error
    return own
