"""A teacher without a model: a local server that speaks OpenAI's protocol and answers from a file.

    python examples/replay.py TRACES.parquet &
    parallel-r1 coldstart --problems parquet:TRACES.parquet --base-url http://127.0.0.1:8000/v1 --model replay --out DIR

Every row of the file has a `problem` and, in the column that `--column` names, an answer. A request whose text holds
the problem gets that answer; any other gets status 400.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from parallel_r1.tasks.datasets.rows import read_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--column", default="trace")
    parser.add_argument("--port", type=int, default=8000, help="0 takes one that is free")
    options = parser.parse_args()
    answers = {row["problem"].strip(): row[options.column] for row in read_file(options.file)}

    class Replay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
            answer = next((text for problem, text in answers.items() if problem in prompt), None)
            if answer is None:
                self.say(400, {"error": {"message": "no answer to this problem in the file"}})
                return
            sizes = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(answer.split())}
            choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
            self.say(
                200,
                {"id": "0", "object": "chat.completion", "created": 0, "model": "replay", "choices": [choice]}
                | {"usage": {**sizes, "total_tokens": sum(sizes.values())}},
            )

        def say(self, status: int, body: dict[str, object]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", options.port), Replay)
    print(f"answering at http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
