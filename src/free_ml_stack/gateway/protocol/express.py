"""uvicorn's HTTP protocol with a short way for calls: a plain one that has come whole is answered as it stands.

That halves what a call costs besides the model. Everything else is read by uvicorn and goes through the application:
also a call whose head is not of the strictest form, so that nobody can have it read in two ways.
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
    """For `uvicorn.Config(http=…)`, where the application is a Gateway."""

    answering = False  # a call that came the short way
    answered = 0.0  # when the last one was, by the loop's clock
    later = b""  # what came meanwhile

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self.answering:
            self.flow.pause_reading()
            self.later += data
        elif self.flow.write_paused or self.heading or not self._free() or not self._take(data):
            super().data_received(data)

    def _free(self) -> bool:
        return not self.cycle or self.cycle.response_complete

    def _take(self, data: bytes) -> bool:
        """Begin to answer what is a plain call and nothing besides; False where it is not."""
        match = CALL.match(data)
        if not match:
            return False
        headers, lines = {}, match[2].split(b"\r\n")[:-1]
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        body = data[match.end() :]
        plain = (
            len(headers) == len(lines)  # none twice
            and headers.get(b"content-length") == b"%d" % len(body)
            and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
            and headers.keys().isdisjoint(SPECIAL)
        )
        gateway, alone = cast("Gateway", self.config.app), len(self.connections) == 1
        self.answering = plain
        if not plain or not gateway.at_once(match[1], headers, body, self._answer, alone):
            self.answering = False
            return False
        self._unset_keepalive_if_required()
        if not self.deadline:
            self._expect_head()
        return True

    def _answer(self, answer: Answer) -> None:
        self.answering, self.answered = False, self.loop.time()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        status, body, content_type = answer
        default = b"".join(b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        close = b"connection: close\r\n" if self.ending else b""
        head = (STATUS_LINE[status], default, content_type.encode(), len(body), close, body)
        self.transport.write(b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % head)
        if self.ending:
            self.transport.close()
        elif self.later:
            data, self.later = self.later, b""
            self.flow.resume_reading()
            self.data_received(data)

    def shutdown(self) -> None:
        """Called by the server when it is to end: not before the call is answered."""
        if self.answering:
            self.ending = True
        else:
            super().shutdown()

    def _give_up(self) -> None:
        """Calls set no clock; so where there was one since this was set, it begins anew from there."""
        idle = 0.0 if self.answering else self.loop.time() - self.answered
        if idle < guarded.PATIENCE:
            self.deadline = self.loop.call_later(guarded.PATIENCE - idle, self._give_up)
        else:
            super()._give_up()
