"""Pages in the browser, without one: what the server lets in and out, what it keeps, how it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

httpx = pytest.importorskip("httpx", reason="comes with gradio")
pytest.importorskip("gradio", reason="glocal[serve] is not installed")
from PIL import Image

from core import serving
from core._serving_visits import PREFIX, Root
from core.errors import FileError, InputError, MissingExtraError, SettingError

LIMITS = serving.Limits(megabytes=0.2, pixels=10_000)
ROUTE = "gradio_api"


class Busy:
    """Whether two handlers ran at once."""

    now = most = 0

    def __enter__(self):
        Busy.now += 1
        Busy.most = max(Busy.most, Busy.now)

    def __exit__(self, *_):
        Busy.now -= 1


def build(desk):
    import gradio as gr

    file, text, answer = gr.File(label="File"), gr.Textbox(label="Words"), gr.Textbox(label="Answer")
    made = gr.File(label="Made", interactive=False)

    def take(path, visit):
        with desk.taken(path) as found:
            visit.data = found.read_bytes()
        return f"{len(visit.data)} bytes", visit

    def remember(words, visit):
        visit.data = [*(visit.data or []), words]
        return ", ".join(visit.data), visit

    def fail(words):
        raise FileError(desk._root.folder / "ab" / "<b>photo one.jpg", f"is {words}", "give another")

    def crash(words):
        raise KeyError(f"of a patient: {words}")

    def slow(words):
        with Busy():
            time.sleep(0.3)
        return words

    def write(words, visit):
        path = visit.folder / "made.txt"
        path.write_text(words)
        return str(path), visit

    file.upload(take, [file, desk.state], [answer, desk.state])  # 0
    text.submit(remember, [text, desk.state], [answer, desk.state])  # 1
    text.submit(fail, text, answer)  # 2
    text.submit(crash, text, answer)  # 3
    text.submit(slow, text, answer)  # 4
    text.submit(lambda words: slow(words), text, answer)  # 5
    text.submit(write, [text, desk.state], [made, desk.state])  # 6


PAGE = serving.Page("A page", "What <it> is for.", build, note="Research use.")


@pytest.fixture(scope="module")
def page():
    with serving.run(PAGE, limits=LIMITS) as running:
        yield running


class Visitor:
    """Speaks as Gradio's page does."""

    def __init__(self, address, name):
        self.web, self.name = httpx.Client(base_url=address, timeout=20, trust_env=False), name

    def upload(self, content, name="a.bin"):
        return self.web.post(f"{ROUTE}/upload", files={"files": (name, content)})

    def join(self, which, *data):
        body = {"data": [*data], "fn_index": which, "session_hash": self.name, "trigger_id": None}
        return self.web.post(f"{ROUTE}/queue/join", json=body)

    def ask(self, which, *data):
        """The answer to one event: (whether it went well, output)."""
        assert self.join(which, *data).status_code == 200
        with self.web.stream("GET", f"{ROUTE}/queue/data", params={"session_hash": self.name}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:") and (said := json.loads(line[5:]))["msg"] == "process_completed":
                    return said["success"], said["output"]
        raise AssertionError("no answer")


@pytest.fixture
def visitor(page, request):
    return Visitor(page.address, f"v{abs(hash(request.node.nodeid))}")


def file(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_page_is_local_and_names_no_other_host(page, visitor):
    assert page.address.startswith("http://127.0.0.1:")
    answer = visitor.web.get("/")
    assert answer.status_code == 200
    shown = [c["props"].get("value") for c in visitor.web.get("/config").json()["components"]]
    assert "<h1>A page</h1><p>What &lt;it&gt; is for.</p>" in shown
    assert "twitter" not in answer.text
    assert "og:" not in answer.text
    assert "fonts.g" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    style = visitor.web.get("/theme.css").text
    assert "http" not in style.replace("xmlns='http://www.w3.org/2000/svg'", "")
    assert "@import" not in style
    assert '"footer_links":[]' in answer.text
    assert '"analytics_enabled":false' in answer.text


@pytest.mark.parametrize(
    "path",
    [
        *("docs", "openapi.json", "monitoring", "login"),
        *(f"{ROUTE}/{path}" for path in ("info", "openapi.json", "api/take", "proxy=https://a.hf.space/b")),
        *(f"{ROUTE}/file={path}" for path in ("/etc/passwd", "https://example.org/a.png")),
    ],
)
def test_other_routes_are_shut(visitor, path):
    assert visitor.web.get(path).status_code == 404


def test_file_route_stays_in_the_servers_folder(page, visitor):
    assert visitor.web.get(f"{ROUTE}/file={page.folder}/../../etc/passwd").status_code == 404
    link = page.folder / "link"
    link.symlink_to("/etc/passwd")
    assert visitor.web.get(f"{ROUTE}/file={link}").status_code == 404
    link.unlink()


def test_another_name_for_this_machine_is_refused(visitor):
    assert visitor.web.get("/", headers={"Host": "rebound.example"}).status_code == 400
    assert visitor.web.get("/", headers={"Host": "localhost:1234"}).status_code == 200


def test_another_page_may_not_ask(page, visitor):
    own = page.address.rstrip("/")
    for origin, status in (("https://evil.example", 403), ("null", 403), ("http://127.0.0.1:1", 403), (own, 200)):
        answer = visitor.web.post(f"{ROUTE}/upload", files={"files": ("a", b"1")}, headers={"Origin": origin})
        assert answer.status_code == status, origin


@pytest.mark.parametrize("path", ["/etc/hostname", "https://example.org/a.png", "pyproject.toml"])
def test_an_event_names_only_uploaded_files(visitor, path):
    assert visitor.join(0, file(path), None).status_code == 400


def test_upload_is_bounded_by_its_head_and_by_its_length(page, visitor):
    before = set(page.folder.iterdir())
    assert "0.2 MB" in visitor.upload(b"1" * 400_000).text

    def parts():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\n\r\n'
        for _ in range(40):
            yield b"1" * 10_000
        yield b"\r\n--x--\r\n"

    head = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = visitor.web.post(f"{ROUTE}/upload", content=parts(), headers=head)
    assert answer.status_code == 413
    assert set(page.folder.iterdir()) == before


def test_event_is_bounded_by_its_head_and_by_its_length(visitor):
    assert visitor.join(1, "x" * 5_000_000, None).status_code == 413
    answer = visitor.web.post(f"{ROUTE}/queue/join", content=iter([b'{"data": ["', b"x" * 5_000_000, b'"]}']))
    assert answer.status_code == 413


def test_upload_is_read_and_deleted(page, visitor, tmp_path):
    picture = tmp_path / "p.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(picture)
    content = picture.read_bytes()
    one, two = (visitor.upload(content, "p.png").json()[0] for _ in range(2))
    assert one != two  # two visitors with one file do not share it
    assert visitor.ask(0, file(one), None)[1]["data"][0] == f"{len(content)} bytes"
    assert not Path(one).parent.parent.exists()
    assert Path(two).exists()
    assert "is not here any more" in visitor.ask(0, file(one), None)[1]["error"]


def test_bomb_and_no_picture_are_sentences(visitor, tmp_path, capfd):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (5000, 5000)).save(bomb)
    assert bomb.stat().st_size < 10_000
    path = visitor.upload(bomb.read_bytes(), "bomb.png").json()[0]
    good, said = visitor.ask(0, file(path), None)
    assert not good
    assert said["error"].startswith("bomb.png: has 25 million pixels, and at most 0.01 million")
    Image.new("1", (20_000, 20_000)).save(bomb)  # beyond what Pillow opens at all
    path = visitor.upload(bomb.read_bytes(), "bomb.png").json()[0]
    said = visitor.ask(0, file(path), None)[1]["error"]
    assert said == "bomb.png: has more than the 0.01 million pixels taken here; give a smaller one"
    path = visitor.upload(b"no picture", "p a.jpg").json()[0]
    assert visitor.ask(0, file(path), None)[1]["error"] == (
        "p a.jpg: is not a picture that can be read; give a JPEG, PNG or TIFF file"
    )
    assert "no file was given" in visitor.ask(0, None, None)[1]["error"]
    assert capfd.readouterr().err == ""


def test_errors_are_sentences(page, visitor, capfd):
    good, said = visitor.ask(2, "broken")
    assert not good
    assert said["error"] == "&lt;b&gt;photo one.jpg: is broken; give another"
    good, said = visitor.ask(3, "Jane")
    assert not good
    assert said["error"] == "something went wrong here (KeyError); the terminal says where"
    shown = capfd.readouterr().err
    assert shown.startswith("failed: KeyError at test_serving.py:")
    assert "Jane" not in shown
    assert "Traceback" not in shown


def test_two_visitors_do_not_see_each_other(page):
    a, b = Visitor(page.address, "first"), Visitor(page.address, "second")
    assert a.ask(1, "red", None)[1]["data"][0] == "red"
    assert b.ask(1, "blue", None)[1]["data"][0] == "blue"
    assert a.ask(1, "green", None)[1]["data"][0] == "red, green"


def test_two_servers_in_one_process(page):
    with serving.run(PAGE, limits=LIMITS) as other:
        a, b = Visitor(page.address, "a of two"), Visitor(other.address, "b of two")
        one, two = (v.upload(b"no picture", "n.txt").json()[0] for v in (a, b))
        for visitor, mine, theirs in ((a, one, two), (b, two, one)):
            assert visitor.join(0, file(theirs), None).status_code == 400
            assert "is not a picture" in visitor.ask(0, file(mine), None)[1]["error"]
    path = a.upload(b"no picture", "n.txt").json()[0]
    assert "is not a picture" in a.ask(0, file(path), None)[1]["error"]
    assert not other.folder.exists()


def test_one_worker(page):
    visitors = [Visitor(page.address, f"w{i}") for i in range(4)]
    threads = [threading.Thread(target=v.ask, args=(4 + i % 2, "x")) for i, v in enumerate(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Busy.most == 1


def test_what_was_made_goes_with_the_visit(page):
    a = Visitor(page.address, "leaving")
    with a.web.stream("GET", f"{ROUTE}/heartbeat/leaving"):
        made = Path(a.ask(6, "words", None)[1]["data"][0]["path"])
        assert made.is_relative_to(page.folder)
        assert a.web.get(f"{ROUTE}/file={made}").text == "words"
        assert a.ask(1, "red", None)[1]["data"][0] == "red"
    wait(lambda: not made.exists())
    assert a.ask(1, "blue", None)[1]["data"][0] == "blue"


def test_a_visit_that_ended_makes_no_files(tmp_path):
    root = Root()
    visit = serving.Visit(root)
    folder = visit.folder
    visit.end()
    assert not folder.exists()
    with pytest.raises(InputError, match="has ended"):
        _ = visit.folder
    root.end()
    assert not root.folder.exists()


def test_only_uploads_are_dropped(tmp_path):
    root = Root()
    other = tmp_path / "mine.txt"
    other.write_text("x")
    root.drop(other)
    root.drop(root.folder)
    assert other.exists()
    assert root.folder.exists()
    root.end()


def test_next_server_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = tmp_path / f"{PREFIX}{ended.stdout.strip()}-abc"
    alive = tmp_path / f"{PREFIX}{os.getpid()}-abc"
    for folder in (left, alive):
        folder.mkdir()
    Root().end()
    assert not left.exists()
    assert alive.exists()


def test_taken_port_and_strange_host_are_sentences():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingError, match=f"port {port} of 127.0.0.1 is taken"), serving.run(PAGE, port=port):
            pass
    with pytest.raises(SettingError, match=r"cannot listen at 192\.0\.2\.1"), serving.run(PAGE, host="192.0.2.1"):
        pass
    with pytest.raises(SettingError, match="70000"), serving.run(PAGE, port=70000):
        pass


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"glocal\[serve\]"), serving.run(PAGE):
        pass


def test_pictures_are_not_decoded_before_they_are_checked():
    def careless(desk):
        import gradio as gr

        picture = gr.Image()
        picture.upload(lambda p: None, picture)

    with pytest.raises(TypeError, match="decodes pictures"), serving.run(serving.Page("x", "y", careless)):
        pass


def test_the_end_does_not_wait_for_visitors(monkeypatch):
    monkeypatch.setattr("core._serving_server._GRACE", 9)
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(serving.run(PAGE))
        stream = httpx.stream("GET", f"{running.address}{ROUTE}/heartbeat/open", trust_env=False)
        with stream as answer:
            assert next(answer.iter_lines()) == "data: ALIVE"
            start = time.monotonic()
            stack.close()
            assert time.monotonic() - start < 7


SCRIPT = """
    import sys

    away = []

    def heard(event, values):
        if event == "socket.connect" and not str(values[1][0]).startswith("127."):
            away.append(values[1])
        if event == "socket.getaddrinfo" and values[0] not in (None, "127.0.0.1", "localhost"):
            away.append(values[0])

    sys.addaudithook(heard)
    from core import serving

    def build(desk):
        import gradio as gr

        gr.Textbox()

    serving.serve(serving.Page("Page", "about", build), port=0)
    print("asked", away, serving.threading.active_count() > 0)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_and_asks_no_other_host(tmp_path, how):
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as process:
        line = process.stdout.readline()
        assert line.startswith("Page: http://127.0.0.1:"), process.stderr.read()
        address = line.split()[1]
        with httpx.stream("GET", f"{address}{ROUTE}/heartbeat/open", trust_env=False) as stream:
            assert next(stream.iter_lines()) == "data: ALIVE"
            start = time.monotonic()
            process.send_signal(how)
            out, err = process.communicate(timeout=40)  # though a visitor is there
    assert (process.returncode, err) == (0, "")
    assert "ended" in out
    assert "asked [] True" in out
    assert time.monotonic() - start < 20
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def wait(ready, seconds=10):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)
