"""Named checkpoints and data, fetched once into data/ beside the scripts.

    python -m common.download                                    # what there is
    python -m common.download rwkv7-g1d-0.1b-20260129-ctx8192    # fetch one

A download that was cut goes on where it stopped (HTTP Range), is checked against its SHA-256 where that is known, and
gets its name only when it is whole. HF_ENDPOINT replaces https://huggingface.co (mirrors), HF_TOKEN is sent there only.
"""

import errno
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock

from common.errors import UserError
from common.files import replacing

DATA = Path(__file__).resolve().parents[1] / "data"
HF = "https://huggingface.co"
WORLD, G1 = f"{HF}/BlinkDL/rwkv-7-world/resolve/main", f"{HF}/BlinkDL/rwkv7-g1/resolve/main"
TRIES, TIMEOUT = 5, (10, 60)  # attempts without progress; seconds to connect, and to wait for bytes
BLOCK = 1 << 16  # bytes; what a cut connection can lose, so a slow line needs it small

# fmt: off
NAMES = {  # name: (URL, SHA-256 or None where no published one is known)
    "rwkv7-g1d-0.1b-20260129-ctx8192": (f"{G1}/rwkv7-g1d-0.1b-20260129-ctx8192.pth", None),
    "rwkv7-g1d-0.4b-20260210-ctx8192": (f"{G1}/rwkv7-g1d-0.4b-20260210-ctx8192.pth", None),
    "rwkv7-g1-0.1b-20250307-ctx4096": (f"{G1}/rwkv7-g1-0.1b-20250307-ctx4096.pth", "854230983f1015407c44274a7a27196ed72007618995b7a7efba3c4a15f69a45"),
    "rwkv7-g1a3-1.5b-20251015-ctx8192": (f"{G1}/rwkv7-g1a3-1.5b-20251015-ctx8192.pth", "10bf909822e5899a55318996447cf9c935da078c9735a9e6b8afc9a0aa7f89e0"),
    "rwkv7-g1a-2.9b-20250924-ctx4096": (f"{G1}/rwkv7-g1a-2.9b-20250924-ctx4096.pth", "df5716263b617e7da83590446fb2a98b6663447cfd52e8e9b49e11ce7f4faa3e"),
    "RWKV-x070-World-0.1B-v2.8-20241210-ctx4096": (f"{WORLD}/RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth", "60c98129b9529963bff2c164b8ab4bd17c19332ae06dc2dcae32aa3a3739295a"),
    "RWKV-x070-World-0.4B-v2.9-20250107-ctx4096": (f"{WORLD}/RWKV-x070-World-0.4B-v2.9-20250107-ctx4096.pth", "c08cf602b33e59a5717b8f0cafaf7f04c50c1c67166e477aa2f47c5ca180da4a"),
    "RWKV-x070-World-1.5B-v3-20250127-ctx4096": (f"{WORLD}/RWKV-x070-World-1.5B-v3-20250127-ctx4096.pth", "23e13ff62ac6f80b28910ffc230324939e80ddb00b98f892a5951c0da071e700"),
    "RWKV-x070-World-2.9B-v3-20250211-ctx4096": (f"{WORLD}/RWKV-x070-World-2.9B-v3-20250211-ctx4096.pth", "5d7901b91ef1646115db03d03d171370bca454061ad426a1256fda9e1c428cf8"),
    "rwkv_vocab_v20230424.txt": ("https://raw.githubusercontent.com/BlinkDL/RWKV-LM/main/RWKV-v7/rwkv_vocab_v20230424.txt", "e6dee3d4e31b4d5c40ac99508ac6c701ceef4bed681bf2167ce9a908552bca89"),
    "hotpot_dev_distractor_v1.json": ("http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json", "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea"),
    "hotpot_train_v1.1.json": ("http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_train_v1.1.json", "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316"),
    "ARC-Challenge-Train.jsonl": ("https://raw.githubusercontent.com/nju-websoft/GenMC/eada4b06cf25bd95333422e1a1c02d4db3d25945/data/arc_challenge/official/train.jsonl", "207f7b3fc87a4e2a9b0f089e17bcf3c926002b8aa3277788f5fa27a05b67abb8"),
    "ARC-Challenge-Dev.jsonl": ("https://raw.githubusercontent.com/nju-websoft/GenMC/eada4b06cf25bd95333422e1a1c02d4db3d25945/data/arc_challenge/official/dev.jsonl", "237bf1c2fd0ce2a3518c2bce645ccbfcf16612db20f34f2a12f5253da7a60654"),
    "flip_secondary_structure": ("https://raw.githubusercontent.com/J-SNACKKB/FLIP/62cace8735f5610e2743cf06ce0f944b37fffaa6/splits/secondary_structure/splits.zip", "2e9bbbfd18a055bcac7edd4e059a6bf4bb35ca3ad8f8fa4fc3106422652a4726"),
    "protein_contact_map-train": (f"{HF}/datasets/heya5/protein_contact_map/resolve/refs%2Fconvert%2Fparquet/default/train/0000.parquet", None),
    "protein_contact_map-valid": (f"{HF}/datasets/heya5/protein_contact_map/resolve/refs%2Fconvert%2Fparquet/default/valid/0000.parquet", None),
    "squad-train-v1.1.json": ("https://rajpurkar.github.io/SQuAD-explorer/dataset/train-v1.1.json", "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955"),
    "squad-dev-v1.1.json": ("https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v1.1.json", "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9"),
    "mbpp.jsonl": ("https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl", "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"),
}
# fmt: on


