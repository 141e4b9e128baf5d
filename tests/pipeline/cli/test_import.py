"""Export and import as their users run them: the imported store is searched alike, and a question is refused."""

from __future__ import annotations

from pathlib import Path

from tests.support.command import FRAMES, Command


def test_an_export_is_imported_searched_and_not_asked(
    sightline: Command, filled: str, profile: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert sightline("export", "out", "--store", filled, "--pictures", "--exact").code == 0
    done = sightline("import", "out", "--store", store, "--json")
    assert done.code == 0, done.err
    assert done.data["frames"] == FRAMES
    assert sightline("import", "out", "--store", store, "--json").data["frames"] == 0
    assert sightline("verify", "--store", store).code == 0
    places = []
    for each in (filled, store):
        found = sightline("search", "a red car", "--store", each, "--profile", profile, "--json")
        assert found.code == 0, found.err
        places.append(found.data)
    assert places[0]
    assert places[0] == places[1]
    asked = sightline("ask", "what is it?", "--store", store, "--profile", profile)
    assert asked.code == 1
    assert "has no patches: it can be searched, and not asked" in asked.err
    (tmp_path / "out" / "img_emb" / "img_emb_00000.npy").write_bytes(b"")
    broken = sightline("import", "out", "--store", tmp_path / "other")
    assert broken.code == 2
    assert "is not a valid .npy file" in broken.err
    assert not (tmp_path / "other").exists()
