"""The four boards."""

from __future__ import annotations

from serve_app.observability.board import Board
from serve_app.observability.boards import disaggregation, front_door, neuron, serving

BOARDS: dict[str, Board] = {
    "serving": serving.BOARD,
    "disaggregation": disaggregation.BOARD,
    "neuron": neuron.BOARD,
    "front-door": front_door.BOARD,
}
"""By the name of their file."""
