"""A local server that speaks OpenAI's protocol and misbehaves as it is told to."""

import json
import re
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = (
    "<think>Easy.</think>We add.\n<Parallel><Path>Count up from {a}, one step for each of {b}, and reach {s}.</Path>"
    "<Path>Turned around it is the larger number first; that makes {s} as well.</Path></Parallel>\n"
    "<Summary>Both ways agree on {s}.</Summary>\nFinal Answer: {s}"
)


def solve(content):
    """A good answer to a sum."""
    a, b = map(int, re.search(r"What is (\d+) plus (\d+)\?", content).groups())
    return GOOD.format(a=a, b=b, s=a + b)


class Teacher:
    """What the server has been asked and what it says.

    Attributes:
        moods: what it does with the next requests: good, a status such as 429, `cut` (JSON that ends too early),
            `gone` (the connection ends in the middle), `slow`; good when none is left.
        answer: a prompt -> the text of a good answer.
        asked: prompts in the order in which they came.
        answered: those whose answer was sent whole.
        pause: seconds for every answer.
    """

    def __init__(self, moods=(), answer=solve, pause=0.0, usage=True):
        self.moods, self.answer, self.pause, self.usage = deque(moods), answer, pause, usage
        self.asked, self.answered, self.times = [], [], []
        self.lock = threading.Lock()


def handler(teacher):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            with teacher.lock:
                mood = teacher.moods.popleft() if teacher.moods else "good"
                teacher.asked.append(content)
                teacher.times.append((time.monotonic(), mood))
            time.sleep(10 if mood == "slow" else teacher.pause)
            status, headers = 200, {}
            if isinstance(mood, int):
                status, body = mood, json.dumps({"error": {"message": f"mood {mood}"}})
                headers = {"Retry-After": "1"} if mood == 429 else {}
            else:
                usage = {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110}
                message = {"role": "assistant", "content": teacher.answer(content)}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                body = json.dumps(whole | ({"usage": usage} if teacher.usage else {}))
            data = body.encode()
            if mood == "cut":
                data = data[: len(data) // 2]
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(data)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if mood == "gone":
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    return
                self.wfile.write(data)
                self.wfile.flush()
            except OSError:  # nobody waits for it any more
                return
            if mood == "good":
                with teacher.lock:
                    teacher.answered.append(content)

    return Handler


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass


@contextmanager
def serving(teacher, port=0):
    """The server's address while it runs."""
    server = Quiet(("127.0.0.1", port), handler(teacher))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
