"""The rows of an ablation: what each changes, after tables 2 and 6 and figure 6 of the ViLAMP paper.

    selectors     DKS, query-guided, uniform; keyframes only, and with the other frames merged       table 2
    mergers       DFM, mean pooling, single token, Q-former, none; at the profile's K and at K = 4   table 2
    keyframes     K                                                                                  figure 6
    temperature   α × τ                                                                              table 6
    similarity    λ                                                                                  not in the paper

Every row is the profile with the named fields replaced. A row that equals another one is run once and belongs to both
groups. Does not know models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from index.selectors.registry import SelectorName
from model.profiles.profile import Profile

__all__ = ["GROUPS", "MERGERS", "TRAINED", "AblationRow", "Group", "Merging", "Trained", "base_row", "plan_rows"]

Merging = Literal["dfm", "mean", "none", "dfm tuned", "mean tuned", "single token", "q-former"]
"""How frames that are not keyframes become tokens; `tuned` and the last two are trained by the ablation itself."""
Trained = Literal["dfm tuned", "mean tuned", "single token", "q-former"]
"""Mergings whose connector is trained by the ablation."""
Group = Literal["selectors", "mergers", "keyframes", "temperature", "similarity"]
"""Groups of rows."""

MERGERS: tuple[Merging, ...] = get_args(Merging)
TRAINED: tuple[Trained, ...] = get_args(Trained)
GROUPS: tuple[Group, ...] = get_args(Group)

_FEW = 4
_KS = (1, 2, 4, 8, 16, 32, 64)
_ALPHAS, _TAUS, _LAMBDAS = (1.0, 0.1, 0.01, 0.001), (0.35, 0.5, 0.85, 1.0), (0.0, 0.5, 1.0, 2.0)
_SELECTORS: tuple[SelectorName, ...] = ("dks", "top-k", "uniform")


class AblationRow(BaseModel):
    """One setting of the models."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    selector: SelectorName
    """How keyframes are selected."""
    merging: Merging
    """How other frames become tokens."""
    k: int
    """Largest number of keyframes."""
    tau: float
    """Similarity threshold τ."""
    alpha: float
    """Softmax temperature α."""
    lam: float
    """Weight λ of the similarity to the keyframe."""

    @property
    def name(self) -> str:
        """The settings as text, which is also the name of its file."""
        return f"{self.selector}, {self.merging}, k={self.k}, tau={self.tau:g}, alpha={self.alpha:g}, lam={self.lam:g}"

    def apply(self, profile: Profile) -> Profile:
        """The profile with these settings."""
        dfm = profile.dfm.model_copy(update={"alpha": self.alpha, "lam": self.lam})
        return profile.model_copy(update={"selector": self.selector, "k": self.k, "tau": self.tau, "dfm": dfm})


def base_row(profile: Profile) -> AblationRow:
    """The profile as it is."""
    dfm = profile.dfm
    return AblationRow(
        selector=profile.selector, merging="dfm", k=profile.k, tau=profile.tau, alpha=dfm.alpha, lam=dfm.lam
    )


def plan_rows(
    profile: Profile, groups: Sequence[Group] = GROUPS, trained: Iterable[Trained] = TRAINED
) -> dict[Group, list[AblationRow]]:
    """The rows of each group; the base row is in all of them.

    Args:
        profile: the profile.
        groups: which groups.
        trained: which of the mergings that need training are in them.

    Raises:
        UsageError: the profile reads clips, which have no keyframes, or its merger is learned, so that α is no setting.
    """
    if profile.hico is not None:
        raise UsageError(f"the {profile.name} profile reads clips (hico): it has no keyframes or mergers to compare")
    if profile.dfm.mode != "paper":
        raise UsageError(
            f"the merger of the {profile.name} profile is learned, and α and λ are part of its weights; ablations need "
            "dfm.mode paper"
        )
    base, chosen = base_row(profile), tuple(trained)

    def rows(changes: Iterable[dict[str, object]]) -> list[AblationRow]:
        """The base with changes; the base itself first."""
        found = [base, *(base.model_copy(update=change) for change in changes)]
        return list(dict.fromkeys(found))

    shipped: tuple[Merging, ...] = ("dfm", "mean", "none")
    several: dict[Group, list[AblationRow]] = {
        "selectors": rows({"selector": s, "merging": m} for m in ("dfm", "none") for s in _SELECTORS),
        "mergers": rows({"merging": m, "k": k} for k in (profile.k, _FEW) for m in (*shipped, *chosen)),
        "keyframes": rows({"k": k} for k in _KS),
        "temperature": rows({"alpha": a, "tau": t} for a in _ALPHAS for t in _TAUS),
        "similarity": rows({"lam": value} for value in _LAMBDAS),
    }
    return {group: several[group] for group in groups}
