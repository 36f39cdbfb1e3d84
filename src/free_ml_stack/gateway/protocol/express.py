"""uvicorn's HTTP protocol with a fast path for calls: a plain call in one segment bypasses the parser.

The fast path halves the overhead of a call. All other requests are parsed by uvicorn and handled by the application,
including calls whose head does not match a strict pattern, so that no request can be interpreted in two ways.
"""

import re
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from free_ml_stack.gateway.algorithms.calls import Answer
from free_ml_stack.gateway.protocol import guarded
from free_ml_stack.gateway.protocol.direct import DirectProtocol

if TYPE_CHECKING:
    from free_ml_stack.gateway.app import Gateway

CALL = re.compile(rb"POST (/v1/algo/[\w./-]+) HTTP/1\.1\r\n((?:[\w-]+: ?[!-~][ -~]*\r\n)+)\r\n")
SPECIAL = {b"transfer-encoding", b"expect", b"upgrade"}


class ExpressProtocol(DirectProtocol):
    """For `uvicorn.Config(http=…)` with a Gateway as the application."""

    answering = False  # whether a call on the fast path is in progress
    answered = 0.0  # the loop's time of the last answer on the fast path
    pending = b""  # data received during such a call

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self.answering:
            self.flow.pause_reading()
            self.pending += data
        elif self.flow.write_paused or self.in_head or not self._is_idle() or not self._try_fast_path(data):
            super().data_received(data)

    def _is_idle(self) -> bool:
        return not self.cycle or self.cycle.response_complete

    def _try_fast_path(self, data: bytes) -> bool:
        """Start to answer a plain call; return False for anything else."""
        match = CALL.match(data)
        if not match:
            return False
        headers, lines = {}, match[2].split(b"\r\n")[:-1]
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        body = data[match.end() :]
        plain = (
            len(headers) == len(lines)  # no duplicates
            and headers.get(b"content-length") == b"%d" % len(body)
            and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
            and headers.keys().isdisjoint(SPECIAL)
        )
        gateway, single_caller = cast("Gateway", self.config.app), len(self.connections) == 1
        self.answering = plain
        if not plain or not gateway.answer_fast(match[1], headers, body, self._answer, single_caller):
            self.answering = False
            return False
        self._unset_keepalive_if_required()
        if not self.deadline:
            self._start_timer()
        return True

    def _answer(self, answer: Answer) -> None:
        self.answering, self.answered = False, self.loop.time()
        if self.transport.is_closing():
            return
        status, body, content_type = answer
        default = b"".join(b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        close = b"connection: close\r\n" if self.closing else b""
        head = (STATUS_LINE[status], default, content_type.encode(), len(body), close, body)
        self.transport.write(b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % head)
        if self.closing:
            self.transport.close()
        elif self.pending:
            data, self.pending = self.pending, b""
            self.flow.resume_reading()
            self.data_received(data)

    def shutdown(self) -> None:
        """Close the connection after the current call; called by the server on shutdown."""
        if self.answering:
            self.closing = True
        else:
            super().shutdown()

    def _on_timeout(self) -> None:
        """Restart the timer from the last call on the fast path, as those calls do not reset it."""
        idle = 0.0 if self.answering else self.loop.time() - self.answered
        if idle < guarded.HEAD_SECONDS:
            self.deadline = self.loop.call_later(guarded.HEAD_SECONDS - idle, self._on_timeout)
        else:
            super()._on_timeout()
