"""The oracle of the simulation: servers that draw one token after the other, written from the description alone."""

from statistics import median


class Server:
    def __init__(self):
        self.time, self.going, self.fresh, self.running = 0.0, [], [], []


class Answer:
    def __init__(self, outline, home):
        self.outline, self.home, self.part = outline, home, 0
        self.text = outline.prompt
        self.cached, self.calls = {}, []


class Call:
    def __init__(self, answer, path, tokens):
        self.answer, self.path, self.tokens, self.prefix = answer, path, tokens, answer.text
        self.drawn, self.over, self.server = 0, False, None


def decode_step(costs, rows, context):
    memory = costs.weights + costs.held * context
    arithmetic = costs.row * rows + costs.seen * context
    return max(memory, arithmetic) + costs.fixed + costs.per_row * rows


def reading(costs, tokens, before):
    return sum(costs.prefill + costs.prefill_seen * (before + index) for index in range(tokens))


class World:
    def __init__(self, outlines, cluster, costs):
        self.cluster, self.costs = cluster, costs
        self.servers = [Server() for _ in range(cluster.servers)]
        self.tokens = self.read = 0
        self.ends = []
        for index, outline in enumerate(outlines):
            self.begin(Answer(outline, index % cluster.servers), 0.0)

    def run(self):
        """Every server goes from boundary to boundary, the one that is furthest behind first."""
        while busy := [one for one in self.servers if one.running or one.going or one.fresh]:
            self.boundary(min(busy, key=lambda server: server.time))
        return max(self.ends, default=0.0)

    def boundary(self, server):
        over = [call for call in server.running if call.drawn >= call.tokens or self.is_late(call)]
        while over:
            server.running = [call for call in server.running if call not in over]
            for call in over:
                self.end(call, server.time)
            over = [call for call in server.running if self.is_late(call)]
        start = server.time
        while queue := server.going or server.fresh:
            if not self.fits(server, queue[0]):
                break
            self.admit(server, queue.pop(0))
        if server.running and server.time == start:  # else it has read, and there is another boundary
            context = sum(call.prefix + call.drawn for call in server.running)
            server.time += decode_step(self.costs, len(server.running), context)
            for call in server.running:
                call.drawn += 1
                self.tokens += 1

    def fits(self, server, call):
        running = [*server.running, call]
        whole = {one.answer: one.prefix for one in running}
        held = sum(whole.values()) + sum(one.tokens for one in running)
        return len(running) <= self.cluster.rows and held <= self.cluster.capacity

    def admit(self, server, call):
        number = self.servers.index(server)
        cached = call.answer.cached.get(number, 0)
        if call.prefix > cached:
            server.time += reading(self.costs, call.prefix - cached, cached)
            self.read += call.prefix - cached
        call.answer.cached[number] = max(cached, call.prefix)
        server.running.append(call)

    def is_late(self, call):
        """Whether a path is too much longer than those of its fork that have ended."""
        factor, siblings = self.cluster.straggler, call.answer.calls
        ended = [one.drawn for one in siblings if one.over]
        if factor is None or call.path is None or not ended or 2 * len(ended) < len(siblings):
            return False
        return call.drawn > factor * median(ended)

    def end(self, call, time):
        answer = call.answer
        call.over = True
        if call.path in (None, 0):
            answer.cached[call.server] = max(answer.cached.get(call.server, 0), call.prefix + call.drawn)
        if not all(one.over for one in answer.calls):
            return
        answer.text += sum(one.drawn for one in answer.calls)
        if call.path is not None and not self.cluster.rereads:
            answer.cached[answer.home] = answer.text
        answer.part += 1
        self.begin(answer, time)

    def begin(self, answer, time):
        while answer.part < len(answer.outline.parts):
            part = answer.outline.parts[answer.part]
            lengths = [(None, part)] if isinstance(part, int) else list(enumerate(part))
            if lengths[0][1]:
                answer.calls = [Call(answer, path, length) for path, length in lengths]
                for call in answer.calls:
                    self.queue(call, time)
                return
            answer.part += 1
        self.ends.append(time)

    def queue(self, call, time):
        answer, begun = call.answer, bool(call.answer.cached)
        call.server = answer.home
        if begun and self.cluster.routing == "spread":
            loads = [len(one.running) + len(one.going) + len(one.fresh) for one in self.servers]
            call.server = loads.index(min(loads))
        if call.path is None:
            answer.home = call.server
        server = self.servers[call.server]
        if not (server.running or server.going or server.fresh):
            server.time = max(server.time, time)
        (server.going if begun else server.fresh).append(call)
