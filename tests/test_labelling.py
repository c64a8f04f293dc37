"""`deas-vla label`: outcomes that somebody gives to recordings without, in a terminal or on a page."""

import http.client
import io
import json
import os
import pty
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from v2_example import FRONT, LENGTHS, data_file, drop_outcomes, edit_json, picture, video_file, write_v2

from deas_vla.cli import main
from deas_vla.data.audit.audit import audit
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import Layout
from deas_vla.data.lerobot.outcomes import OUTCOMES, read_outcomes
from deas_vla.data.lerobot.reader import own_contract, read_dataset
from deas_vla.errors import UserError
from deas_vla.labelling.labelling import Labelling
from deas_vla.labelling.page import LabelServer
from deas_vla.labelling.terminal import half_blocks, label_in_terminal

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Recordings without outcomes, their images as PNG in the rows."""
    root = drop_outcomes(write_v2(tmp_path_factory.mktemp("v2") / "dataset"))
    edit_json(root / "meta/info.json", lambda info: info["features"][FRONT].update(dtype="image"))
    for number, length in enumerate(LENGTHS):
        images = []
        for row in range(length):
            stored = io.BytesIO()
            Image.fromarray(picture(row)).save(stored, "PNG")
            images.append({"bytes": stored.getvalue(), "path": f"{row}.png"})
        table = pq.read_table(data_file(root, number)).append_column(FRONT, pa.array(images))
        pq.write_table(table, data_file(root, number))
        video_file(root, number).unlink()
    return root


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "dataset")


def read(root):
    folder = LerobotFolder(root)
    return read_dataset(root, own_contract(folder, Layout.of(folder))[0])[0]


def test_what_is_given_is_what_is_read(root):
    with pytest.raises(UserError, match=f"look at each episode: deas-vla label {root}"):
        read(root)
    labelling = Labelling(root)
    for episode, answer in enumerate(("success", "failure", 5, "failure")):
        labelling.give(episode, answer)
    assert "4 of 4 episodes have an outcome, 2 succeeded; check the data with: deas-vla audit" in labelling.summary()
    episodes = read(root)
    # Done at the end; never; and first seen done in picture 5, so by the step before.
    assert [episode.length for episode in episodes] == [LENGTHS[0], LENGTHS[1] - 1, 5, LENGTHS[3] - 1]
    assert [episode.terminated for episode in episodes] == [True, False, True, False]
    assert [episode.rewards.sum() for episode in episodes] == [1, 0, 1, 0] and episodes[2].rewards[4] == 1
    # What was seen to fail is nothing to imitate.
    assert [episode.group for episode in episodes] == ["demonstration", "failure", "demonstration", "failure"]
    assert main(["declare", str(root), "--units=m", "--source=rollout"]) == 0
    assert [episode.group for episode in read(root)] == ["success", "failure"] * 2
    (data,) = audit([root]).datasets
    assert data.successes == 2 and all(finding.severity != "error" for finding in data.findings.sorted())


def test_it_goes_on_where_it_stopped_and_takes_the_last_back(root):
    labelling = Labelling(root)
    labelling.undo()
    assert labelling.progress().last is None and not (root / OUTCOMES).exists()
    labelling.give(0, "failure")
    labelling.give(1, "success")
    with pytest.raises(UserError, match="2 of 4 episodes have no outcome yet; go on with: deas-vla label"):
        read(root)
    again = Labelling(root)
    assert (again.progress().episode, again.progress().labelled, again.progress().successes) == (2, 2, 1)
    with pytest.raises(UserError, match="episode 1 has its outcome or is not the next one"):
        again.give(1, "failure")
    for wrong in ("s", 0, LENGTHS[2], True, None, 1.5):
        with pytest.raises(UserError, match="is not success, failure or a row from 1 to 13"):
            again.give(2, wrong)
    again.undo()
    assert labelling.progress().episode == 1 and "1 of 4" in labelling.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.append(lines[0]), "episode 0 has two outcomes"),
        (lambda lines: lines[0].update(rows=11, success=3), "has 12 rows and had 11 when its outcome was given"),
        (lambda lines: lines[0].update(episode=9), "episode 9 has no rows"),
        (lambda lines: lines[0].update(success=12), "damaged"),
        (lambda lines: lines[0].update(success="yes"), "damaged"),
        (lambda lines: lines[0].pop("rows"), "damaged"),
    ],
)
def test_outcomes_of_other_episodes_are_refused(root, change, message):
    Labelling(root).give(0, "success")
    edit_json(root / OUTCOMES, lambda stored: change(stored["outcomes"]))
    with pytest.raises(UserError, match=message):
        read_outcomes(LerobotFolder(root))
    assert any(message in finding.message for finding in audit([root]).datasets[0].findings.sorted())
    with pytest.raises(UserError, match=message):
        Labelling(root)


def test_what_is_recorded_or_declared_is_not_asked_for(root, tmp_path, capsys):
    recorded = write_v2(tmp_path / "recorded")
    assert main(["label", str(recorded)]) == 2
    assert "is said by its column next.success" in capsys.readouterr().err
    Labelling(root).give(0, "success")
    shutil.copy(root / OUTCOMES, recorded / OUTCOMES)
    with pytest.raises(UserError, match=r"given in meta/deas_vla_outcomes\.json and by its column next\.success"):
        read(recorded)
    main(["declare", str(root), "--units=m", "--success=always"])
    with pytest.raises(UserError, match=r"by meta/deas_vla.json \(success=always\); delete one"):
        read(root)
    with pytest.raises(UserError, match=r"to give it by hand all the same, delete meta/deas_vla\.json"):
        Labelling(root)
    (root / "meta/deas_vla.json").unlink()
    assert main(["label", str(root)]) == 2
    assert "need a terminal; label on a page instead: --page" in capsys.readouterr().err


def test_keys_in_a_terminal(root, monkeypatch, capsys):
    typing, screen = pty.openpty()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "13")
    with os.fdopen(screen, "r") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        # Failure, taken back; at the third picture; a success at the end; t at the start and x say nothing; quit.
        os.write(typing, b"fu" + b"..,.t" + b"s" + b"tx.\x1b[Cq")
        label_in_terminal(Labelling(root))
    os.close(typing)
    assert [outcome.success for outcome in read_outcomes(LerobotFolder(root))] == [1, LENGTHS[1] - 1]
    shown = capsys.readouterr().out
    assert "episode 0: pick the pear" in shown and "picture 2 of 11, 0.2 s" in shown
    screens = shown.split("\x1b[H")[1:]
    assert all(screen.count("▀") == 8 * 16 for screen in screens)


def test_half_blocks_hold_every_pixel():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    (line,) = half_blocks(pixels)
    assert line.startswith("\x1b[38;2;0;1;2m\x1b[48;2;9;10;11m▀") and line.count("▀") == 3


@pytest.fixture
def server(root):
    with LabelServer(Labelling(root)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.getheader("Content-Type"), answer.read()
    connection.close()
    return found


def test_the_page_shows_and_takes_outcomes(server, root):
    base = f"/{server.token}/"
    status, kind, page = ask(server, "GET", base)
    assert (status, kind) == (200, "text/html; charset=utf-8") and b"first picture that shows it done" in page
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}{base}"
    assert json.loads(ask(server, "GET", base + "progress")[2])["rows"] == LENGTHS[0]
    status, kind, jpeg = ask(server, "GET", base + "picture/0/3.jpg")
    seen, meant = np.asarray(Image.open(io.BytesIO(jpeg))), picture(3)
    assert (status, kind, seen.shape) == (200, "image/jpeg", (360, 360, 3))
    assert abs(int(seen[100, 60, 0]) - int(meant[0, 0, 0])) < 4

    def post(path, body):
        status, _, content = ask(server, "POST", base + path, json.dumps(body))
        return status, json.loads(content)

    assert post("outcome", {"episode": 0, "outcome": 4})[1]["episode"] == 1
    assert post("outcome", {"episode": 1, "outcome": "failure"})[1]["labelled"] == 2
    assert post("undo", {})[1] | {"rate_hz": 0} == {
        "episode": 1, "rows": 9, "instruction": "open the drawer", "rate_hz": 0, "labelled": 1, "total": 4,
        "successes": 1, "last": 0,
    }  # fmt: skip
    assert [outcome.success for outcome in read_outcomes(LerobotFolder(root))] == [3]


def test_the_page_refuses_what_it_was_not_asked(server, root):
    base, before = f"/{server.token}/", sorted(root.rglob("*"))
    good = json.dumps({"episode": 0, "outcome": "success"})
    for path in ("/", "/progress", "/outcome", "/" + "x" * 22 + "/", base + "x", base + "../progress"):
        assert ask(server, "GET", path)[0] == 404 and ask(server, "POST", path.replace(base, "/"), good)[0] == 404
    for path in ("picture/0/12.jpg", "picture/7/0.jpg", "picture/0/-1.jpg", "picture/../../meta/info.json"):
        assert ask(server, "GET", base + path)[0] == 404
    for body in (
        "",
        "[]",
        "{}",
        "no",
        '{"episode": "0", "outcome": "failure"}',
        '{"episode": 0, "outcome": 1, "x": 1}',
    ):
        assert ask(server, "POST", base + "outcome", body)[0] == 400, body
    for outcome in ("../x", 99, None, [1]):
        assert ask(server, "POST", base + "outcome", json.dumps({"episode": 0, "outcome": outcome}))[0] == 409
    assert ask(server, "POST", base + "outcome", good + " " * 200)[0] == 413
    assert ask(server, "POST", base + "outcome", good, **{"Content-Length": "-1"})[0] == 413
    assert ask(server, "PUT", base + "outcome", good)[0] == 501
    assert sorted(root.rglob("*")) == before and server.labelling.progress().labelled == 0
    with pytest.raises(UserError, match="choose another: --port"):
        LabelServer(server.labelling, server.server_address[1])
