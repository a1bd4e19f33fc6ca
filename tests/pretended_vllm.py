"""A policy whose next token is a function of all that it has read: behind the local scheduler's backend, behind a
client and behind a server that fails. All three must draw the same answers."""

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from parallel_r1.generation.backend import Counts
from parallel_r1.generation.live import draw_all
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.vllm.client import Piece


class Reader:
    """The policy: logits that depend on the whole context, with tags likely enough that answers fork.

    Args:
        tags: of the tokenizer.
        size: number of tokens.
        liked: token ids that are drawn often; the tags of a fork if None.
    """

    def __init__(self, tags, size, seed=0, liked=None):
        self.tags, self.size, self.seed = tags, size, seed
        self.liked = liked or [*(list(tags.ids.values()) * 3), *sorted(tags.eos)]

    def logits(self, context):
        drawing = random.Random(f"{self.seed}/{tuple(context)}")
        values = torch.tensor([drawing.gauss(0, 1) for _ in range(self.size)])
        if drawing.random() < 0.4:
            values[drawing.choice(self.liked)] += 8
        return values

    def next(self, context):
        """The most probable next token and its log-probability."""
        values = self.logits(context).log_softmax(-1)
        token = int(values.argmax())
        return token, float(values[token])


class ReadBackend:
    """A `Backend` of a reader: a branch is the list of all that it has read, in reading order."""

    def __init__(self, reader):
        self.reader, self.counts = reader, Counts()

    def open(self, prompts, shared):
        return [{"read": list(prompt[:-1])} for prompt in prompts]

    def fork(self, trunk, paths):
        return [{"read": list(trunk["read"]), "own": len(trunk["read"])} for _ in range(paths)]

    def join(self, trunk, paths, keep):
        assert keep == 1  # the others are read again: `causal_join`
        trunk["read"] += paths[0]["read"][paths[0]["own"] :]

    def read(self, feeds):
        for branch, tokens in feeds:
            branch["read"] += tokens

    def step(self, feeds):
        for branch, token in feeds:
            branch["read"].append(token)
        return torch.stack([self.reader.logits(branch["read"]) for branch, _ in feeds])

    def close(self, trunk):
        pass

    def fits(self, new, feeds):
        return True

    def holds(self, prompt, sampling):
        return True

    def trim(self):
        pass


def by_scheduler(reader, requests, **more):
    """The answers that the local scheduler draws, as the weights after three updates."""
    batch = Scheduler(ReadBackend(reader), reader.tags, 2, **more)
    return draw_all(batch, [batch.submit(request) for request in requests], 3, None)


def continuation(reader, context, params):
    """All tokens with which a text goes on, with their log-probabilities."""
    read, pairs = list(context), []
    while len(pairs) < params["max_tokens"]:
        token, logprob = reader.next(read)
        read.append(token)
        pairs.append((token, logprob))
        if token in params["stop_token_ids"]:
            break
    return pairs


