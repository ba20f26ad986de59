"""A real S3 server on loopback, in a process of its own, whose network can be made to fail.

``python -m tests.remote.server`` prints its port, and serves until its standard input ends. Beside S3 it answers two
paths that no bucket can have: ``/_faults`` takes a list of faults as JSON, ``/_requests`` tells what was asked since.
"""

import json
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Answer = Iterable[bytes]


class Faulty:
    """S3 behind a network that fails as it is told.

    A fault is a dict: ``kind`` is "reset" (the connection breaks before the request arrives), "lost" (it breaks after
    the request was obeyed), "slow" (the answer takes ``seconds``) or "error" (the answer is ``status``); ``match`` is a
    regular expression for "METHOD path?query"; ``count`` is how often it happens, null for always.
    """

    def __init__(self) -> None:
        self._s3 = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._faults: list[dict[str, Any]] = []
        self._requests: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Answer:
        path = environ["PATH_INFO"]
        if path == "/_faults":
            with self._lock:
                self._faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            return self._told(start_response, [])
        if path == "/_requests":
            with self._lock:
                requests, self._requests = self._requests, []
            return self._told(start_response, requests)
        asked = f"{environ['REQUEST_METHOD']} {path}?{environ['QUERY_STRING']}"
        fault = self._fault(asked)
        kind = fault.get("kind")
        if kind == "reset":
            return self._broken(environ)
        if kind == "slow":
            time.sleep(fault["seconds"])
        if kind == "error":
            start_response(f"{fault['status']} Out of order", [("Content-Length", "0")])
            return [b""]
        answer: Answer = self._s3(environ, start_response)
        if kind == "lost":
            list(answer)
            return self._broken(environ)
        return answer

    def _fault(self, asked: str) -> dict[str, Any]:
        with self._lock:
            self._requests.append(asked)
            for fault in self._faults:
                if re.search(fault["match"], asked) and fault["count"] != 0:
                    fault["count"] = None if fault["count"] is None else fault["count"] - 1
                    return fault
        return {}

    def _broken(self, environ: dict[str, Any]) -> Answer:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionError

    def _told(self, start_response: Callable[..., Any], content: object) -> Answer:
        body = json.dumps(content).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    """Serve until standard input ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # Connections stay open, as those of S3 do.
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    server = make_server("127.0.0.1", 0, Faulty(), threaded=True)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
