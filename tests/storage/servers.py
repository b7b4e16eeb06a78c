"""Storage servers on loopback: Google's emulator and moto's S3, each behind a gate.

The gate passes requests on. On request it answers 503, as a server that is overloaded does, and for
Google's it adds what the real service has and the emulator has not: it checks `ifGenerationMatch`,
and names the generation of an object that is read.
"""

import contextlib
import http.client
import http.server
import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

BUCKET = "bucket"


class Gate(http.server.ThreadingHTTPServer):
    """A proxy of one server.

    Attributes:
      conditions: whether it adds what Google's emulator lacks.
      requests: (method, path) of each request that was passed on.
    """

    daemon_threads = True

    def __init__(self, port: int, conditions: bool):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.conditions, self.failing = port, conditions, False
        self.one_at_a_time = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def answering_503(self) -> Iterator[None]:
        self.failing = True
        try:
            yield
        finally:
            self.failing = False

    def fail_for(self, seconds: float) -> None:
        """Answers 503 from now on, for some seconds."""
        self.failing = True

        def recover() -> None:
            time.sleep(seconds)
            self.failing = False

        threading.Thread(target=recover, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Gate
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and content in one packet

    def _answer(self) -> None:
        body = self._body()
        if self.server.failing:
            return self._send(503, {}, b"slow down")
        self.server.requests.append((self.command, self.path))
        with self.server.one_at_a_time:
            if self.server.conditions and not self._condition_holds():
                return self._send(412, {}, b"")
            upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            headers["Content-Length"] = str(len(body))
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content, headers = answer.read(), dict(answer.getheaders())
            if self.server.conditions and "alt=media" in self.path and answer.status < 300:
                headers["x-goog-generation"] = self._generation()
        self._send(answer.status, headers, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {*_HOP, "date", "server"}:
                self.send_header(name, value)
        length = len(content)
        if self.command == "HEAD":
            length = next((v for k, v in headers.items() if k.lower() == "content-length"), 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def _condition_holds(self) -> bool:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if self.command not in ("POST", "DELETE") or "ifGenerationMatch" not in query:
            return True
        return self._generation() == query["ifGenerationMatch"][0]

    def _generation(self) -> str:
        """The generation of the object that the request is about; "0" without one."""
        address = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(address.query)
        name = query["name"][0] if "name" in query else address.path.rpartition("/o/")[2]
        name = urllib.parse.quote(urllib.parse.unquote(name), safe="")
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        upstream.request("GET", f"/storage/v1/b/{BUCKET}/o/{name}")
        answer = upstream.getresponse()
        content = answer.read()
        return json.loads(content)["generation"] if answer.status == 200 else "0"

    def log_message(self, *_: object) -> None: ...


_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Servers:
    """Both servers, each with the empty bucket `BUCKET`.

    Attributes:
      gates: by scheme.
      environment: variables by which this process and its children find them.
    """

    def __init__(self) -> None:
        import logging

        from gcp_storage_emulator.server import create_server
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        self._google = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
        self._google.start()
        while self._google._api._httpd is None:
            time.sleep(0.01)
        self._s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._s3.start()
        self.gates = {
            "gs": Gate(self._google._api._httpd.server_port, conditions=True),
            "s3": Gate(self._s3.get_host_and_port()[1], conditions=False),
        }
        made = urllib.request.Request(f"{self.gates['s3'].url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(made).close()
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.gates["gs"].url,
            "TENSORSTORE_GCS_HTTP_URL": self.gates["gs"].url,
            "AWS_ENDPOINT_URL": self.gates["s3"].url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def close(self) -> None:
        for gate in self.gates.values():
            gate.shutdown()
        self._s3.stop()
        self._google.stop()
