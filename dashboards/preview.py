#!/usr/bin/env python3
"""Draws the dashboards without Grafana: every panel's own query, asked of a live Prometheus and of keyfuse's SQL door, as one HTML page.

usage: preview.py PROMETHEUS_URL "host=… port=… user=…" OUT.html [dashboard …]   (needs psql; set PGPASSWORD where there is one)
Exits 1 if a query fails; says which panels have no data.
"""
import csv, glob, html, io, json, os, re, subprocess, sys, time, urllib.parse, urllib.request

prometheus, sql_door, out = sys.argv[1:4]
names = sys.argv[4:]
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "grafana", "dashboards")
now = time.time()
start = now - float(os.environ.get("PREVIEW_SECONDS", "3600"))
troubles, empty = [], []


def moment(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def ask_prometheus(target):
    kind = "query" if target.get("instant") else "query_range"
    parameters = {"query": target["expr"], "time": now} if kind == "query" else {"query": target["expr"], "start": start, "end": now, "step": max(5, (now - start) / 200)}
    with urllib.request.urlopen(f"{prometheus}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}") as answer:
        series = json.load(answer)["data"]["result"]
    lines = {}
    for one in series:
        legend = target["legendFormat"]
        name = " ".join(f"{k}={v}" for k, v in one["metric"].items() if k != "__name__") if legend == "__auto" else re.sub(r"{{(\w+)}}", lambda m: one["metric"].get(m[1], ""), legend)
        points = one.get("values") or [one["value"]]
        lines[name or "value"] = [(float(t), float(v)) for t, v in points if v not in ("NaN", "+Inf", "-Inf")]
    return {name: points for name, points in lines.items() if points}


def ask_sql(text, variables):
    text = re.sub(r"\$__timeFilter\(([^)]*)\)", lambda m: f"{m[1]} BETWEEN '{moment(start)}' AND '{moment(now)}'", text)
    for name, value in variables.items():
        text = text.replace("${%s}" % name, value)
    answer = subprocess.run(["psql", "-X", "--csv", "-v", "ON_ERROR_STOP=1", "-c", text, sql_door], capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(answer.stderr.strip()[:500])
    return list(csv.reader(io.StringIO(answer.stdout)))


COLOURS = ["#5794f2", "#ff9830", "#73bf69", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a", "#ffa6b0", "#96d98d", "#c0d8ff"]


def chart(lines, bars):
    points = [p for line in lines.values() for p in line]
    if not points:
        return "<p class=none>no data</p>"
    low, high = min(0, min(v for _, v in points)), max(v for _, v in points) or 1
    x = lambda t: 6 + 588 * (t - start) / (now - start)
    y = lambda v: 172 - 160 * (v - low) / ((high - low) or 1)
    parts = []
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        if bars:
            parts += [f'<rect x="{x(t):.1f}" width="4" y="{y(v):.1f}" height="{172 - y(v):.1f}" fill="{colour}" opacity=".7"/>' for t, v in line]
        else:
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in line)}"/>')
            if len(line) < 3:
                parts += [f'<circle cx="{x(t):.1f}" cy="{y(v):.1f}" r="2.5" fill="{colour}"/>' for t, v in line]
    legend = " ".join(f'<span style="color:{COLOURS[n % len(COLOURS)]}">■</span> {html.escape(name)}' for n, name in enumerate(lines))
    return f'<svg viewBox="0 0 600 180"><text x="6" y="10">{high:.4g}</text>{"".join(parts)}</svg><p class=legend>{legend}</p>'


def series_of(rows):
    head, lines = rows[0], {}
    for row in rows[1:]:
        cell = dict(zip(head, row))
        seconds = time.mktime(time.strptime(cell["time"][:19], "%Y-%m-%d %H:%M:%S")) - time.timezone
        lines.setdefault(cell.get("metric", "value"), []).append((seconds, float(cell[head[-1]] or 0)))
    return lines


def body(panel, variables):
    kind, lines, rows = panel["type"], {}, []
    for target in panel.get("targets", []):
        if "expr" in target:
            lines.update(ask_prometheus(target))
        else:
            rows = ask_sql(target["rawSql"], variables)
    if rows and len(rows) > 1 and kind == "timeseries":
        lines, rows = series_of(rows), []
    if not lines and len(rows) < 2:
        empty.append(f'{panel["title"]}')
    bars = panel["fieldConfig"]["defaults"].get("custom", {}).get("drawStyle") == "bars"
    if kind == "timeseries":
        return chart(lines, bars)
    if kind == "stat":
        value = rows[1][0] if len(rows) > 1 else next((f"{p[-1][1]:.4g}" for p in lines.values()), "–")
        return f"<div class=stat>{html.escape(value)}</div>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0]) if rows else ""
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell[:60])}</td>" for cell in row) + "</tr>" for row in rows[1:40])
    return f"<div class=scroll><table><tr>{head}</tr>{cells}</table></div>"


page = ["""<!doctype html><meta charset=utf-8><style>body{background:#111217;color:#d8d9da;font:13px system-ui;margin:12px;width:1500px}
h1{font-size:20px;margin:18px 4px}.grid{position:relative}.panel{position:absolute;background:#181b1f;border:1px solid #2c3235;border-radius:3px;overflow:hidden;padding:6px 8px;box-sizing:border-box}
h2{font-size:13px;margin:0 0 4px;font-weight:500}.stat{font-size:30px;text-align:center;padding-top:14px;color:#73bf69}.none{color:#8e8e8e;text-align:center}svg{width:100%;height:calc(100% - 52px)}svg text{fill:#8e8e8e;font-size:11px}
table{border-collapse:collapse;font-size:11.5px;white-space:nowrap}td,th{padding:2px 8px;border-bottom:1px solid #2c3235;text-align:left}th{color:#8ab8ff}.scroll{overflow:hidden;height:calc(100% - 20px)}.legend{margin:2px 0;font-size:11px}.trouble{color:#f2495c}</style>"""]
for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
    board = json.load(open(path))
    if names and os.path.basename(path)[:-5] not in names:
        continue
    variables = {}
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            rows = ask_sql(variable["query"], {})
            variables[variable["name"]] = os.environ.get("PREVIEW_" + variable["name"].upper()) or (rows[1][0] if len(rows) > 1 else "none")
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) * 32
    page.append(f'<h1>{html.escape(board["title"])} {html.escape(" ".join(variables.values()))}</h1><div class=grid style="height:{height}px">')
    for panel in board["panels"]:
        at = panel["gridPos"]
        try:
            inside = body(panel, variables)
        except Exception as error:  # a panel's trouble is shown in its place, and makes the whole fail
            troubles.append(f'{board["title"]} / {panel["title"]}: {error}')
            inside = f"<p class=trouble>{html.escape(str(error))}</p>"
        page.append(f'<div class=panel style="left:{at["x"] * 61.6:.0f}px;top:{at["y"] * 32}px;width:{at["w"] * 61.6 - 6:.0f}px;height:{at["h"] * 32 - 6}px"><h2>{html.escape(panel["title"])}</h2>{inside}</div>')
    page.append("</div>")
open(out, "w").write("\n".join(page))
print(f"{out}; without data: {', '.join(empty) or 'none'}")
for trouble in troubles:
    print(trouble, file=sys.stderr)
sys.exit(bool(troubles))
