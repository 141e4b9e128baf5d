"""The parsers of published scorers of choices, as their descriptions state them, to compare ours with.

Each gives the letter that the scorer reads, or an empty text. They are here to show where ours differs and why; nothing
is scored with them.
"""

from __future__ import annotations

import re

__all__ = ["flash_letter", "lvbench_letter", "mlvu_letter", "videomme_letter"]

# The list of the script has six more phrases, of which two commas are missing, so that they are never found.
_PHRASES = ("The best answer is", "The correct answer is", "The answer is", "The answer")


def videomme_letter(reply: str) -> str:
    """Video-MME's script: without some phrases, the first of A to D anywhere, also within a word."""
    for phrase in _PHRASES:
        reply = reply.replace(phrase, "")
    found = re.search("[ABCD]", reply)
    return found.group() if found else ""


def lvbench_letter(reply: str) -> str:
    """LVBench's script: what is before the first `)` and after `(`, of that the first character."""
    return reply.strip().split(")")[0].split("(")[-1].strip()[:1]


def mlvu_letter(reply: str) -> str:
    """MLVU's script: the character before the first `)`, else the whole reply if it is one letter."""
    head, bracket, _ = reply.strip().partition(")")
    return head[-1:] if bracket else head if len(head) == 1 else ""


def flash_letter(reply: str) -> str:
    """VideoChat-Flash, for MVBench, MLVU and LVBench: a leading `X.`, else the first of a to e that stands alone."""
    found = re.match(r"([A-E])\.", reply) or re.search(r"\b([a-eA-E])\b", reply)
    return found.group(1).upper() if found else ""
