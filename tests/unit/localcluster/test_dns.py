"""The question that `up` asks before it says that names resolve."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from localcluster.dns import COREFILE, PORT, manifests, query, resolves
from tests.unit.localcluster.builders import PATIENCE


def _asked(answer: Callable[[bytes], bytes | None]) -> bool:
    """Asks a name server that gives this answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)

        def serve() -> None:
            question, sender = server.recvfrom(512)
            reply = answer(question)
            if reply is not None:
                server.sendto(reply, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            port = server.getsockname()[1]
            seconds = PATIENCE if answer(query("a.b", 0)) is not None else 0.1
            return resolves("a.b", "10.96.0.1", "127.0.0.1", port, seconds)
        finally:
            thread.join()


def test_a_question_is_written_as_the_standard_says() -> None:
    header = bytes.fromhex("0007 0100 0001 0000 0000 0000")
    assert query("a.bc", 7) == header + b"\x01a\x02bc\x00" + bytes.fromhex("0001 0001")


def test_an_answer_with_the_address_counts() -> None:
    assert _asked(lambda question: question + socket.inet_aton("10.96.0.1"))


def test_an_answer_with_another_address_does_not_count() -> None:
    assert not _asked(lambda question: question + socket.inet_aton("10.96.0.2"))


def test_silence_does_not_count() -> None:
    assert not _asked(lambda question: None)


def test_the_service_leads_to_the_port_that_coredns_listens_on() -> None:
    service = next(manifest for manifest in manifests() if manifest["kind"] == "Service")
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {PORT}
    assert f".:{PORT} {{" in COREFILE
