"""The section about the two ways to read footage, DFM and HiCo."""

from __future__ import annotations

from typing import Any

from pipeline.figures.section import Results, Section, Table
from pipeline.figures.units import count, factor, seconds, size

__all__ = ["readings_section"]


def readings_section(results: Results) -> Section:
    """Return the section from `hico.json`."""
    rows: list[dict[str, Any]] = results["hico"]["rows"]
    table = Table(
        ["frames, way to read", "right", "of", "visual tokens", "prefill FLOP", "seconds", "stored"],
        [
            [
                f"{count(row['frames'])}, {_way(row)}",
                str(row["accuracy"]["all"]["right"]),
                str(row["accuracy"]["all"]["total"]),
                count(row["visual_tokens"]),
                f"{row['prefill_flops'] / 1e9:,.0f} G",
                seconds(row["seconds"]),
                size(row["stored_bytes"]),
            ]
            for row in rows
        ],
    )
    plain = {(row["profile"], row["frames"]): row for row in rows if not row["dropping"]}
    longest = max(row["frames"] for row in rows)
    shortest = min(row["frames"] for row in rows)
    dfm, hico = plain["micro", longest], plain["micro-hico", longest]
    first_dfm, first_hico = plain["micro", shortest], plain["micro-hico", shortest]
    return Section(
        finding=(
            f"At {count(shortest)} frames DFM gets {first_dfm['accuracy']['all']['right']} and HiCo "
            f"{first_hico['accuracy']['all']['right']} of {first_dfm['accuracy']['all']['total']} questions right, at "
            f"{count(longest)} frames {dfm['accuracy']['all']['right']} and {hico['accuracy']['all']['right']}; there "
            f"HiCo's prefill has {factor(hico['prefill_flops'] / dfm['prefill_flops'])} the FLOPs, and its store "
            f"{factor(dfm['stored_bytes'] / hico['stored_bytes'])} fewer bytes."
        ),
        table=table,
        reading="Questions about one rendered camera a length; all frames are read. FLOPs are counted, not measured.",
        limit="Both language models have two million parameters; HiCo's was trained on up to 2,400 frames.",
    )


def _way(row: dict[str, Any]) -> str:
    way = "DFM" if row["profile"] == "micro" else "HiCo"
    return f"{way}, dropping" if row["dropping"] else way
