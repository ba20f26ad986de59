"""The browser as a surface: a page with a live figure and a control for every option.

Each session has a figure of its own. One thread calls matplotlib for all of them, and others read runs. The thread of
the serving loop answers the pointer meanwhile, from what was drawn last.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import io
import ipaddress
import json
import logging
import re
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import matplotlib
from matplotlib.backends.backend_webagg_core import (
    FigureCanvasWebAggCore,
    FigureManagerWebAgg,
    NavigationToolbar2WebAgg,
)
from matplotlib.figure import Figure
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.ioloop import PeriodicCallback
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from tracer.log.run import LogError
from tracer.log.text import failure, plain, reason
from viewer.draw.curves import Drawn
from viewer.draw.theme import SIZE_INCHES
from viewer.options import View, ViewOptions, options_of, words_of
from viewer.read.runs import Runs
from viewer.reduce.metrics import chosen
from viewer.snapshot import Finding, Snapshot
from viewer.surfaces import table
from viewer.surfaces.connections import HOST, Strangers, accept, listen
from viewer.surfaces.cursor import Cursor, Reading
from viewer.surfaces.screen import Screen
from viewer.surfaces.token import kept_secret, token_of
from viewer.words import counted, noticed, parameters_in, span

# A browser with a wrong address gets an answer; the terminal stays quiet.
logging.getLogger("tornado.general").addHandler(logging.NullHandler())

_TICK_MILLISECONDS = 200
# Where nothing has happened, the page is told this often how old the last row is.
_AGE_SECONDS = 1.0
# Runs that are read within this time replace the previous picture without an empty one between.
_PATIENCE_SECONDS = 1.0
_PING_SECONDS = 30
# The page lists this many parameters and findings; a filter shows other parameters.
_LISTED, _FINDINGS, _PARAMS_LINKED = 200, 30, 3
# What the user types: it stays while it is refused.
_PATTERNS = {"params", "metrics", "loss", "accuracy"}
_LARGEST_MESSAGE = 1 << 16
_LARGEST_HEADER = 1 << 15
_IDLE_SECONDS = 30
# Sizes that a page can have. Others, which no page of ours sends, must cost no memory.
_BOUNDS = {"width": (160, 4000), "height": (160, 4000), "device_pixel_ratio": (0.5, 3)}
# What a message raises that no page of ours sends.
_WRONG = (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
_DOWNLOADS = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf", "csv": "text/csv; charset=utf-8"}
# matplotlib's script sets style attributes.
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
    "style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def serve(
    open_runs: Callable[[ViewOptions], Runs],
    options: ViewOptions,
    host: str,
    port: int | None,
    new_token: bool,
    say: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        open_runs: Opens the runs that options ask for.
        options: The view where an address asks for none.
        host: The address to listen at; "" for this machine alone.
        port: The port, 0 for any free one; None for the usual one, or a free one where it is taken.
        new_token: Whether addresses of before are refused from now on.
        say: Tells the user the page's address.

    Raises:
        LogError: nothing can be served at this address.
        KeyboardInterrupt: the user ended it.
    """
    # It speaks of the page's width, which nobody at this terminal can change.
    warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
    host = host or HOST
    listening = listen(host, port)
    port = listening.getsockname()[1]
    try:
        secret = kept_secret(new_token)
    except (OSError, RuntimeError) as error:
        words = failure(error)
        if new_token:
            raise LogError(f"no new token can be kept: {words}") from error
        say(f"the address holds until the page ends, since its token cannot be kept: {words}")
        secret = secrets.token_urlsafe()
    hosts = frozenset({"localhost", socket.gethostname().lower(), host.lower()})
    site = Site(open_runs, options, hosts, port, token_of(secret, port))
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104
    shown = f"[{shown}]" if ":" in shown else shown
    say(f"Ctrl-C ends the page at http://{shown}:{port}/{site.token}/")
    asyncio.run(_serve(site, listening))


async def _serve(site: "Site", listening: socket.socket) -> None:
    given = {"site": site}
    server = HTTPServer(
        Application(
            [
                (r"/([^/]+)/socket", Session, given),
                (r"/([^/]+)/figure\.([a-z]+)", Download, given),
                (r"/([^/]+)/(.*)", File, given),
            ],
            default_handler_class=File,
            default_handler_args=given,
            # Quiet, as for wrong addresses.
            log_function=lambda _: None,
            websocket_max_message_size=_LARGEST_MESSAGE,
            websocket_ping_interval=_PING_SECONDS,
        ),
        # No request has a body: one is refused before it is read.
        max_body_size=0,
        max_header_size=_LARGEST_HEADER,
        idle_connection_timeout=_IDLE_SECONDS,
        body_timeout=_IDLE_SECONDS,
    )
    try:
        await accept(server, site.strangers, listening)
    finally:
        listening.close()
        for session in list(site.sessions.values()):
            session.on_close()
        await server.close_all_connections()
        site.drawing.shutdown()


