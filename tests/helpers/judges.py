"""A real chat-completions server on loopback that judges by a rule, with faults on request."""

import contextlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Judge:
    """Replies with `rule(material_of(body), requests so far)`: a text, or a function that answers the handler."""

    def __init__(self, rule):
        self.rule, self.seen, self.lock = rule, [], threading.Lock()
        self.active = self.most = 0

    def count(self):
        return len(self.seen)


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def send(handler, status=200, body=b"", headers=()):
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def fault(status, headers=(), body=b'{"error": {"message": "no."}}'):
    """A reply with an error status."""
    return lambda handler: send(handler, status, body, headers)


def hang_up(handler):
    """The connection ends without a reply."""
    handler.close_connection = True
    handler.connection.close()


def drip(handler):
    """A reply that comes a byte at a time and never ends."""
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)


def material_of(body):
    """The material of a request in our words, the texts of its messages in others."""
    texts = [message["content"] for message in body["messages"]]
    try:
        return json.loads(texts[1])
    except (IndexError, ValueError):
        return texts


class Server(ThreadingHTTPServer):
    """Says nothing of clients that are gone: what they print themselves is what tests read."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(rule):
    """The address of a running server, and its record of what it was asked."""
    judge = Judge(rule)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                before = sum(one["body"]["messages"][:2] == body["messages"][:2] for one in judge.seen)
                now = {"path": self.path, "body": body, "key": self.headers.get("Authorization")}
                judge.seen.append(now | {"time": time.monotonic()})
                judge.active += 1
                judge.most = max(judge.most, judge.active)
            try:
                said = judge.rule(material_of(body), before)
                if callable(said):
                    said(self)
                else:
                    send(self, body=completion(said))
            finally:
                with judge.lock:
                    judge.active -= 1

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
