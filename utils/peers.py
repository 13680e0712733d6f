"""Processes fail together: who fails tells the first process, which says it in one line and ends all others.

Every process of a group holds a connection to the first one and says on it goodbye, or why it fails. A connection that
closes without a word belonged to a process that was killed. Threads listen, since a process that waits for the others
inside a collective cannot be woken: it is ended.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import NamedTuple

import torch

from utils import distributed

GRACE = 2.0  # seconds in which a process may still fail by itself: it knows more (and writes a post-mortem)
STOP_GRACE = 60.0  # the same where a signal stopped another process: this one got the signal too, and saves
ANSWER = 10.0  # seconds in which the first process prints what another one sent it
POLL = 0.2  # seconds between two looks at a child or a parent
FIRST_PROCESS = "LOOKALIKE_FIRST_PROCESS"  # in the environment of the processes that the first one starts: its id
GOODBYE = b"goodbye"
LONGEST = 2**16  # bytes of a word; a sixteenth of it for the reason


class Failure(NamedTuple):
    """The end of a process: its rank, its exit status and the reason in one line.

    stop: whether a signal asked for it. bug: whether the process prints its traceback.
    """

    rank: int
    code: int
    text: str
    stop: bool = False
    bug: bool = False

    def line(self, world: int) -> str:
        """The line that is printed; in a group of several processes it names the process."""
        if self.stop:
            return f"\n{self.text}"
        return f"error: process {self.rank} of {world}: {self.text}" if world > 1 else f"error: {self.text}"


class Peers:
    """One process of a group and its connections: the first one to all others, any other to the first.

    own: why this process fails. other: why another one did, the first that was heard of.
    """

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world
        self.own: Failure | None = None
        self.other: Failure | None = None
        self._heard, self._leaving, self._first_gone = threading.Event(), threading.Event(), threading.Event()
        self._connected, self._first_knows = threading.Event(), threading.Event()
        self._lock, self._last_words = threading.Lock(), threading.Lock()
        self._connections: list[Connection] = []
        self.leave_at_once = leave_at_once

    def listen(self, key: bytes) -> int:
        """Wait for the connections of all others in the background; the port."""
        listener = Listener(("", 0), backlog=self.world, authkey=key)
        _start(self._accept, listener)
        return int(listener.address[1])

    def connect(self, host: str, port: int, key: bytes) -> None:
        """Connect to the first process in the background: a firewall must not keep the training waiting."""
        _start(self._connect, host, port, key)

    def _accept(self, listener: Listener) -> None:
        while len(self._connections) < self.world - 1:
            with contextlib.suppress(AuthenticationError, OSError, EOFError, ValueError):
                connection = listener.accept()
                rank = int(connection.recv_bytes(LONGEST))
                self._connections.append(connection)
                _start(self._hear, rank, connection)
        self._connected.set()
        listener.close()

    def _connect(self, host: str, port: int, key: bytes) -> None:
        try:
            connection = Client((host, port), authkey=key)
            connection.send_bytes(str(self.rank).encode())
        except (AuthenticationError, OSError, EOFError, ValueError) as e:
            print(f"  note: process {self.rank} cannot watch the others ({host}:{port}: {e})", file=sys.stderr)
            return
        self._connections.append(connection)
        self._connected.set()
        self._hear(0, connection)

    def _hear(self, rank: int, connection: Connection) -> None:
        """Listen to one process until it leaves."""
        try:
            while (word := connection.recv_bytes(LONGEST)) != GOODBYE:
                if rank == 0:
                    self._first_knows.set()
                self._end_with(Failure(*json.loads(word)))
            return
        except (EOFError, OSError, ValueError, TypeError):
            if rank == 0:
                self._first_gone.set()
            self._end_with(Failure(rank, 1, "ended without a word (killed, perhaps for want of memory)"))

    def _end_with(self, failure: Failure) -> None:
        """End this process because another one failed, unless it is about to leave by itself."""
        with self._lock:
            if self.other or self.own:
                return
            self.other = failure
        if self.rank == 0:
            self._send(json.dumps(failure).encode())
        self._heard.set()
        grace = STOP_GRACE if failure.stop else GRACE if self.rank == 0 else 0
        if not self._leaving.wait(grace):
            self.leave_now(failure)

    def leave_now(self, failure: Failure) -> None:
        """End the process; the first one prints why, or the second where the first is gone."""
        self._last_words.acquire()  # of the threads that may come here, one prints; nothing comes after it
        if self.rank == 0 or (self.rank == 1 and self._first_gone.is_set()):
            print(failure.line(self.world), file=sys.stderr)
        self.leave_at_once(failure.code)

    def heard(self, seconds: float) -> Failure | None:
        """Why another process failed, which may be known a little later than what follows from it."""
        self._heard.wait(seconds)
        return self.other

    def tell(self, failure: Failure) -> bool:
        """Tell the others why this process fails; whether somebody prints it."""
        failure = failure._replace(text=failure.text[: LONGEST // 16])
        with self._lock:
            if self.own:
                return True
            self.own = failure
        self._leaving.set()
        self._connected.wait(ANSWER)
        if self.rank == 0:
            print(failure.line(self.world), file=sys.stderr, flush=True)
            self._send(json.dumps(failure).encode())
            return True
        self._send(json.dumps(failure).encode())
        if not failure.stop:
            self._first_gone.wait(ANSWER)  # it sends a word to all when it knows of a failure, prints it, and leaves
        return failure.stop or self._first_knows.is_set()

    def goodbye(self) -> None:
        """Leave without a failure."""
        self._leaving.set()
        self._send(GOODBYE)

    def _send(self, word: bytes) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError, ValueError):
                connection.send_bytes(word)


_peers: Peers | None = None  # of the group of this process


def peers() -> Peers | None:
    """The connections to the other processes; None before they have found each other, and for one process."""
    return _peers


def watch_peers() -> None:
    """Connect the processes of a group that has just formed; every rank must call."""
    global _peers
    if distributed.world_size() == 1 or _peers is not None:
        return
    local = Peers(distributed.rank(), distributed.world_size())
    key = secrets.token_hex(16)
    place = f"{local.listen(key.encode())} {key}" if local.rank == 0 else ""
    port, key = distributed.broadcast_str(place).split()
    if local.rank:
        local.connect(os.environ.get("MASTER_ADDR", "127.0.0.1"), int(port), key.encode())
    _peers = local


def init_process_group(device: torch.device, processes: int) -> None:
    """Form a group with the processes that torchrun or srun started beside this one, if one did, and watch them."""
    with signals_end_at_once():
        distributed.init_process_group(device, processes)
    watch_peers()


@contextlib.contextmanager
def signals_end_at_once() -> Iterator[None]:
    """Let SIGTERM end the process in the block, in which it waits for others and no handler of Python would run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watch_children(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """End this process where a process that it has started fails inside the block, before the group has formed."""
    formed = threading.Event()

    def watch() -> None:
        while not formed.wait(POLL):
            for number, child in enumerate(children, start=1):
                if code := child.poll():
                    if code < 0:  # else it has said why
                        name = signal.Signals(-code).name
                        print(f"error: process {number} was ended by {name} before the training", file=sys.stderr)
                    leave_at_once(2)
                    return

    if children:
        _start(watch)
    try:
        yield
    finally:
        formed.set()


def watch_parent() -> None:
    """End this process with the one that started it, the first of the group, as long as the group has not formed."""
    first = os.environ.get(FIRST_PROCESS)
    if first is None:  # this is the first process, or torchrun or srun watches
        return

    def watch() -> None:
        while _peers is None:
            if os.getppid() != int(first):
                leave_at_once(2)
                return
            time.sleep(POLL)

    _start(watch)


def leave_at_once(code: int) -> None:
    """End the process from any thread, whatever its main thread waits for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _start(function: object, *args: object) -> None:
    threading.Thread(target=function, args=args, daemon=True, name="peers").start()  # type: ignore[arg-type]
