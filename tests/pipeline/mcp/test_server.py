"""`sightline mcp` as a process, through the client of the official SDK: over standard input and output, and over HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters, stdio_client

from pipeline.access.authentication import Authentication
from pipeline.access.caller import Grant
from pipeline.access.roles import Action, Role
from tests.support.desk import command_environment, rendered_store
from tests.support.kafka_server import free_ports

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered_store(tmp_path_factory.mktemp("rendered"), 0.5)


def with_client(store: Path, state: Path, use: Callable[[Client], Awaitable[None]], *arguments: str) -> None:
    command = ["-m", "pipeline.cli", "mcp", "--store", str(store), "--state", str(state), *arguments]
    server = StdioServerParameters(command=sys.executable, args=command, env=command_environment(state.parent))

    async def run() -> None:
        async with Client(stdio_client(server)) as client:
            await use(client)

    asyncio.run(run())


def test_the_tools_over_standard_input_and_output(store: Path, tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools == {"list_streams", "search", "ask", "keyframes", "moment"}
        streams: Any = (await client.call_tool("list_streams", {})).structured_content
        assert [each["stream_id"] for each in streams["items"]] == ["camera-1", "camera-2"]
        found: Any = (await client.call_tool("search", {"text": "a red dog", "limit": 1})).structured_content
        best = found["items"][0]
        shown = await client.call_tool("moment", {"stream": best["stream_id"], "at": best["best"], "limit": 2})
        assert [block.type for block in shown.content] == ["text", "image"] * 2
        asked: Any = (
            await client.call_tool("ask", {"question": "Where was the red dog?", "options": ["door", "gate"]})
        ).structured_content
        assert asked["answer"]["option"] in ("door", "gate")
        frames = await client.call_tool("keyframes", {"question_id": asked["id"], "limit": 3})
        assert [block.type for block in frames.content] == ["text", "image"] * 3
        wrong = await client.call_tool("moment", {"stream": "nope", "at": best["best"]})
        assert wrong.is_error
        assert "no such stream" in str(wrong.content[0])

    with_client(store, tmp_path / "state", use)


def test_a_stream_that_the_token_may_not_see_does_not_exist(store: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    users = Authentication(state)
    users.users.add("ann", "correct horse battery", [Grant("*", Role.ADMIN)])
    users.users.add("eve", "correct horse battery", [Grant("camera-2", Role.INVESTIGATOR)])
    _, text = users.tokens.make("eve", "mcp", [Action.VIEW, Action.ASK], 1.0)
    users.close()
    (tmp_path / "token").write_text(text)

    async def use(client: Client) -> None:
        streams: Any = (await client.call_tool("list_streams", {})).structured_content
        assert [each["stream_id"] for each in streams["items"]] == ["camera-2"]
        found: Any = (await client.call_tool("search", {"text": "a red dog", "limit": 50})).structured_content
        assert {each["stream_id"] for each in found["items"]} == {"camera-2"}
        hidden, absent = [
            str((await client.call_tool("moment", {"stream": name, "at": "2024-05-01T09:09:00Z"})).content[0])
            for name in ("camera-1", "camera-9")
        ]
        assert hidden.replace("camera-1", "X") == absent.replace("camera-9", "X")

    with_client(store, state, use, "--token-file", str(tmp_path / "token"))
    command = [sys.executable, "-m", "pipeline.cli", "mcp", "--store", str(store), "--state", str(state)]
    refused = subprocess.run(
        command,
        env=command_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert refused.returncode == 1
    assert "--token-file" in refused.stderr


def test_http_on_loopback(store: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "pipeline.cli", "mcp", "--store", str(store), "--http", str(port)]
    process = subprocess.Popen(
        [*command, "--state", str(tmp_path / "state")], env=command_environment(tmp_path), cwd=tmp_path
    )

    async def names() -> list[str]:
        async with Client(f"http://127.0.0.1:{port}/mcp") as client:
            found: Any = (await client.call_tool("list_streams", {})).structured_content
            return [each["stream_id"] for each in found["items"]]

    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                assert asyncio.run(names()) == ["camera-1", "camera-2"]
                break
            except AssertionError:
                raise
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
    finally:
        process.terminate()
        process.wait(60)
    elsewhere = subprocess.run(
        [*command, "--host", "0.0.0.0"], env=command_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert elsewhere.returncode == 2
    assert "loopback" in elsewhere.stderr
