"""The board of a ``torch.distributed`` process group: a TCP store of the session's own, served by the group's first rank.

Two collectives of the group make it (an address to everybody, and what everybody has to say), and none is needed after that. The store
lives as long as the session; nothing is left behind in the group's own store.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import logging
import secrets
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fi_cachestore.coordination.board import DeadlineBoard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

logger: Final = logging.getLogger("fi_cachestore")

_NONCE: Final = "nonce"
_SAYING_BYTES: Final = 32 * 1024
_CONNECT_S: Final = 5.0
_PROBE_PORT: Final = 9
_SOMEWHERE_ELSE: Final = "192.0.2.1"  # reserved for documentation (RFC 5737)
_SIOCGIFADDR: Final = 0x8915


class TorchBoard:
    """A board in a ``torch.distributed.Store``. Blocks as long as the store's client does: wrap it in a ``DeadlineBoard``."""

    def __init__(self, store: Any) -> None:
        """Use ``store``, whose every name belongs to the board."""
        self._store = store

    def compare_set(self, name: str, expected: bytes, desired: bytes) -> bytes:
        """Set ``name`` to ``desired`` if it holds ``expected``. A name that was never set may only be compared with ``b""``."""
        held: bytes = self._store.compare_set(name, expected, desired)
        return held

    def put(self, values: Mapping[str, bytes]) -> None:
        """Set names."""
        for name, value in values.items():
            self._store.set(name, value)

    def fetch(self, names: Sequence[str]) -> list[bytes]:
        """Return what the names hold. ```Store.get``` would wait for names that are not set."""
        return [self.compare_set(name, b"", b"") for name in names]


@dataclass(slots=True)
class Joined:
    """A rank of a group that has met: its place, what each rank said, and two boards, the second for its beats alone.

    ``board`` is ``None`` where this rank or another did not reach the store. ``stores`` keeps the server alive on the first rank.
    """

    rank: int
    said: list[Any]
    board: DeadlineBoard | None
    beats: DeadlineBoard | None
    stores: list[Any]

    def close(self) -> None:
        """Let go of the connections; on the first rank, of the server."""
        for board in (self.board, self.beats):
            if board is not None:
                board.close()
        self.stores.clear()


def join(group: ProcessGroup, saying: Any, *, reachable_at: Sequence[str] = (), answer_s: float) -> Joined:
    """Meet the ranks of ``group``: every rank must call this. ``saying`` (plain data) is told to all of them.

    ``reachable_at`` are addresses of this host to be tried first; ``answer_s`` is how long the store may take to answer, later on.

    Raises:
        Exception: whatever the group's own collectives raise.
    """
    import torch.distributed as dist

    rank = dist.get_rank(group)
    server, offer = _serve(reachable_at) if rank == 0 else (None, None)
    (address,) = _tell(group, offer, everybody=False)
    stores = [] if address is None else _connect(*address)
    said = _tell(group, [bool(stores), saying], everybody=True)
    reached = all(has_store for has_store, _ in said)
    boards = [DeadlineBoard(TorchBoard(store), answer_s) for store in stores] if reached else [None, None]
    return Joined(rank, [what for _, what in said], boards[0], boards[1], [server, *stores])


def _tell(group: ProcessGroup, saying: Any, *, everybody: bool) -> list[Any]:
    """Return what every rank says, or what the first says. As JSON in tensors of one size: torch's own object collectives unpickle."""
    import torch
    import torch.distributed as dist

    text = json.dumps(saying).encode()
    if len(text) > _SAYING_BYTES:
        text = json.dumps([False, {"cannot": f"has {len(text)} bytes to say"}]).encode()
    device = torch.device("cuda", torch.cuda.current_device()) if "nccl" in str(dist.get_backend(group)) else torch.device("cpu")
    mine = torch.tensor(list(text.ljust(_SAYING_BYTES)), dtype=torch.uint8, device=device)
    if everybody:
        rows = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(rows, mine, group=group)
    else:
        dist.broadcast(mine, src=dist.get_global_rank(group, 0), group=group)
        rows = [mine]
    return [json.loads(bytes(row.cpu().tolist())) for row in rows]


def _serve(reachable_at: Sequence[str]) -> tuple[Any, tuple[list[str], int, str] | None]:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, though not in __all__

    try:
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=_seconds(_CONNECT_S))
    except Exception as error:  # noqa: BLE001 - no port, no network: the ranks hear that there is no store
        logger.warning("no store for the ranks of this session: %s", str(error).splitlines()[0])
        return None, None
    nonce = secrets.token_hex(16)
    server.set(_NONCE, nonce)
    return server, (list(dict.fromkeys([*reachable_at, *own_addresses()])), server.port, nonce)


def _connect(addresses: Sequence[str], port: int, nonce: str) -> list[Any]:
    """Return two clients of the store, or nothing. The nonce tells it from a stranger at the same address."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, though not in __all__

    for address in addresses:
        if not _listens(address, port):
            continue
        with contextlib.suppress(Exception):
            first, second = (
                TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_seconds(_CONNECT_S)) for _ in range(2)
            )
            if first.compare_set(_NONCE, "", "") == nonce.encode():
                return [first, second]
    logger.warning("the store of this session's ranks was reached at none of %s, port %d", ", ".join(addresses), port)
    return []


def _listens(address: str, port: int) -> bool:
    """Whether somebody listens there: torch's own client waits long and prints a stack."""
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def own_addresses() -> list[str]:
    """Return addresses at which this host may be reached: by its route to the outside, of its interfaces and its name, and loopback."""
    found: list[str] = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((_SOMEWHERE_ELSE, _PROBE_PORT))  # sends nothing: asks the routing table
        found.append(str(probe.getsockname()[0]))
    found += _interface_addresses()
    with contextlib.suppress(OSError):
        found += [str(row[4][0]) for row in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)]
    outside = [address for address in dict.fromkeys(found) if not address.startswith("127.")]
    return [*outside, "127.0.0.1"]


def _interface_addresses() -> list[str]:
    """Return the IPv4 addresses of the network interfaces (Linux: ``netdevice(7)``)."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _seconds(number: float) -> dt.timedelta:
    return dt.timedelta(seconds=number)
