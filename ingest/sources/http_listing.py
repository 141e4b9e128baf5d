"""Patterns of http(s) URLs: the files that the index pages of a web server list.

A page is read as text, and only links that stay below it on the same server count. Does not know media.
"""

from __future__ import annotations

import fnmatch
import html
import re
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from index.errors import SourceError, SourceNotFound, mask_url
from ingest.sources.pinned_http import PinnedHttp
from ingest.sources.url_policy import split_url

__all__ = ["http_glob"]

_MAX_PAGE_BYTES = 8 * 2**20
_MAX_PAGES = 1000
_LINK = re.compile(r"""\bhref\s*=\s*["']?([^"'\s>]{1,2048})""", re.IGNORECASE)


def http_glob(pattern: str, http: PinnedHttp) -> list[str]:
    """The URLs that `pattern` matches, sorted. `*` and `?` match within one component of the path, `**` is not special.

    Raises:
        SourceNotFound: an index page cannot be read, there are more than 1000 of them, or nothing matches.
        SourceDenied: the policy of `http` forbids the server.
    """
    parts = split_url(pattern)
    steps = parts.path.split("/")[1:]
    found, pages = [_at(parts, "/")], 0
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if "*" not in step:
            found = [url + step + ("" if last else "/") for url in found]
            continue
        matches: list[str] = []
        for url in found:
            pages += 1
            if pages > _MAX_PAGES:
                raise SourceNotFound(f"{mask_url(pattern)}: matches more than {_MAX_PAGES} folders; name fewer")
            try:
                names = _names(url, http)
            except SourceNotFound:
                if len(found) == 1:
                    raise
                continue  # one of several folders that a pattern matched
            matches += [url + name for name in names if _fits(name, step, folder=not last)]
        found = matches
    if not found:
        raise SourceNotFound(
            f"{mask_url(pattern)}: the pattern matches no link of the server's index; check the address"
        )
    return sorted(set(found))


def _at(parts: SplitResult, path: str) -> str:
    return urlunsplit(SplitResult(parts.scheme, parts.netloc, path, "", ""))


def _fits(name: str, step: str, *, folder: bool) -> bool:
    return name.endswith("/") == folder and fnmatch.fnmatchcase(unquote(name.rstrip("/")), unquote(step))


def _names(url: str, http: PinnedHttp) -> list[str]:
    """What an index page lists directly below itself: names as they are in the links, a folder's with its slash."""
    try:
        with http.open(url) as response:
            page = response.read(_MAX_PAGE_BYTES).decode("utf-8", "replace")
    except SourceError:
        raise
    except OSError as error:
        raise SourceNotFound(f"{mask_url(url)}: cannot be listed ({error.strerror or error}); try again") from None
    here = urlsplit(url)
    base = _at(here._replace(netloc=here.netloc.rpartition("@")[2]), here.path)
    names: list[str] = []
    for link in _LINK.findall(page):
        try:
            whole = urljoin(base, html.unescape(link).partition("#")[0].partition("?")[0])
        except ValueError:
            continue  # no URL
        name = whole.removeprefix(base)
        if whole.startswith(base) and name.strip("/") and "/" not in name.rstrip("/"):
            names.append(name)
    return names
