"""A package repository of the test's own, which a real apt-get reads over HTTP."""

import hashlib
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

__all__ = ["Repository", "serve_repository"]


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and what is left of one; notes which archives were asked for, and holds up those that are to
    stall: before the first byte, or at half of them."""

    def __init__(self, *arguments, repository: "Repository", **more) -> None:
        self.repository = repository
        super().__init__(*arguments, directory=str(repository.folder), **more)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if name.endswith(".deb"):
            self.repository.asked.append(name)
            if name.startswith(self.repository.stalling or "\0"):
                self.repository.stalls.set()
                self.repository.go_on.wait()
            if name.startswith(self.repository.halving or "\0") or "Range" in self.headers:
                self._send_part(self.repository.folder / name)
                return
        super().do_GET()

    def _send_part(self, file: Path) -> None:
        """From where the client is to the end, or to half of the file, where it waits (RFC 9110 §14)."""
        data, modified = file.read_bytes(), self.date_time_string(int(file.stat().st_mtime))
        asked = self.headers.get("Range", "")
        first = int(asked.removeprefix("bytes=").rstrip("-")) if self.headers.get("If-Range") == modified else 0
        self.repository.parts.append((file.name, first))
        self.send_response(206 if first else 200)
        self.send_header("Last-Modified", modified)
        self.send_header("Content-Length", f"{len(data) - first}")
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not self.repository.halving:
            self.wfile.write(data[first:])
            return
        self.wfile.write(data[first : len(data) // 2])
        self.repository.stalls.set()
        self.repository.go_on.wait()

    def log_message(self, *_arguments) -> None:
        """To nobody."""


class Repository:
    """`asked`: archives in the order in which they were asked for. `stalling`: the package whose archive waits;
    `halving`: the one of which half is sent. `parts`: archives sent in parts, and from which byte on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.parts: list[tuple[str, int]] = []
        self.stalling = self.halving = ""
        self.stalls, self.go_on = threading.Event(), threading.Event()
        self._index: list[str] = []

    def add(
        self, name: str, files: dict[str, str | bytes], *, version: str = "1.0", depends: str = "", honest: bool = True
    ) -> None:
        """A package with files, executable all. Not `honest`: its archive is another than the index says."""
        tree = self.folder / f"{name}.{version}.tree"
        for path, content in files.items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            file.chmod(0o755)
        control = f"Package: {name}\nVersion: 1:{version}\nArchitecture: all\nMaintainer: a test <t@localhost>\n"
        control += (f"Depends: {depends}\n" if depends else "") + "Description: a test's\n"
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(control)
        archive = self.folder / f"{name}_{version}_all.deb"
        subprocess.run(["dpkg-deb", "--build", tree, archive], check=True, capture_output=True)
        data = archive.read_bytes()
        where = f"Filename: ./{archive.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        self._index.append(control + where)
        if not honest:
            archive.write_bytes(bytes(len(data)))
        self._publish()

    def remove(self, name: str) -> None:
        """A package, archive and all."""
        self._index = [paragraph for paragraph in self._index if not paragraph.startswith(f"Package: {name}\n")]
        for archive in self.folder.glob(f"{name}_*.deb"):
            archive.unlink()
        self._publish()

    def _publish(self) -> None:
        index = "\n".join(self._index).encode()
        (self.folder / "Packages").write_bytes(index)
        digest = hashlib.sha256(index).hexdigest()
        (self.folder / "Release").write_text(f"Suite: test\nSHA256:\n {digest} {len(index)} Packages\n")


@contextmanager
def serve_repository(folder: Path) -> Iterator[tuple[Repository, dict[str, str]]]:
    """The repository, and the environment in which apt knows it alone, and nothing of what this system has."""
    repository = Repository(folder / "repository")
    repository.folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, repository=repository)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in ("lists", "parts"):
            (folder / name).mkdir()
        (folder / "sources.list").write_text(f"deb [trusted=yes] http://127.0.0.1:{server.server_port}/ ./\n")
        (folder / "status").touch()
        (folder / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "{folder}/parts";\n'
            f'Dir::State::Lists "{folder}/lists";\nDir::State::status "{folder}/status";\n'
            'Acquire::http::Proxy "DIRECT";\n'
        )
        try:
            yield (
                repository,
                os.environ | {"APT_CONFIG": f"{folder}/apt.conf", "TRIOVISOR_CACHE": f"{folder}/cache"},
            )
        finally:
            repository.go_on.set()
            server.shutdown()
            thread.join()
