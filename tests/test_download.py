"""Downloads against a local server that drops connections, changes its mind, refuses and lies."""

import hashlib
import http.server
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from common import download
from common.errors import UserError
from conftest import ROOT

BODY = bytes(range(256)) * 40_000  # 10 MB: larger than what sockets hold, so that a cut is seen as one


class Server(http.server.ThreadingHTTPServer):
    """`drop_after`: bytes after which a connection is cut, one entry a request; `status`: answers before the body."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.ranges, self.drop_after, self.status, self.redirect = (
            BODY,
            '"one"',
            True,
            [],
            [],
            None,
        )
        self.requests, self.sent = [], 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        s = self.server
        s.requests.append(dict(self.headers))
        if s.redirect:
            self.send_response(302)
            self.send_header("Location", s.redirect + self.path)
            self.end_headers()
            return
        if s.status:
            self.send_error(s.status.pop(0))
            return
        start, wanted = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and s.ranges and self.headers.get("If-Range") == s.etag:
            start = int(wanted[1])
            if start >= len(s.body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(s.body) - start))
        if s.etag:
            self.send_header("ETag", s.etag)
        self.end_headers()
        cut = s.drop_after.pop(0) if s.drop_after else None
        part = s.body[start:][:cut]
        self.wfile.write(part)
        s.sent += len(part)
        if cut is not None:
            self.connection.close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    s = Server()
    yield s
    s.shutdown()


def fetch(server, folder, name="file.bin", **kw):
    return download.fetch(f"{server.url}/{name}", folder=folder, **kw)


def test_fetches_once_and_leaves_nothing_else(server, tmp_path):
    path = fetch(server, tmp_path / "new", sha256=hashlib.sha256(BODY).hexdigest())
    assert path.read_bytes() == BODY
    assert fetch(server, tmp_path / "new") == path
    assert len(server.requests) == 1
    assert {p.name for p in path.parent.iterdir()} <= {"file.bin", "file.bin.lock"}


def test_a_dropped_connection_is_resumed_where_it_stopped(server, tmp_path):
    server.drop_after = [3_000_000, 5_000_000]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert len(server.requests) == 3
    assert server.requests[2]["Range"].startswith("bytes=")
    # what a client had received but not yet written is sent again: at most a block a cut
    assert server.sent <= len(BODY) + 2 * download.BLOCK


def test_progress_resets_the_count_of_failures(server, tmp_path):
    server.drop_after = [1_500_000] * (download.TRIES + 1)
    assert fetch(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(("ranges", "etag"), [(False, '"one"'), (True, None), (True, 'W/"weak"')])
def test_a_server_that_can_not_resume_starts_anew(server, tmp_path, ranges, etag):
    server.ranges, server.etag, server.drop_after = ranges, etag, [3_000_000]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.sent == len(BODY) + 3_000_000


def test_a_file_that_changed_in_between_is_not_glued(server, tmp_path):
    server.drop_after = [3_000_000] + [0] * download.TRIES
    with pytest.raises(UserError, match="can't be reached"):
        fetch(server, tmp_path)
    assert (tmp_path / "file.bin.part").stat().st_size > 0
    server.body, server.etag, server.drop_after = BODY[::-1], '"two"', []
    assert fetch(server, tmp_path).read_bytes() == BODY[::-1]


def test_a_partial_file_longer_than_the_original(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(BODY + b"more")
    (tmp_path / "file.bin.part.etag").write_text('"one"')
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_corrupt_bytes_are_deleted(server, tmp_path):
    with pytest.raises(UserError, match="corrupt or has changed") as e:
        fetch(server, tmp_path, sha256="0" * 64)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "file.bin").exists()
    assert not (tmp_path / "file.bin.part").exists()


def test_answers_that_are_not_the_file(server, tmp_path):
    server.status = [404]
    with pytest.raises(UserError, match="404") as e:
        fetch(server, tmp_path)
    assert str(tmp_path / "file.bin") in str(e.value)
    server.status = [401]
    with pytest.raises(UserError, match="HF_TOKEN"):
        fetch(server, tmp_path)
    server.status = [503, 429, 500]
    assert fetch(server, tmp_path).read_bytes() == BODY
    server.status = [503] * 99
    with pytest.raises(UserError, match="can't be reached"):
        fetch(server, tmp_path, "other.bin")


def test_offline_says_which_url_and_where_to_put_the_file(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as e:
        fetch(server, tmp_path)
    assert f"{server.url}/file.bin" in str(e.value)
    assert str(tmp_path / "file.bin") in str(e.value)
    assert "\n" not in str(e.value)
    (tmp_path / "file.bin").write_bytes(b"put there by hand")
    assert fetch(server, tmp_path).read_bytes() == b"put there by hand"


def test_names_and_mirrors(server, tmp_path, monkeypatch):
    name = "rwkv7-g1d-0.1b-20260129-ctx8192"
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    assert download.fetch(name, folder=tmp_path).name == f"{name}.pth"
    monkeypatch.setitem(download.NAMES, "rwkv_vocab_v20230424.txt", (f"{server.url}/x/vocab.txt", None))
    assert download.fetch("rwkv_vocab_v20230424.txt", folder=tmp_path).name == "rwkv_vocab_v20230424.txt"
    with pytest.raises(UserError, match="neither a file nor a name"):
        download.fetch("rwkv7-unheard-of", folder=tmp_path)
    assert download.fetch(str(tmp_path / f"{name}.pth")) == tmp_path / f"{name}.pth"


def test_the_token_goes_to_the_endpoint_alone(server, tmp_path, monkeypatch):
    other = Server()
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch(server, tmp_path, "a")
    assert "Authorization" not in server.requests[-1], "not the endpoint"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    fetch(server, tmp_path, "b")
    assert server.requests[-1]["Authorization"] == "Bearer secret"
    server.redirect = other.url.replace("127.0.0.1", "localhost")
    fetch(server, tmp_path, "c")
    assert server.requests[-1]["Authorization"] == "Bearer secret"
    assert "Authorization" not in other.requests[-1], "redirected away"
    monkeypatch.setenv("HF_ENDPOINT", server.url[:-1])  # a prefix of the address is not the address
    server.redirect = None
    fetch(server, tmp_path, "d")
    assert "Authorization" not in server.requests[-1]
    other.shutdown()


def test_two_processes_fetch_once(server, tmp_path):
    code = "import sys; from common.download import fetch; print(fetch(sys.argv[1], folder=sys.argv[2]))"
    args = [sys.executable, "-c", code, f"{server.url}/file.bin", str(tmp_path)]
    both = [subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for p in both:
        assert p.communicate(timeout=60)[0].strip() == str(tmp_path / "file.bin")
        assert p.returncode == 0
    assert len(server.requests) == 1


def test_ctrl_c_keeps_what_came(server, tmp_path, monkeypatch):
    real, seen = download.Progress.add, []

    def interrupt(self, n):
        real(self, n)
        seen.append(n)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(download.Progress, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path)
    have = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < have < len(BODY)
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests[-1]["Range"] == f"bytes={have}-"


def test_too_little_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    with pytest.raises(UserError, match="GB free"):
        fetch(server, tmp_path)


def test_progress_line(capsys):
    bar = download.Progress("x", 0, 100_000_000)
    bar.have = 25_000_000
    bar.start -= 5
    assert re.fullmatch(r"x: 25\.0/100\.0 MB, 5\.0 MB/s, 0:15 left", bar.line())
