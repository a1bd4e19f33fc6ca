"""A real server in a process of its own, for tests."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

from common import ROOT

MODEL = "models/tiny-parallel"
QUESTION = "Use 3, 5, 7 to make 22."


class Serving:
    """`parallel-r1 serve`, ready to answer when it is constructed."""

    def __init__(self, *flags, model=MODEL, **environment):
        words = [sys.executable, "-m", "parallel_r1", "serve", model, "--port", "0", *flags]
        self.process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + self.process.stderr.read()
        self.address = found.group()
        self.errors = []
        threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, timeout=60):
        """Ask it to stop, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def metric(self, name):
        with urllib.request.urlopen(f"{self.address}/metrics") as answer:
            text = answer.read().decode()
        rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return sum(float(value) for label, _, value in rows if label == name or label.startswith(name + "{"))

    def until(self, name, value, seconds=20):
        """Wait until a metric has a value."""
        for _ in range(int(seconds / 0.05)):
            if self.metric(name) == value:
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} is {self.metric(name)}, not {value}")
