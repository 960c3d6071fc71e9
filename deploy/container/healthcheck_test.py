"""Runs the container's health check against a server that answers, refuses, and says nothing."""
import http.server
import os
import socket
import subprocess
import sys
import threading

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "healthcheck")


class Relay(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response({"/livez": 200, "/readyz": 503}.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_):
        pass


def exit_code(port, *args):
    env = dict(os.environ, HEALTHCHECK_PORT=str(port))
    return subprocess.run([SCRIPT, *args], env=env, capture_output=True, timeout=10).returncode


relay = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Relay)
threading.Thread(target=relay.serve_forever, daemon=True).start()
silent = socket.create_server(("127.0.0.1", 0))

got = {
    "default path": exit_code(relay.server_port),
    "/livez 200": exit_code(relay.server_port, "/livez"),
    "/readyz 503": exit_code(relay.server_port, "/readyz"),
    "unknown 404": exit_code(relay.server_port, "/nope"),
    "accepts and stays silent": exit_code(silent.getsockname()[1]),
}
want = {"default path": 0, "/livez 200": 0, "/readyz 503": 1, "unknown 404": 1, "accepts and stays silent": 1}
if got != want:
    sys.exit(f"exit codes {got}, expected {want}")
