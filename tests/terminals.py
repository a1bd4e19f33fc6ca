"""A command in a terminal of its own, as a person sees it: pexpect starts it, pyte draws its screen."""

import os
import re
import sys
import termios
import time

import pexpect
import pyte
from conftest import ROOT

COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


class Terminal:
    """Context manager. `lines` is the screen; `raw` all bytes that the command has sent.

    The screen of pyte is wider than the terminal that the command is told of, so that a line that is too long shows.
    """

    def __init__(self, *words, width=80, height=24, patience=60.0, program=None, **environment):
        variables = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            variables.pop(name, None)
        command = program or [sys.executable, "-m", "parallel_r1"]
        self.width, self.patience, self.raw = width, patience, b""
        self.screen = pyte.Screen(width + 200, height)
        self.stream = pyte.ByteStream(self.screen)
        self.child = pexpect.spawn(
            command[0],
            [*command[1:], *map(str, words)],
            env={**variables, **environment},
            cwd=ROOT,
            dimensions=(height, width),
            timeout=None,
        )
        self.before = self.modes()

    def modes(self):
        """What the terminal does with keys: echo, lines, signals."""
        return termios.tcgetattr(self.child.child_fd)[:4]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.close(force=True)

    def read(self, seconds=0.1):
        """Take in what the command sends. Returns False when it has ended."""
        try:
            text = self.child.read_nonblocking(1 << 16, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += text
        for number, part in enumerate(re.split(rb"\x1b\[\?1049[hl]", text)):  # to the other screen, or back
            if number:
                self.screen.reset()  # pyte has one screen only
            self.stream.feed(part)
        return True

    @property
    def lines(self):
        """The rows of the screen. pyte's own `display` fails on the half of a wide character that is drawn over."""
        rows, columns = range(self.screen.lines), range(self.screen.columns)
        return ["".join(self.screen.buffer[row][column].data for column in columns).rstrip() for row in rows]

    @property
    def text(self):
        return "\n".join(self.lines)

    def wait(self, *words):
        """Wait until words are on the screen."""
        end = time.monotonic() + self.patience
        while not all(word in self.text for word in words):
            alive = self.read()
            if not alive and all(word in self.text for word in words):
                return
            assert alive, f"ended without {words}:\n{self.text}"
            assert time.monotonic() < end, f"no {words}:\n{self.text}"

    def wait_without(self, word):
        """Wait until a word is no longer on the screen."""
        end = time.monotonic() + self.patience
        while word in self.text:
            assert self.read(), f"ended with {word}:\n{self.text}"
            assert time.monotonic() < end, f"still {word}:\n{self.text}"

    def watch(self, seconds):
        """Take in what comes in this time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.read():
            pass

    def press(self, keys):
        self.child.send(keys)

    def resize(self, width, height):
        """Another size. What a real terminal wraps then, this one forgets."""
        self.read()
        self.width = width
        self.screen.reset()
        self.screen.resize(height, width + 200)
        self.child.setwinsize(height, width)

    def end(self):
        """Wait until the command ends. Returns its exit code, 128 + N for signal N."""
        end = time.monotonic() + self.patience
        while self.read():
            assert time.monotonic() < end, f"goes on:\n{self.text}"
        self.child.wait()
        signal = self.child.signalstatus
        return self.child.exitstatus if signal is None else 128 + signal

    def is_as_before(self):
        """Whether the command left the terminal as it was: cursor, screen, colours, keys."""
        assert self.raw.count(b"\x1b[?25l") <= self.raw.count(b"\x1b[?25h"), "no cursor"
        assert self.raw.rfind(b"\x1b[?25l") <= self.raw.rfind(b"\x1b[?25h"), "no cursor"
        assert self.raw.count(b"\x1b[?1049h") == self.raw.count(b"\x1b[?1049l"), "the other screen"
        assert not self.screen.cursor.hidden
        colours = COLOUR.findall(self.raw)
        assert not colours or colours[-1] in (b"\x1b[0m", b"\x1b[m"), "a colour"
        return True

    def fits(self):
        """Whether no line is wider than the terminal."""
        cells = [(at, row) for row, line in self.screen.buffer.items() for at, cell in line.items() if cell.data != " "]
        wide = {self.lines[row] for at, row in cells if at >= self.width}
        assert not wide, wide
        return True
