"""Webhooks of standing questions: signed, sent to addresses that the URL policy allows, and tried again with back-off.

    X-Sightline-Timestamp: 1709280000
    X-Sightline-Signature: sha256=…        HMAC-SHA256 of `TIMESTAMP.BODY` with the webhook's secret
    X-Sightline-Delivery: …                the same for every attempt at one delivery

An answer of 2xx ends a delivery, as does 410; anything else is tried again, `ATTEMPTS` times in all.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from index.errors import SourceDenied, SourceError, SourceNotFound, mask_url
from ingest.sources.pinned_http import PinnedHttp
from ingest.sources.url_policy import UrlPolicy, check_url

__all__ = ["ATTEMPTS", "Delivery", "WebhookSender", "sign", "webhook_policy"]

ATTEMPTS = 6
"""Largest number of attempts at one delivery."""
_TIMEOUT_SECONDS = 10.0
_WAITING = 1_000
_THREADS = 2
_log = structlog.get_logger("sightline.desk")


class _NotAccepted(Exception):
    """The receiver answered with another status than 2xx."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one receiver."""

    url: str
    """The address."""
    secret: str
    """The key of the signature."""
    id: str
    """Id of the delivery."""
    content: Mapping[str, Any]
    """The message, a JSON object."""


def webhook_policy(networks: tuple[str, ...] = ()) -> UrlPolicy:
    """The policy of webhooks: http(s), public addresses, and these networks (CIDR notation)."""
    return UrlPolicy(schemes=frozenset({"http", "https"}), networks=networks)


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The value of `X-Sightline-Signature`."""
    message = f"{timestamp}.".encode() + body
    return f"sha256={hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()}"


class WebhookSender:
    """Sends deliveries in the background.

    Args:
        policy: the addresses that may be reached.
        back_off_seconds: longest wait before the second attempt; it doubles with each.
    """

    def __init__(self, policy: UrlPolicy, *, back_off_seconds: float = 2.0) -> None:
        self.policy, self._back_off = policy, back_off_seconds
        self._waiting: queue.Queue[Delivery | None] = queue.Queue(_WAITING)
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name=f"sightline-webhook-{number}", daemon=True)
            for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def check(self, url: str) -> None:
        """Check the address of a webhook. Raises SourceDenied, SourceNotFound."""
        try:
            check_url(url, self.policy)
        except SourceDenied as error:
            reason = str(error).partition(";")[0]
            raise SourceDenied(f"{reason}; allow its network with --webhook-network if alerts may go there") from None

    def send(self, delivery: Delivery) -> bool:
        """Queue a delivery; returns whether there was room."""
        try:
            self._waiting.put_nowait(delivery)
        except queue.Full:
            _log.warning("a webhook was left out: too many wait", url=mask_url(delivery.url))
            return False
        return True

    def close(self) -> None:
        """Stop after the attempts that are in progress."""
        self._closing.set()
        for _ in self._threads:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                return

    def _serve(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            if self._closing.is_set():
                return
            self._deliver(delivery)

    def _deliver(self, delivery: Delivery) -> None:
        attempts = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=self._back_off, max=60),
            retry=retry_if_exception_type((_NotAccepted, SourceNotFound)),
            sleep=self._pause,
            reraise=True,
        )
        try:
            attempts(self._attempt, delivery)
        except (SourceError, _NotAccepted) as error:
            _log.warning("a webhook was not delivered", url=mask_url(delivery.url), problem=mask_url(str(error)))

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt, or until the sender is closed."""
        self._closing.wait(seconds)

    def _attempt(self, delivery: Delivery) -> None:
        """Send once. Raises SourceDenied, SourceNotFound, _NotAccepted."""
        if self._closing.is_set():
            raise SourceDenied("the desk is stopping")
        body = json.dumps(delivery.content, ensure_ascii=False).encode()
        now = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "X-Sightline-Timestamp": str(now),
            "X-Sightline-Signature": sign(delivery.secret, now, body),
            "X-Sightline-Delivery": delivery.id,
        }
        status = PinnedHttp(self.policy, timeout=_TIMEOUT_SECONDS).post(delivery.url, body, headers)
        if not (200 <= status < 300 or status == 410):
            raise _NotAccepted(f"{mask_url(delivery.url)}: the receiver answered {status}")
