"""Which rows a step sees: fair, seeded, never twice in a step, never on two ranks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.methods.sampling import Step, schedule, stream

sizes = st.integers(1, 40)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.integers(1, 20), st.integers(1, 40), st.integers(0, 5))
def test_no_step_holds_a_row_twice_so_no_two_ranks_see_the_same(
    forget: int, retain: int, batch: int, steps: int, seed: int
) -> None:
    for step in schedule(forget, retain, batch_size=batch, epochs=1, steps=steps, seed=seed):
        for ranks in (2, 3):
            for role in ("forget", "retain"):
                shares = [getattr(step.of_rank(rank, ranks), role) for rank in range(ranks)]
                together = [row for share in shares for row in share]
                assert len(together) == len(set(together))
                assert sorted(together) == sorted(getattr(step, role))
                assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_every_pass_draws_every_row_once(rows: int, draws: int, per_step: int, seed: int) -> None:
    drawn = stream(rows, draws, seed, 0, min(per_step, rows)).tolist()
    assert len(drawn) == draws
    for start in range(0, draws, rows):
        part = drawn[start : start + rows]
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(rows))
    counts = Counter(drawn)
    assert max(counts.values()) - min(counts.get(i, 0) for i in range(rows)) <= 1


def test_the_seed_and_the_role_decide_and_nothing_else() -> None:
    assert stream(50, 120, 3, 0).tolist() == stream(50, 120, 3, 0).tolist()
    assert stream(50, 120, 3, 0).tolist() != stream(50, 120, 4, 0).tolist()
    assert stream(50, 120, 3, 0).tolist() != stream(50, 120, 3, 1).tolist()
    assert stream(50, 40, 3, 0).tolist() == stream(50, 120, 3, 0).tolist()[:40]


def test_an_epoch_is_a_pass_over_forget_or_over_retain_when_nothing_is_forgotten() -> None:
    steps = schedule(10, 100, batch_size=4, epochs=2, steps=None, seed=0)
    assert len(steps) == 5  # 20 forget rows by 4
    assert Counter(i for s in steps for i in s.forget) == dict.fromkeys(range(10), 2)
    fit = schedule(0, 10, batch_size=4, epochs=2, steps=None, seed=0)
    assert len(fit) == 5
    assert all(s.forget == () for s in fit)
    assert len(schedule(10, 100, batch_size=4, epochs=2, steps=7, seed=0)) == 7


def test_small_splits_give_all_their_rows_in_every_step() -> None:
    for step in schedule(1, 3, batch_size=8, epochs=3, steps=None, seed=0):
        assert step.forget == (0,)
        assert sorted(step.retain) == [0, 1, 2]


def test_a_rank_without_rows_has_an_empty_share() -> None:
    assert Step((1,), (2,)).of_rank(1, 2) == Step((), ())


def test_the_retain_rows_do_not_depend_on_the_forget_split() -> None:
    """A matched comparison: another forget set of the same size meets the same retain rows."""
    one, other = (schedule(f, 30, batch_size=4, epochs=1, steps=6, seed=1) for f in (8, 20))
    assert [s.retain for s in one] == [s.retain for s in other]