def fetch(name: str, sha256: str | None = None, folder: str | os.PathLike | None = None) -> Path:
    """The local path of `name`: a file that exists, a key of NAMES, or a URL; downloaded first if need be.

    Raises UserError, with the URL and where to put the file by hand, when it can't be had.
    """
    if "://" not in name and Path(name).is_file():
        return Path(name)
    url, known = NAMES.get(name, (name, None))
    file = urlsplit(url).path.rsplit("/", 1)[-1]
    if "://" not in url or not file:
        raise UserError(f"{name} is neither a file nor a URL of one nor a name that `python -m common.download` lists")
    suffix = "" if Path(name).suffix in (".txt", ".json", ".jsonl") else Path(file).suffix
    target = Path(folder or DATA) / (name + suffix if name in NAMES else file)
    if target.exists():
        return target
    if url.startswith(f"{HF}/"):
        url = endpoint() + url.removeprefix(HF)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # a second run waits, then finds the file
            if not target.exists():
                download(url, target, sha256 or known)
    except OSError as e:
        full = "what came is kept, free some space and rerun" if e.errno == errno.ENOSPC else f"URL: {url}"
        raise UserError(f"{target} can't be written ({e.strerror or e}): {full}") from e
    return target


def endpoint() -> str:
    url = (os.environ.get("HF_ENDPOINT") or HF).rstrip("/")
    if not url.startswith(("https://", "http://")):
        raise UserError(f"HF_ENDPOINT={url} is not a URL: it begins with https://")
    return url


def download(url: str, target: Path, sha256: str | None) -> None:
    """Fetch `url` through target.part, over as many connections as it takes."""
    part, failures = target.with_name(target.name + ".part"), 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            transfer(url, part)
            break
        except requests.RequestException as e:
            status, problem = e.response.status_code if e.response is not None else 0, type(e).__name__
            if 400 <= status < 500 and status not in (408, 429):
                token = "set HF_TOKEN to one that may read it, or " if status in (401, 403) else ""
                raise UserError(f"{url} answered {status}: {token}get it elsewhere and put it at {target}") from e
            after = part.stat().st_size if part.exists() else 0
            failures = (0 if after > before else failures) + 1
        if failures >= TRIES:
            problem = f"status {status}" if status else problem
            raise UserError(f"{url} can't be reached ({problem}): download it elsewhere and put it at {target}")
        time.sleep(min(0.2 * 2**failures, 10))
    if sha256 and (got := digest(part)) != sha256:
        part.unlink()
        etag_file(part).unlink(missing_ok=True)
        raise UserError(
            f"{url} is corrupt or has changed: SHA-256 {got[:12]}..., expected {sha256[:12]}...; it was deleted, rerun"
        )
    etag_file(part).unlink(missing_ok=True)
    os.replace(part, target)


def etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def transfer(url: str, part: Path) -> None:
    """One connection: append to `part` what it lacks, or start anew if the server can't, or the file has changed."""
    have, etag = part.stat().st_size if part.exists() else 0, etag_file(part)
    headers = {"Accept-Encoding": "identity"}  # byte ranges count bytes of the file, not of a compressed form
    if have and etag.exists():
        headers |= {"Range": f"bytes={have}-", "If-Range": etag.read_text()}
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and urlsplit(url)[:2] == urlsplit(endpoint())[:2]:  # scheme and host; a prefix would fit hosts of others
        headers["Authorization"] = f"Bearer {token}"  # requests drops it when redirected to another host
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as r:
        span = r.headers.get("Content-Range", "")
        if r.status_code == 416 and span == f"bytes */{have}":
            return  # nothing was lacking: an earlier run ended between the last byte and the renaming
        resumed = r.status_code == 206 and span.startswith(f"bytes {have}-")
        if r.status_code == 416 or (r.status_code == 206 and not resumed):
            etag.unlink(missing_ok=True)
            raise requests.ConnectionError("the server can't continue what is in the partial file")
        r.raise_for_status()
        if not resumed:  # before the new ETag is written: it must never stand beside old bytes
            part.unlink(missing_ok=True)
            have = 0
        total = have + int(r.headers["Content-Length"]) if "Content-Length" in r.headers else None
        check_space(part, (total or 0) - have)
        if not resumed:
            etag.unlink(missing_ok=True)
            if (tag := r.headers.get("ETag")) and not tag.startswith("W/"):
                with replacing(etag) as tmp:
                    tmp.write_text(tag)
        with open(part, "ab") as f:
            bar = Progress(part.name.removesuffix(".part"), have, total)
            for block in r.iter_content(BLOCK):
                f.write(block)
                bar.add(len(block))
            bar.close()
            os.fsync(f.fileno())  # the whole file must be on disk before it gets its name
    if total is not None and part.stat().st_size != total:
        raise requests.ConnectionError(f"the connection closed after {part.stat().st_size} of {total} bytes")


def check_space(part: Path, n: int) -> None:
    if n > (free := shutil.disk_usage(part.parent).free):
        raise UserError(
            f"{part.parent} has {free / 1e9:.1f} GB free, {part.name} needs {n / 1e9:.1f} GB more: free some and rerun"
        )


def digest(path: Path) -> str:
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(BLOCK):
            h.update(block)
    return h.hexdigest()


class Progress:
    """Megabytes, rate and time left: one line that updates on a terminal, a line every 10 seconds elsewhere."""

    def __init__(self, name: str, have: int, total: int | None):
        self.name, self.have, self.total, self.first = name, have, total, have
        self.start = self.shown = time.monotonic()

    def add(self, n: int) -> None:
        self.have += n
        tty = sys.stderr.isatty()
        if time.monotonic() - self.shown > (0.2 if tty else 10):
            self.shown = time.monotonic()
            print(("\r" if tty else "") + self.line(), end="" if tty else "\n", file=sys.stderr, flush=True)

    def line(self) -> str:
        rate = (self.have - self.first) / max(time.monotonic() - self.start, 1e-3)
        done = f"{self.name}: {self.have / 1e6:.1f}"
        if self.total is None:
            return f"{done} MB, {rate / 1e6:.1f} MB/s"
        left = (self.total - self.have) / max(rate, 1)
        return f"{done}/{self.total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s, {left // 60:.0f}:{left % 60:02.0f} left"

    def close(self) -> None:
        if self.shown != self.start:
            print(("\r" if sys.stderr.isatty() else "") + self.line(), file=sys.stderr)


def main() -> None:
    for name in sys.argv[1:]:
        print(fetch(name))
    if not sys.argv[1:]:
        print("\n".join(f"{name:44} {url}" for name, (url, _) in NAMES.items()))


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit("interrupted: what came is kept, the same command goes on from there")
