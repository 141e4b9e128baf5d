"""Users, passwords, sessions, tokens: what is stored, what expires, what ends with what."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import argon2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import LoginRequired, StoreDenied, StoreVersion, TooManyAttempts, UsageError
from pipeline.access import passwords
from pipeline.access.authentication import DATABASE, Authentication
from pipeline.access.caller import Grant
from pipeline.access.database import StateDatabase, make_state_folder
from pipeline.access.roles import Action, Role
from pipeline.access.schema import MIGRATIONS
from pipeline.access.sessions import Sessions, csrf_token
from pipeline.access.throttle import LoginThrottle
from pipeline.access.tokens import Tokens
from pipeline.access.users import check_user_name, parse_grant
from tests.support.desk_access import PASSWORD, add_users

HOUR = 3600.0


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def desk(tmp_path: Path) -> Authentication:
    add_users(tmp_path)
    return Authentication(tmp_path)


# ---- the database ------------------------------------------------------------------------------------------------------


def test_the_database_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    Authentication(state).users.any()
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for file in state.iterdir():  # the write-ahead log too
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_state_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StoreDenied, match="chmod go-w"):
        make_state_folder(tmp_path)


def test_a_database_gets_the_versions_that_it_lacks(tmp_path: Path) -> None:
    first, second = "CREATE TABLE a (x INTEGER)", "ALTER TABLE a ADD COLUMN y INTEGER; CREATE TABLE b (x INTEGER)"
    old = StateDatabase(tmp_path / "d", [first])
    old.execute("INSERT INTO a VALUES (?)", 7)
    old.close()
    new = StateDatabase(tmp_path / "d", [first, second])
    assert [tuple(row) for row in new.rows("SELECT x, y FROM a")] == [(7, None)]
    with pytest.raises(StoreVersion):
        StateDatabase(tmp_path / "d", [first])
    with pytest.raises(StoreDenied):
        StateDatabase(tmp_path / "d", [first, second, "NOT SQL"])
    assert new.row("PRAGMA user_version")[0] == 2  # type: ignore[index]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"x" * 5_000)
    with pytest.raises(StoreDenied, match="cannot be used as a database"):
        StateDatabase(tmp_path / "d", MIGRATIONS)


def test_two_processes_change_one_database(tmp_path: Path, desk: Authentication) -> None:
    other = Authentication(tmp_path)

    def add(authentication: Authentication, pattern: str) -> None:
        for number in range(20):
            authentication.users.grant("eve", Grant(f"{pattern}{number}", Role.VIEWER))

    threads = [threading.Thread(target=add, args=each) for each in ((desk, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(desk.users.get("eve").grants) == 41


# ---- passwords -----------------------------------------------------------------------------------------------------------


def test_passwords_are_stored_as_argon2id(tmp_path: Path, desk: Authentication) -> None:
    stored = desk.database.row("SELECT password FROM users WHERE name = 'ann'")
    assert stored is not None
    assert stored["password"].startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert all(PASSWORD.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_hash_of_weaker_parameters_is_renewed_at_the_next_log_in(desk: Authentication) -> None:
    weak = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    desk.database.execute("UPDATE users SET password = ? WHERE name = 'ann'", weak)
    assert desk.users.authenticate("ann", "wrong password") is None
    assert desk.database.row("SELECT password FROM users WHERE name = 'ann'")["password"] == weak  # type: ignore[index]
    assert desk.users.authenticate("ann", PASSWORD) is not None
    renewed = desk.database.row("SELECT password FROM users WHERE name = 'ann'")
    assert renewed is not None
    assert renewed["password"].startswith("$argon2id$v=19$m=65536")
    assert desk.users.authenticate("ann", PASSWORD) is not None


def test_an_unknown_name_takes_the_same_work(desk: Authentication, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    verify = argon2.PasswordHasher.verify

    def counted(self: argon2.PasswordHasher, stored: str, password: str) -> bool:
        checked.append(stored.split("$")[3])
        return verify(self, stored, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counted)
    for name in ("ann", "nobody"):
        with pytest.raises(LoginRequired, match="the name or the password is wrong"):
            desk.log_in(name, "wrong password", "10.0.0.1")
    assert checked == ["m=65536,t=3,p=4"] * 2


def test_a_password_may_be_typed_in_either_form_of_unicode() -> None:
    stored = passwords.hash_password("pässwörter!?")
    assert passwords.check_password("pa\u0308sswo\u0308rter!?", stored)[0]
    with pytest.raises(UsageError, match="12 to 1024"):
        passwords.hash_password("short")
    assert not passwords.check_password("\ud800" * 10, None)[0]


# ---- users ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Ann", "аnn", "an n", "-ann", "local", "a" * 65, "ann\n", "oidc:ann"])
def test_names_that_could_be_mistaken_are_invalid(name: str) -> None:
    with pytest.raises(UsageError):
        check_user_name(name)


def test_a_grant_is_a_role_and_a_pattern() -> None:
    assert parse_grant("admin") == Grant("*", Role.ADMIN)
    assert parse_grant("viewer:gate-*") == Grant("gate-*", Role.VIEWER)
    assert parse_grant("viewer:cafe\u0301") == Grant("café", Role.VIEWER)
    for text in ("", "root", "viewer:", "Viewer:gate", "viewer:a\nb"):
        with pytest.raises(UsageError):
            parse_grant(text)


def test_roles_change_at_once_and_the_last_administrator_stays(desk: Authentication) -> None:
    session = desk.sessions.begin("eve", "session")
    desk.users.grant("eve", Grant("yard", Role.OPERATOR))
    caller = desk.of_session(session, "10.0.0.1")
    assert caller is not None
    assert caller.grants == (Grant("gate-*", Role.VIEWER), Grant("yard", Role.OPERATOR))
    assert (caller.via, caller.origin) == ("session", "10.0.0.1")
    desk.users.revoke("eve", "gate-*")
    caller = desk.of_session(session, "10.0.0.1")
    assert caller is not None
    assert caller.visible(["gate-1", "yard"]) == ["yard"]
    for change in (lambda: desk.users.revoke("ann", "*"), lambda: desk.users.remove("ann")):
        with pytest.raises(UsageError, match="no user would be left"):
            change()
    with pytest.raises(UsageError, match="no user would be left"):
        desk.users.grant("ann", Grant("*", Role.OPERATOR))
    assert desk.users.get("ann").grants == (Grant("*", Role.ADMIN),)
    desk.users.grant("eve", Grant("*", Role.ADMIN))
    desk.users.remove("ann")
    with pytest.raises(UsageError, match="last user"):
        desk.users.remove("eve")
    desk.users.remove("eve", last=True)
    assert not desk.required


def test_a_disabled_user_is_refused_until_it_is_admitted_again(desk: Authentication) -> None:
    session = desk.sessions.begin("eve", "session")
    _, token = desk.tokens.make("eve", "script", ["view"], 1)
    assert desk.users.disable("eve", True).disabled
    assert desk.of_session(session, "") is None
    assert desk.of_token(token, "") is None
    assert desk.users.authenticate("eve", PASSWORD) is None
    with pytest.raises(UsageError, match="no user would be left"):
        desk.users.disable("ann", True)
    desk.users.disable("eve", False)
    assert desk.of_session(session, "") is None, "the session has ended"
    assert desk.of_token(token, "") is not None


def test_the_last_log_in_is_kept(desk: Authentication) -> None:
    assert desk.users.get("eve").logged_in is None
    desk.log_in("eve", PASSWORD, "10.0.0.1")
    assert desk.users.get("eve").logged_in is not None


def test_a_name_is_taken_once(desk: Authentication) -> None:
    with pytest.raises(UsageError, match="already"):
        desk.users.add("ann", "another password", [])
    assert desk.users.authenticate("ann", PASSWORD) is not None


# ---- sessions ------------------------------------------------------------------------------------------------------------


def test_a_log_in_makes_a_new_session_each_time(desk: Authentication) -> None:
    first, second = (desk.log_in("ann", PASSWORD, "10.0.0.1") for _ in range(2))
    assert first != second
    assert csrf_token(first) != csrf_token(second)
    assert desk.of_session("chosen by a stranger", "10.0.0.1") is None
    files = b"".join(file.read_bytes() for file in desk.database.path.parent.iterdir())
    assert first.encode() not in files


def test_sessions_expire(desk: Authentication) -> None:
    clock = Clock()
    sessions = Sessions(desk.database, seconds=10 * HOUR, idle_seconds=HOUR, clock=clock)
    idle, used = sessions.begin("ann", "session"), sessions.begin("ann", "session")
    for _ in range(11):
        assert sessions.find(used) is not None
        clock.now += 0.9 * HOUR
    assert sessions.find(idle) is None
    clock.now += 0.2 * HOUR
    assert sessions.find(used) is None, "a session ends after its longest life, used or not"
    assert not desk.database.rows("SELECT * FROM sessions")


def test_a_new_password_and_a_removal_end_all_sessions(desk: Authentication) -> None:
    session, other = desk.sessions.begin("eve", "session"), desk.sessions.begin("ann", "session")
    desk.users.set_password("eve", "another password")
    assert desk.of_session(session, "") is None
    assert desk.of_session(other, "") is not None
    again = desk.sessions.begin("eve", "session")
    _, token = desk.tokens.make("eve", "script", ["view"], 1)
    desk.users.remove("eve")
    assert desk.of_session(again, "") is None
    assert desk.of_token(token, "") is None


def test_a_user_has_a_bounded_number_of_sessions(desk: Authentication) -> None:
    made = [desk.sessions.begin("ann", "session") for _ in range(40)]
    assert [desk.sessions.find(each) is not None for each in made] == [False] * 8 + [True] * 32


# ---- tokens --------------------------------------------------------------------------------------------------------------


def test_a_token_has_its_scopes_at_most(desk: Authentication) -> None:
    made, text = desk.tokens.make("ann", "script", ["view", "ask"], 1)
    caller = desk.of_token(text, "10.0.0.1")
    assert caller is not None
    assert {action for action in Action if caller.may(action, "gate-1")} == {Action.VIEW, Action.ASK}
    _, of_eve = desk.tokens.make("eve", "script", list(Action), 1)
    caller = desk.of_token(of_eve, "10.0.0.1")
    assert caller is not None
    assert {action for action in Action if caller.may(action, "gate-1")} == {Action.VIEW}
    assert not caller.may(Action.VIEW, "yard")
    assert text.startswith(f"{made.prefix}_")
    files = b"".join(file.read_bytes() for file in desk.database.path.parent.iterdir())
    assert text.encode() not in files
    assert made.prefix.encode() in files


def test_tokens_expire_and_are_revoked(desk: Authentication) -> None:
    clock = Clock()
    tokens = Tokens(desk.database, clock=clock)
    made, text = tokens.make("eve", "script", ["view"], 2)
    clock.now += 2 * 24 * HOUR - 1
    assert tokens.find(text) is not None
    clock.now += 1
    assert tokens.find(text) is None
    other, again = tokens.make("eve", "other", ["view"], 2)
    assert [token.prefix for token in tokens.of_user("eve")] == [made.prefix, other.prefix]
    with pytest.raises(UsageError, match="no token"):
        tokens.revoke("ann", other.prefix)
    tokens.revoke("eve", other.prefix)
    assert tokens.find(again) is None


@pytest.mark.parametrize(
    ("label", "scopes", "days"),
    [
        ("", ["view"], 1),
        ("x", [], 1),
        ("x", ["root"], 1),
        ("x", ["view"], 0),
        ("x", ["view"], 367),
        ("a\nb", ["view"], 1),
    ],
)
def test_invalid_tokens_are_not_made(desk: Authentication, label: str, scopes: list[str], days: float) -> None:
    with pytest.raises(UsageError):
        desk.tokens.make("eve", label, scopes, days)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tokens]:
    database = StateDatabase(tmp_path_factory.mktemp("token") / DATABASE, MIGRATIONS)
    database.execute("INSERT INTO users (name, created) VALUES ('ann', 0)")
    tokens = Tokens(database)
    return tokens.make("ann", "x", ["view"], 1)[1], tokens


@settings(deadline=None)  # other processes use the cores
@given(place=st.integers(0, 54), letter=st.sampled_from("Aa0-_x"))
def test_a_token_with_another_letter_is_no_token(token: tuple[str, Tokens], place: int, letter: str) -> None:
    text, tokens = token
    changed = text[:place] + letter + text[place + 1 :]
    assert (tokens.find(changed) is None) == (changed != text)


# ---- throttling ----------------------------------------------------------------------------------------------------------


def fail(throttle: LoginThrottle, name: str, address: str, times: int) -> int:
    """Number of attempts of `times` that the throttle allows."""
    allowed = 0
    for _ in range(times):
        try:
            throttle.begin(name, address)
            allowed += 1
        except TooManyAttempts:
            continue
    return allowed


def test_failures_are_limited_by_name_and_address() -> None:
    clock = Clock()
    throttle = LoginThrottle(by_pair=5, by_address=20, by_name=30, seconds=300, clock=clock)
    assert fail(throttle, "ann", "10.0.0.1", 9) == 5
    assert fail(throttle, "ann", "10.0.0.2", 9) == 5, "a stranger does not lock the user out"
    assert sum(fail(throttle, f"user{n}", "10.0.0.1", 1) for n in range(30)) == 15, "names from one address"
    assert sum(fail(throttle, "ann", f"10.0.1.{n}", 1) for n in range(30)) == 20, "one name from many addresses"
    clock.now += 300
    assert fail(throttle, "ann", "10.0.0.1", 9) == 5


def test_a_success_is_not_counted_and_forgets_the_failures_before() -> None:
    throttle = LoginThrottle(by_pair=5, by_address=20, clock=Clock())
    for _ in range(100):
        throttle.begin("ann", "10.0.0.1")
        throttle.succeeded("ann", "10.0.0.1")
    assert len(throttle) == 0
    assert fail(throttle, "ann", "10.0.0.1", 4) == 4
    throttle.begin("ann", "10.0.0.1")
    throttle.succeeded("ann", "10.0.0.1")
    assert fail(throttle, "ann", "10.0.0.1", 9) == 5
    # The owner of one account does not reset the limit of the address.
    assert sum(fail(throttle, f"user{n}", "10.0.0.1", 1) for n in range(30)) == 11


def test_an_address_of_ipv6_counts_by_its_network_and_memory_is_bounded() -> None:
    throttle = LoginThrottle(by_address=3, clock=Clock())
    assert sum(fail(throttle, f"user{n}", f"2001:db8::{n:x}", 1) for n in range(9)) == 3
    assert fail(throttle, "ann", "::ffff:10.0.0.1", 1) + fail(throttle, "ben", "10.0.0.1", 9) == 3
    for number in range(25_000):
        fail(throttle, f"n{number}" * 100, f"2001:db8:{number >> 8:x}:{number & 255:x}::1", 1)
    assert len(throttle) <= 30_000


def test_a_log_in_is_throttled_even_with_the_right_password(desk: Authentication) -> None:
    desk.throttle = LoginThrottle(by_pair=1)
    with pytest.raises(LoginRequired):
        desk.log_in("ann", "wrong password", "10.0.0.1")
    with pytest.raises(TooManyAttempts) as refused:
        desk.log_in("ann", PASSWORD, "10.0.0.1")
    assert 0 < refused.value.retry_after <= 300
    assert desk.log_in("ann", PASSWORD, "10.0.0.2")


def test_the_database_has_the_name_that_other_programs_look_for(tmp_path: Path) -> None:
    Authentication(tmp_path)
    assert (tmp_path / DATABASE).name == "desk.sqlite"