class ReadClient:
    """A `Client` of a reader, whose pieces have any size and come in any order.

    Attributes:
        calls: every call that was started.
        stopped: keys of the calls that were stopped.
    """

    processed, places = False, 1

    def __init__(self, reader, seed=0):
        self.reader, self.random = reader, random.Random(seed)
        self.calls, self.stopped, self.left = [], [], {}

    def start(self, call):
        assert call.key not in self.left
        self.calls.append(call)
        self.left[call.key] = (call, continuation(self.reader, call.context, call.params))

    def stop(self, key):
        self.stopped.append(key)
        self.left.pop(key, None)

    def poll(self):
        pieces = []
        for key in self.random.sample(sorted(self.left), self.random.randint(0, len(self.left))):
            call, pairs = self.left[key]
            new = pairs[: self.random.randint(0, 9)]
            rest = pairs[len(new) :]
            self.left[key] = call, rest
            ended = not rest and self.random.random() < 0.7
            if ended:
                del self.left[key]
            size = len(call.context) if ended else 0
            pieces.append(Piece(key, [token for token, _ in new], [value for _, value in new], ended, size, size // 2))
        return pieces


class ReadServer:
    """A server of a reader on 127.0.0.1, with the end points of vLLM that are used, and with failures.

    Attributes:
        faults: what goes wrong with the next requests for text, one each: "cut" (the connection after some tokens),
            "end" (the connection after all tokens), "busy" (503), "wait" (429 with Retry-After), "error" (in the
            stream), "restart" (all connections are cut, nobody is there for a moment, then the first weights are),
            "silent restart" (the first weights, unnoticed), "refuse" (400), None.
        weights: version of the weights that it has.
        pushed: folders that it read weights from.
        texts: number of requests for text that were answered to their end.
    """

    def __init__(self, reader, faults=(), takes_weights=True, scale_out=True, longest=4096, seed=0):
        self.reader, self.faults, self.takes_weights, self.scale_out = reader, list(faults), takes_weights, scale_out
        self.longest, self.random = longest, random.Random(seed)
        self.weights, self.folder, self.pushed, self.texts, self.starts = "default", None, [], 0, 0
        self.back = 0.0
        self.lock = threading.Lock()
        self.http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of": self}))
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=[0.01], daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def fault(self):
        with self.lock:
            return self.faults.pop(0) if self.faults else None


class _Http(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client may close the connection at any moment."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: ReadServer

    def log_message(self, *_):
        pass

    def answer(self, value, status=200, headers=()):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in [("Content-Length", str(len(body))), ("Content-Type", "application/json"), *headers]:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def parse_request(self):
        if time.monotonic() < self.server_of.back:
            self.close_connection = True
            return False
        return super().parse_request()

    def do_GET(self):
        server, path = self.server_of, self.path.partition("?")[0]
        if path == "/v1/models":
            self.answer({"data": [{"id": "read", "max_model_len": server.longest}]})
        elif path == "/weight_info" and server.takes_weights:
            self.answer({"weight_version": server.weights})
        elif path == "/server_info" and server.takes_weights:
            config = {"model_config": {"logprobs_mode": "raw_logprobs"}, "device_config": {"device": "cuda"}}
            self.answer({"vllm_config": config})
        else:
            self.answer({"error": "no such page"}, 404)

    def do_POST(self):
        server, path = self.server_of, self.path.partition("?")[0]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "null")
        if path == "/inference/v1/generate" and not server.scale_out:
            self.answer({"error": "disabled"}, 403)
        elif path == "/inference/v1/generate" and not body:
            self.answer({"error": "no token_ids"}, 422)
        elif path == "/inference/v1/generate":
            self.text(body["token_ids"], body["sampling_params"], False)
        elif path == "/v1/completions":
            assert body["return_token_ids"]
            assert body["stream"]
            self.text(body["prompt"], body, True)
        elif path == "/collective_rpc":
            server.folder = body["kwargs"]["weights_path"]
            server.pushed.append(server.folder)
            self.answer({"results": [None]})
        elif path == "/update_weight_version":
            server.weights = body["new_version"]
            self.answer({"success": True})
        else:
            assert path in ("/pause", "/resume", "/reset_prefix_cache"), path
            self.answer({})

    def text(self, context, params, completions):
        server, fault = self.server_of, self.server_of.fault()
        starts = server.starts
        if fault == "busy":
            return self.answer({"error": "full"}, 503)
        if fault == "wait":
            return self.answer({"error": "full"}, 429, [("Retry-After", "0.05")])
        if fault == "refuse":
            return self.answer({"error": "too long"}, 400)
        if fault == "silent restart":
            server.weights = "default"
        pairs = continuation(server.reader, context, params)
        lost = {"cut", "restart", "error"} & {fault}
        sent = pairs[: server.random.randint(0, len(pairs) - 1)] if lost else pairs
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while sent:
            some, sent = sent[:3], sent[3:]
            self.event(self.choice(some, completions))
        if fault == "error":
            self.event({"error": {"message": "engine dead"}})
        if fault == "restart":
            server.weights, server.starts, server.back = "default", server.starts + 1, time.monotonic() + 0.2
        if lost or fault == "end" or server.starts != starts:
            self.close_connection = True
            return None
        last = self.choice([], completions)
        last["choices"][0] |= {"finish_reason": "stop", "weight_versions": [{"version": server.weights}]}
        self.event(last)
        usage = {"prompt_tokens": len(context), "prompt_tokens_details": {"cached_tokens": len(context) // 2}}
        self.event({"choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")
        server.texts += 1
        return None

    def choice(self, pairs, completions):
        tokens, values = [token for token, _ in pairs], [value for _, value in pairs]
        logprobs = {"token_logprobs": values} if completions else {"content": [{"logprob": v} for v in values]}
        return {"choices": [{"index": 0, "token_ids": tokens, "logprobs": logprobs, "finish_reason": None}]}

    def event(self, value):
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
        time.sleep(0)
