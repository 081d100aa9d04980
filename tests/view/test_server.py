"""Who is answered: this machine's own pages, or who has the token; not what is too large or asked wrongly."""

import http.client
import json
import socket
import time

import pytest

from pellucid.errors import InvalidParameter
from pellucid.view.server import Server
from tests.view.conftest import served


def asked(server, method="POST", path="/ask/photo", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer, content


def told(content):
    return json.loads(content.splitlines()[-1])


def test_the_page_and_its_answers(run_view):
    with served(run_view) as server:
        answer, content = asked(server, "GET", "/")
        assert answer.status == 200
        assert "default-src 'none'" in answer.getheader("Content-Security-Policy")
        assert "Maps of shapes-resnet" in content
        assert asked(server, "GET", "/etc/passwd")[0].status == 404
        _, content = asked(server, body=json.dumps({"model": 0, "image": 0}))
        assert told(content)["answer"]["uri"].startswith("data:image/jpeg")


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("{", "Expecting"),
        ("[]", "ask by name"),
        ('{"model": 0}', "image"),
        ('{"model": 0, "image": "0"}', "valid integer"),
        ('{"model": 0, "image": 99}', "there is no image 99"),
        ('{"model": 0, "image": 0, "tick": 1}', "ask by name"),
        ('{"model": 0, "image": 0, "more": 1}', "more"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_one_line(run_view, body, wrong):
    with served(run_view) as server:
        _, content = asked(server, body=body)
        assert wrong in told(content)["error"]


def test_other_pages_and_other_names_of_this_machine_are_refused(run_view):
    with served(run_view) as server:
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": "evil.example:80"}):
            assert asked(server, body="{}", **headers)[0].status == 403
        assert asked(server, "GET", "/", Host="evil.example")[0].status == 403
        assert asked(server, path="/ask/_read", body="{}")[0].status == 404


def test_on_another_host_only_who_has_the_token_is_answered(run_view):
    with served(run_view, host="0.0.0.0") as server:
        assert server.token in server.url
        assert asked(server, "GET", "/")[0].status == 403
        assert asked(server, "GET", "/?token=guess")[0].status == 403
        assert asked(server, body="{}", Cookie="pellucid=guess")[0].status == 403
        assert asked(server, body="{}", Cookie='pellucid="\x7f')[0].status == 403
        answer, _ = asked(server, "GET", f"/?token={server.token}")
        cookie = answer.getheader("Set-Cookie")
        assert answer.status == 303
        assert "HttpOnly; SameSite=Strict" in cookie
        answer, content = asked(server, "GET", "/", Cookie=cookie.split(";")[0])
        assert answer.status == 200
        assert server.token not in content


def test_a_huge_upload_is_refused_before_it_is_read(live, monkeypatch):
    monkeypatch.setenv("PELLUCID_MAX_UPLOAD", "100000")
    with served(live) as server, socket.create_connection(server.server_address[:2], timeout=10) as line:
        head = f"POST /ask/upload HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {10**15}\r\n\r\n"
        line.sendall(head.encode())
        assert b"413" in line.recv(100)


def test_a_tab_closed_in_mid_computation_ends_it(live):
    with served(live) as server:
        slow = {"variant": 0, "method": "smoothed(gradient, samples=50000)", "image": 0, "target": "auto"}
        body = json.dumps(slow)
        with socket.create_connection(server.server_address[:2], timeout=20) as line:
            head = f"POST /ask/maps HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            line.sendall(head.encode())
            while b"doing" not in line.recv(4096):
                pass
        for _ in range(400):
            if not live._turn.locked():
                break
            time.sleep(0.05)
        assert not live._turn.locked()
        _, content = asked(server, path="/ask/maps", body=json.dumps(slow | {"method": "gradient"}))
        assert told(content)["answer"]["layers"]


def test_a_port_that_is_taken_is_followed_by_the_next(run_view):
    with served(run_view) as first:
        port = first.server_address[1]
        second = Server(run_view, port=port)
        assert port < second.server_address[1] <= port + 20
        second.server_close()
    with pytest.raises(InvalidParameter, match=r"--host 203\.0\.113\.1 --port"):
        Server(run_view, host="203.0.113.1", port=0)
