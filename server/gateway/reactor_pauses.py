"""Pauses of an association's reactor that cannot be missed.

A thread that sends a request pauses the association's own thread, the reactor, which would otherwise take the response
off the queue. In pynetdicom 3.0 this fails in two cases on a busy machine; a delivery that never ended was seen:

- The reactor has passed its checkpoint but is still marked as paused: it takes the response, and the sender waits until
  its time-out.
- N-EVENT-REPORT requests are served in a thread of their own, which changes the mark of the reactor: the sender sees a
  pause that does not exist, or waits without end for one that does. A storage commitment report on the association of
  its request is followed at once by the release, so that the two threads meet there.
"""

from __future__ import annotations

import threading
from typing import Any

from pynetdicom.association import Association


def make_pauses_reliable(association: Association) -> None:
    """Change an association, of either role, whose reactor has not begun, so that its pauses cannot be missed.

    pynetdicom creates its associations itself and has no option for their class.
    """
    association.__class__ = _ReliableAssociation
    assert isinstance(association, _ReliableAssociation)
    association.event_report_lock = threading.Lock()
    association.reactor_waits = False
    association._reactor_checkpoint = _Checkpoint(association)


class _Checkpoint(threading.Event):
    """Checkpoint that the reactor either passes, no longer marked as paused, or waits at."""

    def __init__(self, association: _ReliableAssociation) -> None:
        super().__init__()
        self._association = association
        self._passing = threading.Lock()
        self.set()

    def clear(self) -> None:
        with self._passing:
            super().clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, as the reactor, until no other thread sends; called by the reactor alone."""
        self._association.reactor_waits = True
        while super().wait(timeout):
            with self._passing:
                if self.is_set():
                    self._association.reactor_waits = False
                    return True
        return False


class _ReliableAssociation(Association):
    """Association whose checkpoint alone says that its reactor is paused.

    It is released after what it serves has been answered, and another thread sends after the present request has been
    answered: the report of a commitment does not precede the response to its request.
    """

    event_report_lock: threading.Lock
    reactor_waits: bool

    @property
    def _is_paused(self) -> bool:
        # A reactor that itself sends, from a handler, takes no message off the queue meanwhile.
        return self.reactor_waits or self._kill or threading.current_thread() is self

    @_is_paused.setter
    def _is_paused(self, paused: bool) -> None:
        """Ignore what pynetdicom sets: only the checkpoint knows, so that nobody sends while a request is answered."""

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if threading.current_thread() is self:
            super()._serve_request(msg, context_id)
            return
        with self.event_report_lock:
            super()._serve_request(msg, context_id)

    def release(self) -> None:
        with self.event_report_lock:
            super().release()
