"""Components of a model under training: their parameters, which are trained, and their learning rates.

vision_encoder    the patch encoder, up to the layer after which patches leave
mlp_k, mlp_n      the two projectors; released weights have one, which is mlp_k
merger            the learned merger of released weights (`composer_projector`)
relevance         the two directions that some connectors add
newline           the vector that ends the visual sequence
language_model    the Qwen2 with its embeddings and its head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from index.errors import UsageError
from model.training.plan import COMPONENTS, Component, TrainingPlan
from model.visual.connector import AnyConnector, Connector

__all__ = ["CONNECTOR_COMPONENTS", "ComponentCount", "Parts", "connector_parts", "freeze", "parameter_groups"]

Parts = dict[Component, list[nn.Parameter]]
CONNECTOR_COMPONENTS = frozenset({"mlp_k", "mlp_n", "merger", "relevance", "newline"})


@dataclass(frozen=True, slots=True)
class ComponentCount:
    """The size and the learning rate of a component."""

    name: str
    """Name of the component."""
    parameters: int
    """Number of its parameters."""
    rate: float | None
    """Its learning rate; None if it is frozen."""


def connector_parts(connector: AnyConnector, *, newline: bool) -> Parts:
    """Components of a connector, without those that it does not have; `newline` tells whether the profile uses that
    vector."""
    if isinstance(connector, Connector):
        found: dict[Component, Any] = {
            "mlp_k": connector.keyframe,
            "mlp_n": connector.frame,
            "relevance": connector.relevance,
            "newline": connector.newline,
        }
    else:
        found = {
            "mlp_k": connector.mm_projector,
            "merger": connector.composer_projector,
            "newline": connector.image_newline,
        }
    return {
        name: list(part.parameters()) if isinstance(part, nn.Module) else [part]
        for name, part in found.items()
        if part is not None and (newline or name != "newline")
    }


def freeze(parts: Parts, plan: TrainingPlan) -> list[ComponentCount]:
    """Enable gradients for the components that `plan` trains and disable them for the others.

    Returns:
        One entry for each component.

    Raises:
        UsageError: the plan names a component that the model does not have, or all components are frozen.
    """
    for name in sorted({*plan.freeze, *plan.learning_rates}):
        if name not in parts:
            raise UsageError(f"{name}: this model has no such component; it has {', '.join(parts)}")
    counts = []
    for name in COMPONENTS:
        if name in parts:
            trained = name not in plan.freeze
            for parameter in parts[name]:
                parameter.requires_grad_(trained)
            size = sum(parameter.numel() for parameter in parts[name])
            counts.append(ComponentCount(name, size, plan.rate(name) if trained else None))
    if all(count.rate is None for count in counts):
        raise UsageError("every component is frozen, so there is nothing to train; take one out of freeze")
    return counts


def parameter_groups(parts: Parts, plan: TrainingPlan) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices and vectors of each trained component; vectors have no weight decay."""
    groups = []
    for name, parameters in parts.items():
        if name in plan.freeze:
            continue
        for matrices, decay in ((True, plan.weight_decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == matrices]
            if chosen:
                groups.append({"name": name, "params": chosen, "lr": plan.rate(name), "weight_decay": decay})
    return groups
