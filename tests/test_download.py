"""Downloads against a local server that drops connections, changes its mind, refuses and lies."""

import contextlib
import errno
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
        self.body, self.etag, self.ranges, self.redirect = BODY, '"one"', True, None
        self.drop_after, self.status = [], []
        self.requests, self.sent, self.span = [], 0, None  # span: a Content-Range to lie with
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

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
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(s.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(s.body) - start))
        if start:
            self.send_header("Content-Range", s.span or f"bytes {start}-{len(s.body) - 1}/{len(s.body)}")
        if s.etag:
            self.send_header("ETag", s.etag)
        self.end_headers()
        cut = s.drop_after.pop(0) if s.drop_after else None
        part = s.body[start:][:cut]
        with contextlib.suppress(ConnectionError):  # a client may hang up
            self.wfile.write(part)
        s.sent += len(part)
        if cut is not None:
            self.connection.close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    for name in ("HF_TOKEN", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    s = Server()
    yield s
    s.shutdown()
    s.server_close()


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
    assert fetch(server, tmp_path, sha256=hashlib.sha256(BODY).hexdigest()).read_bytes() == BODY
    assert len(server.requests) == 3
    assert "Range" not in server.requests[0]
    # what was received of a block that never came whole is sent again, and nothing else
    first = int(server.requests[1]["Range"][len("bytes=") : -1])
    second = int(server.requests[2]["Range"][len("bytes=") : -1])
    assert 3_000_000 - download.BLOCK <= first <= 3_000_000
    assert first + 5_000_000 - download.BLOCK <= second <= first + 5_000_000
    assert server.sent == 3_000_000 + 5_000_000 + len(BODY) - second
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_a_line_that_breaks_often_still_arrives(server, tmp_path):
    server.body = BODY[:2_000_000]
    server.drop_after = [150_000] * 30  # far more often than TRIES, and less than a megabyte each time
    assert fetch(server, tmp_path).read_bytes() == server.body


def test_progress_resets_the_count_of_failures(server, tmp_path):
    server.drop_after = [1_500_000] * (download.TRIES + 1)
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_a_partial_file_of_unknown_origin_is_not_used(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)  # no .etag beside it
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert "Range" not in server.requests[0]


def test_a_whole_partial_file_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(BODY)  # ended while its checksum was computed
    (tmp_path / "file.bin.part.etag").write_text('"one"')
    assert fetch(server, tmp_path, sha256=hashlib.sha256(BODY).hexdigest()).read_bytes() == BODY
    assert server.sent == 0
    assert not (tmp_path / "file.bin.part.etag").exists()


def test_bytes_from_elsewhere_in_the_file_are_not_glued(server, tmp_path):
    server.drop_after, server.span = [3_000_000], f"bytes 5-{len(BODY) - 1}/{len(BODY)}"
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
    assert {p.name for p in tmp_path.iterdir()} <= {"file.bin.lock"}
    assert fetch(server, tmp_path, sha256=hashlib.sha256(BODY).hexdigest()).read_bytes() == BODY


def test_answers_that_are_not_the_file(server, tmp_path):
    server.status = [404]
    with pytest.raises(UserError, match="404") as e:
        fetch(server, tmp_path)
    assert str(tmp_path / "file.bin") in str(e.value)
    assert len(server.requests) == 1, "asking again would not help"
    server.status = [401]
    with pytest.raises(UserError, match="HF_TOKEN"):
        fetch(server, tmp_path)
    server.status = [503, 429, 500]
    assert fetch(server, tmp_path).read_bytes() == BODY
    server.status, before = [503] * 99, len(server.requests)
    with pytest.raises(UserError, match="status 503"):
        fetch(server, tmp_path, "other.bin")
    assert len(server.requests) == before + download.TRIES


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
    for nothing in ("rwkv7-unheard-of", f"{server.url}/", server.url):
        with pytest.raises(UserError, match="neither a file nor a URL"):
            download.fetch(nothing, folder=tmp_path)
    assert fetch(server, tmp_path, "folder/signed.bin?" + "key=1&" * 99 + "#x").name == "signed.bin"
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
    other.server_close()


@pytest.mark.parametrize(
    ("url", "gets", "asked"),
    [
        ("https://huggingface.co/a/f.bin", True, "https://huggingface.co/a/f.bin"),
        ("https://huggingface.co.evil.com/f.bin", False, "https://huggingface.co.evil.com/f.bin"),
        ("https://huggingface.co@evil.com/f.bin", False, "https://huggingface.co@evil.com/f.bin"),
        ("https://evil.com/https://huggingface.co/f.bin", False, "https://evil.com/https://huggingface.co/f.bin"),
        ("http://huggingface.co/f.bin", False, "http://huggingface.co/f.bin"),
    ],
)
@pytest.mark.parametrize("mirror", [None, "https://mirror.example/hf"])
def test_hosts_that_look_like_the_endpoint_get_no_token(monkeypatch, tmp_path, url, gets, asked, mirror):
    seen = []

    def get(url, headers, **kw):
        seen.append((url, headers.get("Authorization")))
        raise download.requests.ConnectionError

    monkeypatch.setattr(download.requests, "get", get)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", " secret\n")  # as read from a file
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    if mirror:
        monkeypatch.setenv("HF_ENDPOINT", mirror)
        asked = asked.replace("https://huggingface.co/a/", f"{mirror}/a/")
    with pytest.raises(UserError, match="can't be reached"):
        download.fetch(url, folder=tmp_path)
    assert set(seen) == {(asked, "Bearer secret" if gets else None)}


def test_an_endpoint_without_a_scheme_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.example")
    with pytest.raises(UserError, match="HF_ENDPOINT=hf-mirror"):
        download.fetch("rwkv7-g1d-0.1b-20260129-ctx8192", folder=tmp_path)


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
    assert not (tmp_path / "file.bin").exists()


def test_a_disk_that_fills_up_keeps_what_came(server, tmp_path, monkeypatch):
    real, seen = download.Progress.add, []

    def full(self, n):
        real(self, n)
        seen.append(n)
        if len(seen) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.Progress, "add", full)
    with pytest.raises(UserError, match="No space left on device") as e:
        fetch(server, tmp_path)
    assert str(tmp_path / "file.bin") in str(e.value)
    assert "\n" not in str(e.value)
    have = (tmp_path / "file.bin.part").stat().st_size
    assert have >= 19 * download.BLOCK
    assert len(server.requests) == 1, "asking again would not help"
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests[1]["Range"] == f"bytes={have}-"


def test_a_folder_that_can_not_be_written(server, tmp_path):
    (tmp_path / "f").write_text("a file in the way")
    with pytest.raises(UserError, match="can't be written") as e:
        fetch(server, tmp_path / "f")
    assert f"{server.url}/file.bin" in str(e.value)


def test_progress_line(capsys):
    bar = download.Progress("x", 0, 100_000_000)
    bar.have = 25_000_000
    bar.start -= 5
    assert re.fullmatch(r"x: 25\.0/100\.0 MB, 5\.0 MB/s, 0:15 left", bar.line())
