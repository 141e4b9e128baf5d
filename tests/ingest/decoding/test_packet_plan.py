"""The plan of what to decode, against a decoder in which every reference is written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.decoding.packet_plan import PacketInfo, PacketPlan
from ingest.decoding.sampler import Sampler
from tests.support.naive_sampler import naive


@dataclass(frozen=True, slots=True)
class Coded:
    """One coded frame: what it refers to, by name (its place in decoding order)."""

    name: int
    refers: tuple[int, ...]
    disposable: bool


def stream(groups: list[list[int]], frame: float, open_gop: bool) -> list[PacketInfo[Coded]]:
    """Groups of mini-groups: `[2, 0, 3]` is a key frame and then P frames with 2, 0 and 3 B frames before them.

    In an open GOP the key frame itself has B frames before it that refer to the group before, too.
    """
    units: list[PacketInfo[Coded]] = []
    shown, last = 0, -1
    for number, group in enumerate(groups):
        for at, leading in enumerate(group):
            between = leading if at > 0 or (open_gop and number > 0) else 0
            name = len(units)
            key = at == 0
            references = () if key else (last,)
            units.append(PacketInfo(Coded(name, references, False), (shown + between) * frame, key))
            for b in range(between):
                coded = Coded(len(units), (last, name), True)
                units.append(PacketInfo(coded, (shown + b) * frame, False))
            shown, last = shown + between + 1, name
    return units


def decoded(units: list[PacketInfo[Coded]], plan: PacketPlan[Coded]) -> list[float]:
    """Times of frames that come out whole, in order; a reference that is not there is an error of the plan."""
    times = {unit.packet.name: unit.pts for unit in units}
    there: set[int] = set()
    for planned in plan:
        if planned.packet.disposable and not planned.required:
            continue
        if all(name in there for name in planned.packet.refers):
            there.add(planned.packet.name)
        else:
            assert not planned.required, f"{planned.packet} lacks what it refers to"
    return sorted(pts for name, pts in times.items() if name in there and pts is not None)


groups = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=30)


@settings(max_examples=400, deadline=None)
@given(groups, st.sampled_from([1 / 30, 0.04, 0.25, 1.0, 1.7]), st.booleans(), st.sampled_from([0.2, 1.0, 5.0]))
def test_what_is_wanted_comes_out(gops: list[list[int]], frame: float, open_gop: bool, fps: float) -> None:
    units = stream(gops, frame, open_gop)
    every = sorted(unit.pts for unit in units if unit.pts is not None)
    plan = PacketPlan(units, Sampler(fps, first=every[0]), mode="nonref", tolerance=0.0)
    sampler = Sampler(fps, first=every[0])
    assert [pts for pts in decoded(units, plan) if sampler.take(pts)] == naive(every, fps)
    assert plan.mode == "nonref"


@settings(max_examples=200, deadline=None)
@given(groups, st.sampled_from([1 / 30, 0.25, 1.0]), st.booleans())
def test_key_frames_are_late_at_most_by_the_tolerance(gops: list[list[int]], frame: float, open_gop: bool) -> None:
    units = stream(gops, frame, open_gop)
    every = sorted(unit.pts for unit in units if unit.pts is not None)
    plan = PacketPlan(units, Sampler(first=every[0]), mode="keyframes", tolerance=1.0)
    sampler = Sampler(first=every[0])
    taken = [pts for pts in decoded(units, plan) if sampler.take(pts)]
    for exact in naive(every, 1.0):
        assert any(exact - 1e-6 <= pts <= exact + 1.0 + frame for pts in taken)


def test_key_frames_that_become_rare_are_not_enough() -> None:
    units = stream([[0] * 10] * 5 + [[0] * 100], 0.1, False)
    plan = PacketPlan(units, Sampler(first=0.0), mode="keyframes", tolerance=1.05)
    assert [p.packet.name for p in plan][:5] == [0, 10, 20, 30, 40]
    assert plan.mode == "nonref"


def test_the_end_of_a_group_that_nobody_wants_is_not_decoded() -> None:
    units = stream([[0] * 18] * 4, 0.1, False)  # 1.8 s each
    plan = PacketPlan(units, Sampler(first=0.0), mode="nonref", tolerance=0.0)
    assert [p.packet.name for p in plan] == [*range(11), *range(18, 31), *range(36, 51), *range(54, 71)]


def test_without_times_everything_is_decoded() -> None:
    units = [
        PacketInfo(u.packet, u.pts if i < 30 else None, u.sync_point)
        for i, u in enumerate(stream([[0] * 40], 0.1, False))
    ]
    plan = PacketPlan(units, Sampler(first=0.0), mode="nonref", tolerance=0.0)
    planned = list(plan)
    assert plan.mode == "all"
    assert [p.packet.name for p in planned] == list(range(40))
    assert all(p.required for p in planned[-10:])


def test_a_clock_that_leaps_back_does_not_hold_the_whole_file() -> None:
    held = []

    def leaping() -> Iterator[PacketInfo[Coded]]:
        yield from (PacketInfo(Coded(i, (), False), 1e6, i == 0) for i in range(50))
        for i in range(50, 1000):
            held.append(plan.held)
            yield PacketInfo(Coded(i, (), False), i / 10, i % 10 == 0, size=2**20)

    plan = PacketPlan(leaping(), Sampler(first=0.0), mode="nonref", tolerance=0.0)
    assert [planned.packet.name for planned in plan] == [0]
    assert len(held) == 950
    assert 100 <= max(held) <= 49 + 65  # 64 MiB of packets of one MiB behind the small ones
