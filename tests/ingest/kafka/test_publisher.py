"""Files whose segments the broker finds too large: only they fail, and nothing counts that may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from index.errors import KafkaProblem
from ingest.kafka.publisher import publish_files
from ingest.kafka.settings import KafkaSettings
from tests.support.footage import make_video
from tests.support.limited_broker import LimitedBroker


def films(folder: Path) -> list[Path]:
    """Twelve seconds of three cameras; those of the second have a larger picture."""
    paths = [folder / f"cam{number}_2024-03-01T08-00-00Z.mp4" for number in range(3)]
    for path, size in zip(paths, [(64, 48), (320, 240), (64, 48)], strict=True):
        make_video(path, seconds=12, gop=10, size=size)
    return paths


@pytest.mark.parametrize("in_flight", [1, 100])
def test_a_segment_that_the_broker_finds_too_large_fails_its_file_alone(tmp_path: Path, in_flight: int) -> None:
    """Found when the second segment of the file is sent, or not before its end."""
    paths = films(tmp_path)
    broker = LimitedBroker(largest=paths[0].stat().st_size, in_flight=in_flight)
    assert paths[1].stat().st_size > 4 * broker.largest

    @contextmanager
    def sender() -> Iterator[LimitedBroker]:
        yield broker

    report = publish_files(paths, settings=KafkaSettings(), sender=sender, seconds=4)
    assert [(file.segments, file.seconds, file.problem) for file in report] == [
        (3, pytest.approx(12), None),
        (0, 0, "the broker rejects a message of this size"),
        (3, pytest.approx(12), None),
    ]
    assert [message.stream for message in broker.accepted] == ["cam0"] * 3 + ["cam2"] * 3
    assert [file.footage.stored.segments for file in report] == [3, 0, 3]
    assert str(report[1].footage.dropped) == "1 file, 12 s"


def test_a_broker_that_does_not_answer_ends_the_command(tmp_path: Path) -> None:
    broker = LimitedBroker()
    broker.down = 1

    @contextmanager
    def sender() -> Iterator[LimitedBroker]:
        yield broker

    with pytest.raises(KafkaProblem, match="does not answer"):
        publish_files(films(tmp_path)[:1], settings=KafkaSettings(), sender=sender, seconds=4)
    assert broker.accepted == []
