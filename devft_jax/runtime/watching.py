"""Watches the processes of a run: if one fails, is stopped or dies, all end within seconds, with a sentence that names it.

Without this, the others would wait for it in their next exchange. Every process holds a connection to process 0, which the
operating system closes when a process ends, however it does: nothing depends on how busy the processes are. A process that
fails leaves its reason in the coordination service, where process 0 leaves one for a process whose connection was closed
without; a thread of every process looks for a reason each second, prints it and ends its process. If process 0 dies, JAX
aborts the others at once: they print their sentence when they are aborted.

Nothing is saved then: every file is replaced atomically, so the last checkpoint stays good.
"""

import contextlib
import ctypes
import json
import os
import platform
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed

from devft_jax.errors import InputError, RunError
from devft_jax.runtime.processes import Processes, coordination
from devft_jax.runtime.screen import complain
from devft_jax.runtime.stopping import Stopped, end_without_waiting

LOOK = 1.0
"""Seconds between two looks for a reason."""
LOST = 10.0
"""Seconds after which a host that does not answer counts as gone."""
RESUMES = "everything saved before is complete: the same command in every process resumes the run."
_END = b"E"
_CONNECT = 60.0


@contextlib.contextmanager
def watching(processes: Processes) -> Iterator[None]:
    """Watch the other processes inside the block, and leave them a reason if the block fails; all leave it together.

    Args:
      processes: the processes of the run.
    """
    if not processes.several:
        yield
        return
    watch = _Watch(processes)
    try:
        yield
        processes.meet()
        watch.close()
    except BaseException as error:
        end_without_waiting()
        watch.ended(error)
        raise


class _Watch:
    """The connections of one process, and the thread that watches them."""

    def __init__(self, processes: Processes):
        self._processes, self._client = processes, coordination()
        self._client.key_value_set(f"devft/host/{processes.index}", platform.node(), allow_overwrite=True)
        self._links = _connections(processes)
        self._closed = threading.Event()
        if not processes.first:
            _speak_when_aborted(processes)
        self._thread = threading.Thread(target=self._run, name="devft-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch after all processes have finished."""
        self._closed.set()
        for link in list(self._links.values()):
            with contextlib.suppress(OSError):
                link.sendall(_END)

    def ended(self, error: BaseException) -> None:
        """Leave the reason why this process ends, and give the others time to read it."""
        if _is_of_jax(error):
            # An exchange fails if a peer has gone, whose own reason is then found.
            time.sleep(LOST + 2 * LOOK)
        if isinstance(error, Stopped):
            what, code = f"was stopped before a round was trained; {RESUMES}", 130
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
            named = reason if isinstance(error, InputError | RunError) else f"{type(error).__name__} ({reason})"
            what, code = f"has ended: {named[:600]}", 2 if isinstance(error, InputError) else 1
        # This process says itself why it ends.
        self._closed.set()
        self._leave_reason(self._processes.index, what, code)
        self._thread.join(3 * LOOK)
        self._wait_for_others()

    def _leave_reason(self, index: int, what: str, code: int) -> None:
        # The first reason is the cause of the others, and is not replaced.
        with contextlib.suppress(Exception):
            hosts = dict(self._client.key_value_dir_get("devft/host/"))
            where = hosts.get(f"devft/host/{index}", "an unknown host")
            text = json.dumps({"text": f"{self._processes.name(index)} (on {where}) {what}", "code": code})
            self._client.key_value_set("devft/ended", text)

    def _wait_for_others(self) -> None:
        """Process 0 ends last, because the coordination service ends with it."""
        until = time.monotonic() + 5 * LOOK
        while self._processes.first and self._links and time.monotonic() < until:
            for index in self._closed_links(LOOK):
                self._links.pop(index, None)

    def _closed_links(self, seconds: float) -> list[int]:
        """The numbers of processes whose connection was closed; waits for some time."""
        ready, _, _ = select.select(list(self._links.values()), [], [], seconds)
        closed = []
        for index, link in list(self._links.items()):
            if link in ready:
                content = b""
                with contextlib.suppress(OSError):
                    content = link.recv(1)
                if content == _END:
                    self._links.pop(index, None)
                elif not content:
                    closed.append(index)
        return closed

    def _run(self) -> None:
        while not self._closed.is_set():
            for index in self._closed_links(LOOK):
                self._links.pop(index, None)
                # A process that fails leaves its reason before its connection is closed.
                self._look_for_reason()
                if self._closed.is_set():
                    return
                if self._processes.first:
                    self._leave_reason(index, f"was killed or cannot be reached; {RESUMES}", 1)
                else:
                    _end_without_first(self._processes)
            self._look_for_reason()

    def _look_for_reason(self) -> None:
        try:
            reason = json.loads(self._client.key_value_try_get("devft/ended"))
        except Exception:
            # There is none.
            return
        if not self._closed.is_set():
            complain(f"devft: {reason['text']}")
            self._wait_for_others()
            os._exit(reason["code"])


def _connections(processes: Processes) -> dict[int, socket.socket]:
    """Process 0's connections to all others, or another process's connection to process 0, by number; called by all."""
    if not processes.first:
        host, _, _ = _address().rpartition(":")
        link = socket.create_connection((host.strip("[]"), processes.from_first(None)), timeout=_CONNECT)
        link.sendall(struct.pack("<I", processes.index))
        return {0: _kept_alive(link)}
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    links: dict[int, socket.socket] = {}
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as server:
        processes.from_first(server.getsockname()[1])
        server.settimeout(_CONNECT)
        while len(links) < processes.count - 1:
            link, _ = server.accept()
            link.settimeout(_CONNECT)
            links[struct.unpack("<I", link.recv(4, socket.MSG_WAITALL))[0]] = _kept_alive(link)
    return links


def _kept_alive(link: socket.socket) -> socket.socket:
    """The connection, which the system closes if the other host no longer answers."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        # Linux's names.
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _address() -> str:
    return distributed.global_state.coordinator_address or ""


def _end_without_first(processes: Processes) -> None:
    complain(f"devft: {processes.name(0)} (at {_address()}) was killed or cannot be reached; {RESUMES}")
    os._exit(1)


def _is_of_jax(error: BaseException | None) -> bool:
    """Whether JAX's runtime raised an error, or its cause."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__
    return False


_handlers: list[Any] = []


def _speak_when_aborted(processes: Processes) -> None:
    """Print a sentence and end if JAX aborts this process because process 0 has died.

    JAX aborts in a thread of its own, without a way to be asked before, so the signal of an abort is handled.
    """
    host, _, port = _address().rpartition(":")

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handle(number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            # Process 0 lives: this abort has another cause.
            return
        _end_without_first(processes)

    _handlers.append(handle)
    ctypes.CDLL(None).signal(signal.SIGABRT, handle)
