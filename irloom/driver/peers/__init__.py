"""Other programs that answer with the same weights, each in a process of its own: ``irloom bench --peer``."""

from .core import PEERS, Peer, PeerError, PeerProcess, Setup, peer

__all__ = ["PEERS", "Peer", "PeerError", "PeerProcess", "Setup", "peer"]
