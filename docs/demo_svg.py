"""Runs the demo on a terminal of its own and draws its first minute as an SVG: `python3 docs/demo_svg.py PATH-OF-KEYFUSE > docs/demo.svg`."""

import html
import os
import pty
import re
import subprocess
import sys

WIDTH, LINES = 128, 46


def record(program):
    """What the demo writes to a terminal, as text."""
    master, slave = pty.openpty()
    env = dict(os.environ, TERM="xterm-256color", COLUMNS=str(WIDTH))
    child = subprocess.Popen([program, "run", "--demo", "--once", "--speed", "60"], stdout=slave, stderr=slave, stdin=slave, env=env, close_fds=True)
    os.close(slave)
    out = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        out += part
    child.wait()
    return out.decode("utf-8", "replace")


def screen(text):
    """Lines as a terminal would show them: a carriage return starts the line again."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        line = line.split("\r\x1b[K")[-1] if line.split("\r\x1b[K")[-1] else ""
        lines.append(line)
    return lines


STYLES = {"1": "font-weight:bold", "2": "fill:#8b949e", "33": "fill:#d29922", "36": "fill:#39c5cf", "1;31": "fill:#ff7b72;font-weight:bold",
          "1;97;41": "fill:#ff5f56;font-weight:bold"}


def spans(line):
    """One line as SVG spans, cut at the width of the terminal."""
    out, used = [], 0
    for style, part in re.findall(r"(?:\x1b\[([0-9;]*)m)?([^\x1b]*)", line):
        part = part[: max(0, WIDTH - used)]
        used += len(part)
        if part:
            css = STYLES.get(style, "")
            out.append(f'<tspan style="{css}">{html.escape(part)}</tspan>')
    return "".join(out)


def main():
    text = record(sys.argv[1])
    lines = [line for line in screen(text) if "/tmp/" not in line]
    # Blank runs are folded; the status line, which is overwritten all the time, stands at the bottom.
    folded = [line for i, line in enumerate(lines) if line.strip() or (i and lines[i - 1].strip())]
    status = [part for part in re.split(r"\r\x1b\[K|\n", text) if " · lag " in part]
    shown = folded[:LINES] + status[-1:]
    height = 20 * len(shown) + 40
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1080 {height}" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13.4">')
    print(f'<rect width="1080" height="{height}" rx="8" fill="#0d1117"/>')
    for number, line in enumerate(shown):
        print(f'<text x="20" y="{34 + 20 * number}" fill="#e6edf3" xml:space="preserve">{spans(line)}</text>')
    print("</svg>")


main()