class Site:
    """The page's files, and its open sessions.

    Attributes:
        token: The first folder of every address, so that the page's relative addresses have it, too. A cookie would go
            to servers at other ports of this host as well.
        files: The type and the content of each file of the page, by name.
        port: Where the page is served.
        made: Another text for other files: a page that was open while the viewer was upgraded loads itself again.
        sessions: The open sessions, by the names that their pages know.
        strangers: The connections that have not shown the token.
        drawing: The one thread that calls matplotlib.
    """

    def __init__(
        self,
        open_runs: Callable[[ViewOptions], Runs],
        options: ViewOptions,
        hosts: frozenset[str],
        port: int,
        token: str,
    ) -> None:
        self.open_runs = open_runs
        self.options = options
        self.port = port
        self.token = token
        self.files = _files()
        self.made = hashlib.sha256(repr(self.files).encode()).hexdigest()
        self.sessions: dict[str, Session] = {}
        self.strangers = Strangers()
        self.drawing = ThreadPoolExecutor(1, "viewer-drawing")
        self._hosts = hosts

    def refusal(self, host: str, token: str) -> str | None:
        """Why a request gets nothing, in a sentence; None where nothing is wrong."""
        if not (host in self._hosts or _is_address(host)):
            # An attacker may let a name of his own point here, so that his page can read ours.
            return "This host name is not the viewer's: open the address that it printed, or give the name with --host."
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return "This address lacks the viewer's token: open the address that it printed."
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _files() -> dict[str, tuple[str, bytes]]:
    page = Path(__file__).parent / "page"
    images = Path(matplotlib.get_data_path(), "images")
    icons = [
        name + size for _, _, name, _ in FigureManagerWebAgg.ToolbarCls.toolitems if name for size in ("", "_large")
    ]
    return {
        "": ("text/html", (page / "page.html").read_bytes()),
        "page.css": ("text/css", (page / "page.css").read_bytes()),
        "runs.css": ("text/css", (page / "runs.css").read_bytes()),
        **{name: ("text/javascript", (page / name).read_bytes()) for name in ("page.js", "cursor.js", "runs.js")},
        "mpl.js": ("text/javascript", FigureManagerWebAgg.get_javascript().encode()),
        **{f"_images/{name}.png": ("image/png", (images / f"{name}.png").read_bytes()) for name in icons},
    }


