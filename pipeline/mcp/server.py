"""The MCP server of the desk: tools with which a language model looks at footage.

    list_streams   what there is
    search         moments that match a text
    ask            an answer, and the times of the keyframes behind it
    keyframes      the keyframes of an answer, as pictures
    moment         the frames around a time, as pictures

The tools are the functions of `pipeline.desk`, on behalf of one caller; each use is in the audit trail. An error is the
sentence that the command line would print.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

from index.errors import DeadlineExceeded, SightlineError, mask_url
from index.records import parse_rfc3339, parse_time
from pipeline.access.caller import Caller
from pipeline.desk import asking, moments, search, streams
from pipeline.desk.asking import AskQuery
from pipeline.desk.desk import Desk
from pipeline.desk.search import SearchQuery

__all__ = ["make_server", "run_http", "run_stdio"]

Result = TypeVar("Result")
_INSTRUCTIONS = (
    "Sightline answers questions about hours of video and shows the moments that prove the answer. Begin with "
    "list_streams. Times are RFC 3339, UTC. A search always returns the best moments there are, also if nothing fits: "
    "look at the pictures with moment before you rely on one. A score says how well a frame matches, not that the "
    "thing is there."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ANSWER_SECONDS = 900.0
_MOST_PICTURES = 16
_WIDTH = 480


def make_server(desk: Desk, who: Callable[[], Caller]) -> MCPServer[Any]:
    """The server with its tools.

    Args:
        desk: the desk.
        who: returns the caller of a tool, anew for each use; raises LoginRequired if there is none any more.
    """
    server: MCPServer[Any] = MCPServer("sightline", instructions=_INSTRUCTIONS, log_level="WARNING")

    @server.tool(annotations=_READS)
    async def list_streams(cursor: str | None = None) -> dict[str, Any]:
        """List the cameras and archives: first and last frame, days with gaps, and the cursor of the next page."""
        return await _call(lambda: streams.list_streams(desk, who(), cursor=cursor).model_dump(mode="json"))

    @server.tool(name="search", annotations=_READS)
    async def search_moments(
        text: str,
        streams: list[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int = 10,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Find moments that match a description, the best first.

        Args:
            text: what to look for, such as "a red car".
            streams: names and patterns such as gate-*; all without it.
            start: first time, RFC 3339.
            end: last time, exclusive, RFC 3339.
            limit: largest number of moments, 1 to 50.
            cursor: `next` of the page before.
        """

        def work() -> dict[str, Any]:
            """Search."""
            caller = who()
            query = SearchQuery(
                text=text, streams=streams, start=parse_time(start, "start"), end=parse_time(end, "end")
            )
            found = search.search(desk, caller, query, limit=min(50, max(1, limit)), cursor=cursor)
            desk.audit(caller, "search", streams=found.searched.streams, detail={"search": text})
            return found.model_dump(mode="json")

        return await _call(work)

    @server.tool(annotations=_READS)
    async def ask(
        question: str,
        options: list[str] | None = None,
        streams: list[str] | None = None,
        start: str | None = None,
        end: str | None = None,
    ) -> dict[str, Any]:
        """Ask the language model a question about footage. The result has the answer, its id and the keyframes' times.

        Args:
            question: the question.
            options: answers to choose from; an open question without them.
            streams: names and patterns such as gate-*; all without it.
            start: first time, RFC 3339.
            end: last time, exclusive, RFC 3339.
        """

        def work() -> dict[str, Any]:
            """Ask, and wait for the answer."""
            caller = who()
            query = AskQuery(
                question=question,
                options=options or (),
                streams=streams,
                start=parse_time(start, "start"),
                end=parse_time(end, "end"),
            )
            run = asking.ask_recorded(desk, caller, query)
            if not run.wait(_ANSWER_SECONDS):
                raise DeadlineExceeded("no answer in time; ask about a shorter time")
            if run.error is not None:
                raise run.error
            entry = run.entry(whole=True).model_dump(mode="json")
            entry["selected"].pop("relevance")
            return entry

        return await _call(work)

    @server.tool(annotations=_READS, structured_output=False)
    async def keyframes(question_id: str, limit: int = 8) -> list[Any]:
        """Show the most relevant keyframes of an answer as pictures, in the order of time.

        Args:
            question_id: `id` of the result of ask.
            limit: largest number of pictures, 1 to 16.
        """

        def work() -> list[Any]:
            """Read the pictures."""
            caller = who()
            entry = asking.read_question(desk, caller, question_id)
            held = [] if entry.selected is None else entry.selected.keyframes
            best = sorted(held, key=lambda each: -each.score)[: min(_MOST_PICTURES, max(1, limit))]
            chosen = sorted(best, key=lambda each: (each.stream_id, each.captured_at))
            desk.audit(caller, "frames", streams=entry.streams, detail={"question": question_id})
            return _pictures(desk, caller, [(each.stream_id, each.captured_at) for each in chosen])

        return await _call(work)

    @server.tool(annotations=_READS, structured_output=False)
    async def moment(stream: str, at: str, seconds: float = 10.0, limit: int = 6) -> list[Any]:
        """Show the frames of a stream around a time as pictures, in the order of time.

        Args:
            stream: name of the stream.
            at: the time, RFC 3339.
            seconds: length of the stretch around it, 1 to 600.
            limit: largest number of pictures, 1 to 16.
        """

        def work() -> list[Any]:
            """Read the pictures."""
            caller = who()
            span = min(600.0, max(1.0, seconds))
            view = moments.moment(desk, caller, stream, parse_rfc3339(at), span_seconds=span)
            desk.audit(caller, "moment", streams=[view.stream_id], detail={"at": view.at})
            count = min(_MOST_PICTURES, max(1, limit), len(view.frames))
            places = sorted({round(i * (len(view.frames) - 1) / max(1, count - 1)) for i in range(count)})
            return _pictures(desk, caller, [(view.stream_id, view.frames[place].captured_at) for place in places])

        return await _call(work)

    return server


async def _call(work: Callable[[], Result]) -> Result:
    """Run a function in a thread; its errors are those of the tool."""
    try:
        return await asyncio.to_thread(work)
    except SightlineError as error:
        raise ToolError(mask_url(str(error))) from None


def _pictures(desk: Desk, caller: Caller, frames: list[tuple[str, str]]) -> list[Any]:
    """A line of text and a picture for each frame."""
    found: list[Any] = []
    for stream_id, at in frames:
        found.append(f"{stream_id} at {at}")
        data = moments.thumbnail(desk, caller, stream_id, parse_rfc3339(at), _WIDTH)
        found.append(Image(data=data, format="jpeg"))
    return found or ["there are no pictures"]


def run_stdio(server: MCPServer[Any]) -> None:
    """Serve one client over standard input and output, until it closes them."""
    server.run("stdio")


def run_http(server: MCPServer[Any], host: str, port: int) -> None:
    """Serve clients over streamable HTTP at `http://host:port/mcp`, until interrupted."""
    server.run("streamable-http", host=host, port=port)
