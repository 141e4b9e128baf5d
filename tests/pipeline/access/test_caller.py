"""Roles and callers: what each role includes, and that streams without a grant do not exist."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import Forbidden, UnknownStream
from pipeline.access.caller import Caller, Grant
from pipeline.access.roles import Action, Role, allows

STREAMS = ["Gate", "gate", "gate-2", "gаte", "yard"]  # the fourth has a Cyrillic a


def test_each_role_includes_those_before_it() -> None:
    allowed = {role: {action for action in Action if allows(role, action)} for role in Role}
    assert allowed[Role.VIEWER] == {Action.VIEW}
    assert allowed[Role.INVESTIGATOR] - allowed[Role.VIEWER] == {Action.ASK, Action.EXPORT, Action.HOLD}
    assert allowed[Role.OPERATOR] - allowed[Role.INVESTIGATOR] == {Action.STANDING, Action.RETENTION}
    assert allowed[Role.ADMIN] == set(Action)


def test_names_that_look_alike_or_nest_do_not_cross() -> None:
    caller = Caller("ann", (Grant("gate", Role.VIEWER),))
    assert caller.visible(STREAMS) == ["gate"]
    assert Caller("bob", (Grant("gate-*", Role.VIEWER),)).visible(STREAMS) == ["gate-2"]


def test_a_stream_without_a_grant_gives_the_error_of_one_that_does_not_exist() -> None:
    caller = Caller("ann", (Grant("gate", Role.VIEWER),))
    with pytest.raises(UnknownStream) as hidden:
        caller.scope(["yard"], STREAMS)
    with pytest.raises(UnknownStream) as missing:
        caller.scope(["yard"], ["gate"])
    assert str(hidden.value) == str(missing.value)
    assert "gate-2" not in str(hidden.value)


def test_a_visible_stream_without_the_action_is_forbidden() -> None:
    caller = Caller("ann", (Grant("*", Role.VIEWER), Grant("gate", Role.INVESTIGATOR)))
    assert caller.scope(["gate"], STREAMS, Action.ASK) == ["gate"]
    assert caller.scope(None, STREAMS, Action.ASK) == ["gate"]
    with pytest.raises(Forbidden, match="yard: ann may not ask"):
        caller.scope(["yard"], STREAMS, Action.ASK)
    with pytest.raises(Forbidden):
        Caller("eve", (Grant("*", Role.VIEWER),)).scope(None, STREAMS, Action.ASK)


def test_the_scopes_of_a_token_limit_its_role() -> None:
    caller = Caller("ann", (Grant("*", Role.ADMIN),), scopes=frozenset({Action.VIEW}))
    assert caller.may(Action.VIEW, "gate")
    assert not caller.may(Action.ASK, "gate")
    assert not caller.may_somewhere(Action.USERS)


@given(
    st.lists(st.text("ab-*?", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab-", min_size=1, max_size=4), max_size=6, unique=True),
)
def test_what_is_visible_is_what_a_grant_matches(patterns: list[str], streams: list[str]) -> None:
    caller = Caller("ann", tuple(Grant(pattern, Role.VIEWER) for pattern in patterns))
    seen = caller.visible(streams)
    assert seen == sorted({stream for pattern in patterns for stream in fnmatch.filter(streams, pattern)})
    for stream in set(streams) - set(seen):
        with pytest.raises(UnknownStream):
            caller.scope([stream], streams)