class _Guarded(RequestHandler):
    """Answers only requests that know the token and use a name of this machine."""

    def initialize(self, site: Site) -> None:
        self.site = site

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        refusal = self.site.refusal(self.request.host_name.lower(), self.path_args[0] if self.path_args else "")
        if refusal is not None:
            self.refuse(403, refusal)
        elif isinstance(self.request.connection, HTTP1Connection):
            self.site.strangers.know(self.request.connection.stream)

    def refuse(self, status: int, sentence: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(sentence)


class File(_Guarded):
    """A file of the page."""

    def get(self, _: str, name: str) -> None:
        """Write a file that is known by name, so that no address leads into a file system."""
        if name not in self.site.files:
            self.refuse(404, "There is no such page.")
            return
        kind, content = self.site.files[name]
        self.set_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.write(content)


class Download(_Guarded):
    """A session's figure as a file, zoomed as on the page."""

    async def get(self, _: str, kind: str) -> None:
        """Write the figure of the session that is named in the query."""
        session = self.site.sessions.get(self.get_query_argument("session", ""))
        if session is None or kind not in _DOWNLOADS:
            self.refuse(404, "There is no such figure: reload the page, and save it as png, svg, pdf or csv.")
            return
        content = await asyncio.get_running_loop().run_in_executor(self.site.drawing, session.saved, kind)
        self.set_header("Content-Type", _DOWNLOADS[kind])
        self.set_header("Content-Disposition", "attachment")
        self.write(content)


class Session(_Guarded, WebSocketHandler):
    """One page: its figure, its options, and its texts."""

    def open(self, _: str) -> None:
        """Show what the page's address asks for."""
        self._loop = asyncio.get_running_loop()
        self._cursor = Cursor()
        self._shown: Drawn | None = None
        # Whether anything may have happened to the figure since the last tick, and when that was.
        self._touched, self._ticked = True, 0.0
        self._name = secrets.token_urlsafe()
        self.site.sessions[self._name] = self
        words = parse_qs(self.request.query, keep_blank_values=True)
        self._do(self._begin, words).add_done_callback(self._done)
        self._ticks = PeriodicCallback(self._look, _TICK_MILLISECONDS)
        self._ticks.start()

    def _do(self, act: Callable[..., None], *given: object) -> "asyncio.Future[None]":
        """Let the thread that draws do this, after all that it was given before."""
        return self._loop.run_in_executor(self.site.drawing, act, *given)

    def _done(self, done: "asyncio.Future[None]") -> None:
        if done.cancelled() or (error := done.exception()) is None:
            return
        self.close()
        if not isinstance(error, _WRONG):
            raise error

    def _begin(self, words: dict[str, list[str]]) -> None:
        self._base = dataclasses.replace(
            self.site.options, dark=self.site.options.dark or words.get("prefers") == ["dark"]
        )
        options, self._refused = options_of(words, self._base)
        self._asked, self._told = words, dict[str, object]()
        # The number that the page gave to the last address.
        self._answered = 0
        # What the page was told of.
        self._seen: tuple[Sequence[Snapshot] | None, object] = None, None
        figure = Figure(figsize=SIZE_INCHES)
        self._manager = FigureManagerWebAgg(FigureCanvasWebAggCore(figure), 1)
        self._toolbar = self._manager.toolbar = NavigationToolbar2WebAgg(figure.canvas)
        self.screen = Screen(figure, self.site.open_runs, options, titled=False)
        self._followed: object = None
        self._drawn = False
        self._show()
        self._manager.add_web_socket(self)

    def on_message(self, message: str | bytes) -> None:
        """Take a message of the page's controls, or of matplotlib's script."""
        try:
            content = json.loads(message)
            if content["type"] in ("point", "move"):
                self._read(None if self._shown is None else self._go(self._shown, content))
            else:
                self._do(self._take, content).add_done_callback(self._done)
                self._touched = True
        except _WRONG:
            self.close()

    def _go(self, shown: Drawn, content: dict[str, Any]) -> Reading | None:
        """Move the cursor; what stands there."""
        if content["type"] == "move":
            return self._cursor.move(shown, int(content["points"]), int(content["panels"]))
        return self._cursor.point(shown, content["x"], content["y"], content["click"] is True)

    def _take(self, content: dict[str, Any]) -> None:
        if content["type"] in ("look", "address"):
            self._asked = parse_qs(content["query"], keep_blank_values=True)
            self._answered = int(content.get("number", self._answered))
            # An address says what differs from the usual options, the controls what differs from the present ones.
            base = self.screen.options if content["type"] == "look" else self._base
            options, self._refused = options_of(self._asked, base)
            if options != self.screen.options:
                self.screen.look_at(options)
            self._tick()
        elif content["type"] != "supports_binary":
            for name in _BOUNDS.keys() & content.keys():
                low, high = _BOUNDS[name]
                content[name] = min(max(content[name], low), high)
            self._manager.handle_json(content)
            if content["type"] == "resize":
                self.screen.redraw()
            elif content["type"] == "draw":
                self._show()

    def _show(self) -> None:
        """Let the pointer be answered from the figure as it is now."""
        self._shown = self.screen.drawing.drawn()
        self._loop.call_soon_threadsafe(self._read_again)

    def _read(self, reading: Reading | None) -> None:
        """Answer with what stands at the cursor."""
        self.send_json({"type": "reading", "reading": reading})

    def _read_again(self) -> None:
        """Tell the page what stands at the cursor in the figure as it is now."""
        if self._shown is not None and self._cursor.shown:
            self._read(self._cursor.again(self._shown))

    async def _look(self) -> None:
        """Tick where there may be something to tell, and else seldom."""
        now = time.monotonic()
        if self._touched or self.screen.fresh or now >= self._ticked + _AGE_SECONDS:
            self._touched, self._ticked = False, now
            await self._do(self._tick)

    def _tick(self) -> None:
        screen, failure = self.screen, ""
        try:
            if screen.tick():
                self._drawn = False
                self._show()
        except Exception as error:
            # The page shows the error and stays: other options may work.
            failure = reason(error)
        if screen.options.view is View.PARAM and not screen.options.param and (params := self._params()):
            screen.look_at(dataclasses.replace(screen.options, param=params[0]))
            return
        if screen.drawing is not self._followed:
            self._followed, self._since = screen.drawing, time.monotonic()
            # What was under the mouse is gone.
            self._toolbar.set_message("")
        if not screen.snapshots and not failure and time.monotonic() < self._since + _PATIENCE_SECONDS:
            return
        if not self._drawn:
            self._drawn = True
            screen.figure.canvas.draw_idle()
        self._tell(failure)

    def _tell(self, failure: str) -> None:
        """Send the page what has changed."""
        screen, options = self.screen, self.screen.options
        seen = failure or screen.said(), options, screen.names, self._refused, self._answered
        if screen.snapshots is self._seen[0] and seen == self._seen[1]:
            return
        self._seen = screen.snapshots, seen
        status, *notices = seen[0].splitlines()
        refused = dict(self._refused)
        if not screen.snapshots and options.run and screen.names and options.run not in screen.names:
            refused["run"] = f"there is no run {options.run!r}"
        drawn = set(chosen(screen.snapshots, dataclasses.replace(options, metrics="")))
        metrics = sorted({curve.name for snapshot in screen.snapshots for curve in snapshot.curves})
        all_params = {name for snapshot in screen.snapshots for name in snapshot.all_params}
        params = self._params()
        words = words_of(options)
        state: dict[str, object] = {
            "session": self._name,
            "port": self.site.port,
            "made": self.site.made,
            "status": {"words": status, "failed": bool(failure)},
            "notices": notices,
            "findings": self._findings(),
            "runs": table.for_page(screen.snapshots, options),
            "choices": {
                "run": ["", *_unique([*screen.names, *filter(None, [options.run])])],
                "rank": _unique(
                    ["merged", "spread", *(str(r) for s in screen.snapshots for r in s.ranks), options.rank]
                ),
                "statistic": _unique([*(name for s in screen.snapshots for name in s.statistics), options.statistic]),
                # Each with the regular expression of its name alone.
                "metrics": [(name, f"^{re.escape(name)}$") for name in metrics],
            },
            "off": [name for name in metrics if name not in drawn],
            "params": {
                "names": params[:_LISTED],
                "all": len(params),
                "matching": parameters_in(params, all_params),
                "there": parameters_in(all_params, all_params),
            },
            "values": words | {name: self._asked[name] for name in _PATTERNS & self._refused.keys()},
            "refused": refused,
            "query": self._query(options),
            "answered": self._answered,
        }
        news = {name: value for name, value in state.items() if self._told.get(name) != value}
        if news:
            self._told = state
            self.send_json({"type": "state", **news})

    def _params(self) -> list[str]:
        return _unique(name for snapshot in self.screen.snapshots for name in snapshot.params)

    def _query(self, options: ViewOptions) -> str:
        """What an address says of options."""
        usual = words_of(self._base)
        differing = {name: word for name, word in words_of(options).items() if word != usual[name]}
        return urlencode(differing, doseq=True, errors="replace")

    def _findings(self) -> dict[str, object]:
        """The first findings in words and with links, the number of each severity, and how many are not listed."""
        findings = noticed(self.screen.snapshots, self.screen.options)
        more = f"… and {len(findings) - _FINDINGS} more: see `viewer check`" if len(findings) > _FINDINGS else ""
        return {
            "words": counted([finding for _, _, finding in findings]),
            "listed": [self._listed(*each) for each in findings[:_FINDINGS]],
            "more": more,
        }

    def _listed(self, number: int, snapshot: Snapshot, finding: Finding) -> dict[str, object]:
        """A finding in words, with the addresses of its step and of its parameters."""
        options, several = self.screen.options, len(self.screen.snapshots) > 1
        there = self.screen.around(snapshot, finding.first_step)
        of_param = dataclasses.replace(options, view=View.PARAM, run=snapshot.name if several else options.run)
        params = finding.params[:_PARAMS_LINKED]
        return {
            "number": number,
            "severity": finding.severity,
            "run": plain(snapshot.name) if several else "",
            "span": span(finding),
            "title": plain(finding.title),
            "sentence": plain(finding.sentence),
            "advice": finding.advice,
            "step": None if there is None else self._query(dataclasses.replace(options, zoom=there)),
            "params": [[plain(name), self._query(dataclasses.replace(of_param, param=name))] for name in params],
        }

    def saved(self, kind: str) -> bytes:
        """The figure as a file; only the thread that draws may call this."""
        if kind == "csv":
            return self.screen.drawing.csv().encode()
        content = io.BytesIO()
        self.screen.figure.savefig(content, format=kind)
        return content.getvalue()

    def send_json(self, content: dict[str, Any]) -> None:
        """Called by matplotlib, too."""
        self._send(json.dumps(content))

    def send_binary(self, blob: bytes) -> None:
        """Called by matplotlib."""
        self._send(blob, binary=True)

    def _send(self, message: str | bytes, binary: bool = False) -> None:
        self._loop.call_soon_threadsafe(self._write, message, binary)

    def _write(self, message: str | bytes, binary: bool) -> None:
        # A page may be closed at any time.
        with contextlib.suppress(WebSocketClosedError):
            self.write_message(message, binary).add_done_callback(lambda sent: sent.cancelled() or sent.exception())

    def on_close(self) -> None:
        """Stop everything for this page."""
        if self.site.sessions.pop(self._name, None) is not None:
            self._ticks.stop()
            self._do(self._end)

    def _end(self) -> None:
        self._manager.remove_web_socket(self)
        # A reader takes a while to end: other pages do not wait for it.
        threading.Thread(target=self.screen.close).start()


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
